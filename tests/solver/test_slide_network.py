"""The slide's network: its coordinates, how far it looks, and that it learns to undo noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.synthetic import GLASS, HDAB, HE, THREE, concentrations, prior_of, tile_of
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.physics import compose_od
from wsi_pgdips.records import Acquisition, FloatArray, SlidePrior
from wsi_pgdips.solver import slide_network, training
from wsi_pgdips.solver.degrade import degrade
from wsi_pgdips.solver.fit import fit_tiles
from wsi_pgdips.solver.presets import HALO, resolve
from wsi_pgdips.solver.slide_network import in_focus
from wsi_pgdips.solver.tile import TileInput

CPU = torch.device("cpu")
NOISY = Acquisition(6.0, 0, "")
BALANCED = resolve(ScientificSettings(preset="balanced"))
ZERO = torch.zeros(3)


def some_weights(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that change something."""
    generator = torch.Generator().manual_seed(seed)
    weights = slide_network.init_weights(n, generator)
    weights["head.weight"] = torch.randn(weights["head.weight"].shape, generator=generator) * 0.02
    return weights


@pytest.mark.parametrize("rows", [HE[:1], HDAB, THREE], ids=["one", "two", "three"])
@pytest.mark.parametrize("varying", [False, True])
def test_coordinates_of_a_mixture_are_its_amounts(rows: FloatArray, varying: bool) -> None:
    n = len(rows)
    q = concentrations(n, 16, 0)
    od = torch.from_numpy(compose_od(q, rows, np.zeros(3, np.float32)))
    s = torch.from_numpy(rows)
    if varying:
        s = s[:, :, None, None].expand(n, 3, 16, 16)
    u = slide_network.coordinates(od, s)
    np.testing.assert_allclose(u[:n].numpy(), q, atol=2e-5)
    np.testing.assert_allclose(u[n:].numpy(), 0, atol=2e-5)


@pytest.mark.parametrize("rows", [HE[:1], HDAB, THREE], ids=["one", "two", "three"])
def test_fresh_weights_leave_the_closed_form(rows: FloatArray) -> None:
    weights = slide_network.init_weights(len(rows), torch.Generator().manual_seed(0))
    od = torch.rand(2, 3, 32, 40)
    q, closed = slide_network.estimate(weights, od, torch.from_numpy(rows), ZERO, 1.0)
    assert q.shape == (2, len(rows), 32, 40)
    assert torch.equal(q, closed)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("rows", [HE[:1], HDAB, THREE], ids=["one", "two", "three"])
def test_beyond_what_training_saw_the_network_changes_nothing_more(rows: FloatArray) -> None:
    n, matrix = len(rows), torch.from_numpy(rows)
    seen, change = torch.rand(1, 3, 32, 32), torch.rand(1, n, 32, 32) * 0.02 - 0.01
    weights = some_weights(n)
    free, closed = slide_network.estimate(weights, 40 * seen, matrix, ZERO, 1.0)
    assert (free - closed).abs().max() > 0.1
    low, high = slide_network.extent(seen, matrix, change, 1.0)
    bounded = {**weights, slide_network.LOW: low, slide_network.HIGH: high}
    q, closed = slide_network.estimate(bounded, 40 * seen, matrix, ZERO, 1.0)
    assert (q - closed).abs().max() <= 0.0101
    wide = {**weights, slide_network.LOW: low - 100, slide_network.HIGH: high + 100}
    same, _ = slide_network.estimate(wide, 40 * seen, matrix, ZERO, 1.0)
    assert torch.equal(same, free)


def test_a_constant_field_equals_a_constant() -> None:
    od, rows = torch.rand(3, 32, 32), torch.from_numpy(HDAB)
    glass = torch.from_numpy(GLASS)
    weights = some_weights(2)
    one = slide_network.estimate(weights, od, rows, glass, 0.8)
    field = slide_network.estimate(
        weights,
        od,
        rows[:, :, None, None].expand(2, 3, 32, 32),
        glass[:, None, None].expand(3, 32, 32),
        0.8,
    )
    for a, b in zip(one, field, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("full_precision")
def test_a_tile_with_its_halo_equals_the_whole() -> None:
    """No seam can come from the network: it looks no further than the halo."""
    assert slide_network.REACH <= HALO
    weights, rows = some_weights(2), torch.from_numpy(HDAB)
    od = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(1))
    whole, _ = slide_network.estimate(weights, od, rows, ZERO, 1.0)
    y, x, side, reach = 96, 64, 96, slide_network.REACH
    part = od[:, y - reach : y + side + reach, x - reach : x + side + reach]
    tile, _ = slide_network.estimate(weights, part.contiguous(), rows, ZERO, 1.0)
    own = tile[:, reach:-reach, reach:-reach]
    torch.testing.assert_close(own, whole[:, y : y + side, x : x + side], atol=1e-5, rtol=1e-4)


def degraded(seed: int, side: int = 192) -> tuple[FloatArray, TileInput]:
    q = concentrations(2, side, seed, sigma=5.0)
    od = degrade(compose_od(q, HDAB, GLASS), NOISY, np.random.default_rng(seed))
    return q, TileInput(od, np.ones((side, side), bool), GLASS, 0, seed)


def train(steps: int, threads: int = 1, **changes: float) -> SlidePrior:
    tiles = [degraded(s)[1] for s in range(3)]
    with ThreadPoolExecutor(threads) as executor:
        trained = training.train_slide_network(
            tiles,
            prior(),
            replace(BALANCED, **changes),  # type: ignore[arg-type]
            steps=steps,
            seed=3,
            device=CPU,
            executor=executor,
        )
    assert trained is not None
    return trained


