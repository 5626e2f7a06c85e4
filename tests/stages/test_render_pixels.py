"""The data-consistent render: its residual closes the model, and maps of neighbours cross-fade."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi_pgdips.layers import pyramid
from wsi_pgdips.layers.schema import SCALE_FACTOR
from wsi_pgdips.optics.interpolate import crossfade
from wsi_pgdips.optics.physics import compose_od, unit_rows
from wsi_pgdips.records import FloatArray
from wsi_pgdips.stages.pixels import cross_faded, encode_pixels, render_pixels, residual_rms

SIDE, HALO = 16, 4
FADE = crossfade(SIDE, HALO)
FULL = SIDE + 2 * HALO


pytestmark = pytest.mark.usefixtures("one_thread")


def rendered(*arrays: FloatArray | None, device: str = "cpu") -> tuple[FloatArray, FloatArray]:
    """q and residual by ``render_pixels``."""
    given = [None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    q, residual = render_pixels(*(None if a is None else a.to(device) for a in given))
    return q.cpu().numpy(), residual.cpu().numpy()


def rows_of(n: int) -> FloatArray:
    return unit_rows(np.random.default_rng(n).uniform(0.1, 1, (n, 3)))


def maps_of(world: FloatArray) -> dict[tuple[int, int], np.ndarray]:
    """The nine tiles' maps cut from one world of (N, 3 side + 2 halo, 3 side + 2 halo)."""
    return {
        (dy, dx): world[
            :,
            (dy + 1) * SIDE : (dy + 1) * SIDE + FULL,
            (dx + 1) * SIDE : (dx + 1) * SIDE + FULL,
        ].astype(np.float16)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("with_prior", [False, True])
def test_model_and_residual_give_the_od_back(n: int, varying: bool, with_prior: bool) -> None:
    rng = np.random.default_rng(0)
    od = rng.uniform(0, 2, (3, 9, 11)).astype(np.float32)
    s, b = rows_of(n), np.array([0.05, 0.02, 0.08], np.float32)
    if varying:
        turned = s[:, :, None, None] + rng.normal(0, 0.02, (n, 3, 9, 11))
        s = np.moveaxis(unit_rows(np.moveaxis(turned, 1, -1)), -1, 1)
        b = np.asarray(b[:, None, None] + rng.normal(0, 0.01, (3, 9, 11)), np.float32)
    weight = np.full(n, 0.2, np.float32) if with_prior else None
    prior = rng.uniform(0, 1, (n, 9, 11)).astype(np.float32) if with_prior else None
    found, residual = rendered(od, s, b, weight, prior)
    assert found.shape == (n, 9, 11)
    assert found.dtype == residual.dtype == np.float32
    assert found.min() >= 0
    again = compose_od(found, s, b) + residual
    np.testing.assert_allclose(again, od, atol=2e-6)


def test_an_exact_mixture_leaves_no_residual() -> None:
    q = np.random.default_rng(1).gamma(1, 0.4, (2, 8, 8)).astype(np.float32)
    b = np.array([0.05, 0.02, 0.08], np.float32)
    found, residual = rendered(compose_od(q, rows_of(2), b), rows_of(2), b)
    np.testing.assert_allclose(found, q, atol=1e-4)
    assert np.abs(residual).max() < 1e-4


def test_pixels_are_rendered_each_on_its_own() -> None:
    rng = np.random.default_rng(2)
    od, b = rng.uniform(0, 2, (3, 8, 8)).astype(np.float32), np.zeros(3, np.float32)
    (whole, _), (part, _) = (rendered(a, rows_of(3), b) for a in (od, od[:, 2:5, 3:]))
    np.testing.assert_allclose(part, whole[:, 2:5, 3:], atol=1e-6)


def test_codes_are_those_of_the_pyramid() -> None:
    q = np.random.default_rng(3).uniform(0, 70, (2, 9, 7)).astype(np.float32)
    q[0, 0] = 0  # measured, and so not the code of what is not
    expected = pyramid.encode(q, np.ones((9, 7), bool))
    np.testing.assert_array_equal(encode_pixels(torch.from_numpy(q)), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_has_no_code(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        encode_pixels(torch.tensor([[[0.5, bad, 0.2]]]))


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_the_residual_is_the_root_of_the_mean_over_pixels_and_channels(levels: int) -> None:
    residual = np.random.default_rng(3).normal(0, 0.3, (3, 21, 13)).astype(np.float32)
    got = residual_rms(torch.from_numpy(residual), levels)
    side = 2**levels
    assert got.shape == (-(-21 // side), -(-13 // side))
    for i, j in np.ndindex(got.shape):
        own = residual[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
        want = np.sqrt((own.astype(np.float64) ** 2).mean()) / SCALE_FACTOR
        assert abs(int(got[i, j]) - max(want, 1)) <= 0.51


def test_a_lone_map_stays_as_it_is() -> None:
    q = np.random.default_rng(3).random((2, FULL, FULL)).astype(np.float16)
    out = cross_faded({(0, 0): q}, FADE, SIDE)
    cut = slice(HALO, FULL - HALO)
    assert out.shape == (2, SIDE, SIDE)
    np.testing.assert_allclose(out, q[:, cut, cut], atol=1e-6)


@pytest.mark.parametrize(
    "missing",
    [
        (),
        ((-1, 0),),
        ((0, 1), (1, 1)),
        ((-1, -1), (-1, 0), (-1, 1), (0, -1), (1, -1)),
    ],
)
def test_neighbours_that_agree_change_nothing(missing: tuple[tuple[int, int], ...]) -> None:
    """Weights are normalised, also where neighbours are missing."""
    side = 3 * SIDE + 2 * HALO
    world = np.random.default_rng(4).random((2, side, side)).astype(np.float32)
    maps = {k: v for k, v in maps_of(world).items() if k not in missing}
    out = cross_faded(maps, FADE, SIDE)
    first = SIDE + HALO
    cut = slice(first, first + SIDE)
    np.testing.assert_allclose(out, world[:, cut, cut].astype(np.float16), atol=1e-6)


def test_neighbours_that_differ_meet_halfway_at_the_border() -> None:
    """What a tile makes of its right edge, its neighbour makes of its left: no step."""
    here = np.zeros((1, FULL, FULL), np.float16)
    there = np.ones((1, FULL, FULL), np.float16)
    left = cross_faded({(0, 0): here, (0, 1): there}, FADE, SIDE)[0]
    right = cross_faded({(0, 0): there, (0, -1): here}, FADE, SIDE)[0]
    line = np.concatenate([left, right], 1)
    assert (np.ptp(line, axis=0) < 1e-6).all()
    line = line[0]
    expected = (np.arange(2 * HALO) + 0.5) / (2 * HALO)
    np.testing.assert_allclose(line[SIDE - HALO : SIDE + HALO], expected, atol=1e-6)
    assert not line[: SIDE - HALO].any()
    np.testing.assert_allclose(line[SIDE + HALO :], 1)


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    od = np.random.default_rng(6).uniform(0, 2, (3, 32, 32)).astype(np.float32)
    b = np.zeros(3, np.float32)
    (here, _), (there, _) = (rendered(od, rows_of(3), b, device=d) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, atol=1e-3)
