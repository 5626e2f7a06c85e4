"""Losses against direct numpy computation; tiles of a batch are independent problems."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from wsi_pgdips.optics.physics import compose_od, unit_rows
from wsi_pgdips.solver.optimise import exclusion, mixture, reconstruction

Floats = npt.NDArray[np.float64]


def exclusion_by_hand(maps: Floats) -> float:
    """One tile, (N, H, W), as the docstring says it, in plain numpy."""
    terms = []
    for scale in range(3):
        if scale:
            n, h, w = maps.shape
            maps = maps[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2)
            maps = maps.mean((2, 4))
        for axis in (1, 2):
            g = np.diff(maps, axis=axis)
            pairs = []
            for i in range(len(maps)):
                for j in range(i + 1, len(maps)):
                    ratio = 2 * np.abs(g[i]).mean() / (np.abs(g[j]).mean() + 1e-6)
                    ratio = min(max(ratio, 1e-3), 1e3)
                    shared = np.mean(np.tanh(g[i]) ** 2 * np.tanh(ratio * g[j]) ** 2)
                    pairs.append((shared + 1e-12) ** 0.25)
            terms.append(np.mean(pairs))
    return float(np.mean(terms))


def edges_at(rows: tuple[int, ...], cols: tuple[int, ...] = (), side: int = 32) -> torch.Tensor:
    """(side, side) map that steps by one at the given rows and columns."""
    y, x = np.mgrid[:side, :side]
    return torch.from_numpy(
        sum((y >= r) * 1.0 for r in rows) + sum((x >= c) * 1.0 for c in cols) + 0.0 * y
    ).float()


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("shape", [(16, 16), (19, 24)])
def test_exclusion_equals_numpy(n: int, shape: tuple[int, int]) -> None:
    maps = np.random.default_rng(n).random((2, n, *shape))
    got = exclusion(torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(got, [exclusion_by_hand(m) for m in maps], rtol=1e-6)


def test_exclusion_of_one_stain_is_zero() -> None:
    assert exclusion(torch.rand(3, 1, 16, 16)).tolist() == [0.0, 0.0, 0.0]


def test_exclusion_tells_shared_edges_from_disjoint_ones() -> None:
    # a step on a multiple of four is a step at each of the three scales
    apart = torch.stack([edges_at((8,)), edges_at((24,))])[None]
    crossing = torch.stack([edges_at((8,)), edges_at((), (8,))])[None]
    shared = torch.stack([edges_at((8,)), edges_at((8,))])[None]
    floor = 1.01e-3  # fourth root of the floor of 1e-12
    assert exclusion(apart).item() < floor
    assert exclusion(crossing).item() < floor
    assert exclusion(shared).item() > 0.1


def test_exclusion_grows_with_the_share_of_common_edges() -> None:
    first = edges_at((8, 16, 24))
    values = [
        exclusion(torch.stack([first, edges_at(rows)])[None]).item()
        for rows in ((4, 12, 20), (8, 12, 20), (8, 16, 20), (8, 16, 24))
    ]
    assert values == sorted(values)
    assert values[0] < values[1]


def test_exclusion_cannot_be_won_by_shrinking_the_second_map() -> None:
    maps = torch.rand(1, 2, 32, 32)
    faint = maps * torch.tensor([1.0, 0.1])[None, :, None, None]
    assert exclusion(faint).item() == pytest.approx(exclusion(maps).item(), rel=0.01)


@pytest.mark.parametrize("n", [2, 3])
def test_a_batch_equals_its_tiles_alone(n: int) -> None:
    g = torch.Generator().manual_seed(0)
    maps, od = torch.rand(2, n, 32, 32, generator=g), torch.rand(2, 3, 32, 32, generator=g)
    model = torch.rand(2, 3, 32, 32, generator=g)
    valid = (torch.rand(2, 1, 32, 32, generator=g) > 0.3).float()
    both = torch.stack([exclusion(maps), reconstruction(od, model, valid)])
    for i in (0, 1):
        one = slice(i, i + 1)
        torch.testing.assert_close(both[0, one], exclusion(maps[one]))
        alone = reconstruction(od[one], model[one], valid[one])
        torch.testing.assert_close(both[1, one], alone)


def test_no_gradient_flows_between_tiles() -> None:
    maps = torch.rand(2, 2, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(exclusion(maps)[0], maps)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_of_constant_maps_are_finite(value: float) -> None:
    maps = torch.full((1, 3, 32, 32), value, requires_grad=True)
    loss = exclusion(maps).sum()
    (gradient,) = torch.autograd.grad(loss, maps)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_one_constant_map_beside_a_busy_one_has_finite_gradients() -> None:
    maps = torch.stack([torch.rand(32, 32), torch.full((32, 32), 0.3)])[None].requires_grad_()
    for order in ([0, 1], [1, 0]):
        (gradient,) = torch.autograd.grad(exclusion(maps[:, order]).sum(), maps)
        assert torch.isfinite(gradient).all()


def test_reconstruction_is_the_mean_squared_error_of_valid_pixels() -> None:
    rng = np.random.default_rng(1)
    od, model = rng.random((2, 2, 3, 8, 9))
    valid = rng.random((2, 1, 8, 9)) > 0.5
    expected = [((od[t] - model[t]) ** 2)[:, valid[t, 0]].mean() for t in (0, 1)]
    got = reconstruction(*(torch.from_numpy(a) for a in (od, model, valid * 1.0)))
    np.testing.assert_allclose(got.numpy(), expected)


def test_reconstruction_without_a_valid_pixel_is_zero() -> None:
    od = torch.rand(1, 3, 8, 8)
    assert reconstruction(od, od + 1, torch.zeros(1, 1, 8, 8)).item() == 0


def test_mixture_equals_the_forward_model() -> None:
    rng = np.random.default_rng(2)
    q = rng.random((2, 3, 5, 6)).astype(np.float32)
    rows = unit_rows(rng.random((2, 3, 3)))
    b = rng.random((2, 3)).astype(np.float32)
    got = mixture(*(torch.from_numpy(a) for a in (q, rows, b))).numpy()
    for t in (0, 1):
        np.testing.assert_allclose(got[t], compose_od(q[t], rows[t], b[t]), atol=1e-6)