def prior() -> SlidePrior:
    return replace(prior_of(HDAB), spectral_correction=np.full(2, 1.0, np.float32))


def test_it_learns_to_undo_noise_and_jpeg_on_a_tile_it_has_not_seen() -> None:
    trained = train(120)
    assert trained.acquisition.quality == 0
    assert trained.acquisition.noise == pytest.approx(NOISY.noise, rel=0.2)
    truth, tile = degraded(9)
    weights = {k: torch.from_numpy(v) for k, v in trained.network.items()}
    q, closed = slide_network.estimate(
        weights, torch.from_numpy(tile.od), torch.from_numpy(HDAB), torch.from_numpy(GLASS), 1.0
    )
    errors = [float(((m.numpy() - truth) ** 2).mean() ** 0.5) for m in (q, closed)]
    assert errors[0] < 0.85 * errors[1]
    assert (trained.prior_weight > 1).all()
    assert trained.loss < 0.05**2


def test_fill_in_a_window_is_no_truth() -> None:
    tile = tile_of(concentrations(2, 64, 0), HE)
    od, tissue = tile.od.copy(), tile.tissue.copy()
    od[:, :16], tissue[:16] = 2.4, False
    black = replace(tile, od=od, tissue=tissue)
    maps = training._closed(black, HE)
    assert not maps[:, :16].any()
    np.testing.assert_array_equal(maps[:, 16:], training._closed(tile, HE)[:, 16:])


def test_the_number_of_threads_does_not_change_a_byte() -> None:
    one, three = train(4, threads=1), train(4, threads=3)
    assert one.loss == three.loss
    assert one.prior_weight.tobytes() == three.prior_weight.tobytes()
    for name, value in one.network.items():
        assert value.tobytes() == three.network[name].tobytes(), name


def test_the_published_loss_can_be_added() -> None:
    plain, added = train(2), train(2, alpha=1.0, beta=0.01)
    assert any((plain.network[k] != added.network[k]).any() for k in plain.network)
    assert all(np.isfinite(v).all() for v in added.network.values())


def test_a_network_that_takes_away_more_than_noise_is_trusted_less() -> None:
    """Lambda falls where real pixels lose more to the network than simulated ones do."""
    tiles = [degraded(s)[1] for s in range(2)]
    weights = some_weights(2, seed=2)
    weights["head.bias"] = torch.full_like(weights["head.bias"], 0.3)  # a bias is no noise
    fresh = slide_network.init_weights(2, torch.Generator().manual_seed(0))
    with ThreadPoolExecutor(2) as executor:
        biased, honest = (
            training.estimate_prior_weight(tiles, w, prior(), NOISY, 1.0, CPU, executor)
            for w in (weights, fresh)
        )
    assert np.isfinite(biased).all()
    assert (biased >= 0).all()
    assert (honest > 0).all()


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weights, rows = some_weights(2), torch.from_numpy(HDAB)
    od = torch.rand(2, 3, 64, 64)
    here, _ = slide_network.estimate(weights, od, rows, ZERO, 1.0)
    there, _ = slide_network.estimate(
        {k: v.cuda() for k, v in weights.items()}, od.cuda(), rows.cuda(), ZERO.cuda(), 1.0
    )
    torch.testing.assert_close(there.cpu(), here, atol=2e-2, rtol=2e-2)


SOFT = Acquisition(1.5, 0, "", defocus=1.7)
TILE = tile_of(concentrations(2, 96, 0, sigma=4.0), HDAB)


def network(head: float) -> dict[str, FloatArray]:
    weights = slide_network.init_weights(2, torch.Generator().manual_seed(0))
    noise = torch.randn(weights["head.weight"].shape, generator=torch.Generator().manual_seed(1))
    weights["head.weight"] = noise * head
    return {k: v.numpy() for k, v in weights.items()}


def test_a_slide_in_focus_keeps_its_pixels() -> None:
    prior = prior_of(HDAB, network(0.05))
    assert in_focus(TILE, prior, CPU) is TILE
    assert in_focus(TILE, replace(prior, acquisition=replace(SOFT, defocus=0.0)), CPU) is TILE
    assert in_focus(TILE, replace(prior, network={}, acquisition=SOFT), CPU) is TILE
    nothing = replace(prior, network=network(0.0), acquisition=SOFT)
    np.testing.assert_allclose(in_focus(TILE, nothing, CPU).od, TILE.od, atol=1e-5)


def test_what_comes_back_lies_in_the_plane_of_the_stains() -> None:
    prior = replace(prior_of(HDAB, network(0.05)), acquisition=SOFT)
    change = in_focus(TILE, prior, CPU).od - TILE.od
    assert np.abs(change).max() > 0.01
    across = np.tensordot(Plane.of(HDAB).normal, change, 1)
    assert np.abs(across).max() < 1e-5


def test_edges_are_taken_of_the_pixels_in_focus() -> None:
    prior = replace(prior_of(HDAB, network(0.05)), acquisition=SOFT)
    (found,) = fit_tiles([TILE], prior, BALANCED, CPU)
    (wanted,) = fit_tiles(
        [in_focus(TILE, prior, CPU)], replace(prior, acquisition=None), BALANCED, CPU
    )
    (soft,) = fit_tiles([TILE], replace(prior, acquisition=None), BALANCED, CPU)
    np.testing.assert_array_equal(found.statistics["edges"], wanted.statistics["edges"])
    assert (found.statistics["edges"] != soft.statistics["edges"]).any()
