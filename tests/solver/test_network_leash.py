"""What the slide's network cannot do, whatever its weights and whatever the picture."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from support.synthetic import GLASS, HDAB, THREE, concentrations, prior_of
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.physics import compose_od
from wsi_pgdips.records import Acquisition, SlidePrior
from wsi_pgdips.solver import slide_network, training
from wsi_pgdips.solver.degrade import degrade
from wsi_pgdips.solver.presets import resolve
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.stages.lattice import WINDOW, lattice_index

CPU = torch.device("cpu")
ZERO = torch.zeros(3)
SIDE = 128
BALANCED = resolve(ScientificSettings(preset="balanced"))
FLAT, MOST = 0.004, 0.05  # OD that a window without contrast, and any window, may change by
ROWS = {2: HDAB, 3: THREE}


def large_weights(n: int, seed: int) -> dict[str, Tensor]:
    """Weights and biases of a training that went wrong."""
    generator = torch.Generator().manual_seed(seed)
    weights = slide_network.init_weights(n, generator)
    return {k: torch.randn(v.shape, generator=generator) for k, v in weights.items()}


def leash(n: int) -> dict[str, Tensor]:
    """A bound of the input and a limit of the change, as a training would have found them."""
    table = torch.tensor([[0.0, 0.3], [FLAT, MOST]])
    return {
        "bound": torch.tensor([[-0.1] * 3, [1.5] * 3]),
        "limit": table[:, None].expand(2, n, 2).contiguous(),
    }


def pictures(n: int) -> dict[str, Tensor]:
    """Glass-corrected OD of tissue, noise, glass, black bars and a jump, (3, SIDE, SIDE) each."""
    generator = torch.Generator().manual_seed(5)
    q = concentrations(n, SIDE, 1)
    tissue = torch.from_numpy(compose_od(q, ROWS[n], np.zeros(3, np.float32)))
    bars = torch.zeros(3, SIDE, SIDE)
    bars[:, :, ::9] = bars[:, 40:70] = 2.4
    return {
        "tissue": tissue,
        "noise": torch.rand(3, SIDE, SIDE, generator=generator) * 2,
        "glass": torch.randn(3, SIDE, SIDE, generator=generator) * 0.003,
        "bars": bars,
        "far": tissue * 50 - 3,
    }


def changes(weights: dict[str, Tensor], od: Tensor) -> Tensor:
    """The change of the closed form, (N, H, W)."""
    rows = torch.from_numpy(ROWS[len(weights["head.bias"]) // 4])
    q, closed = slide_network.estimate(weights, od, rows, ZERO, 0.8)
    return q - closed


def phase_range(change: Tensor, period: int) -> float:
    """The largest less the smallest mean of the pixels of each phase, of the worst stain."""
    means = [change[:, i::period, j::period].mean((1, 2)) for i, j in np.ndindex(period, period)]
    return float((torch.stack(means).amax(0) - torch.stack(means).amin(0)).max())


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_flat_picture_stays_flat(n: int, seed: int) -> None:
    """No weights can write dots where the picture has none: the upsampling knows no phase."""
    weights = large_weights(n, seed)
    for level in (0.0, 0.4, 3.0):
        change = changes(weights, torch.full((3, SIDE, SIDE), level))
        size = float(change.abs().max())
        assert size > 0
        assert float(change.amax((1, 2)).sub(change.amin((1, 2))).max()) < 1e-4 * size


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_every_phase_of_the_pixels_is_treated_alike(n: int, seed: int) -> None:
    od = torch.rand(3, 384, 384, generator=torch.Generator().manual_seed(seed))
    change = changes(large_weights(n, seed), od)
    for period in (2, 4):
        # a mean of so many pixels is off by chance by about a hundredth of their spread
        assert phase_range(change, period) < 0.05 * float(change.std())


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_large_weights_write_no_more_than_noise_explains(n: int, seed: int) -> None:
    weights = {**large_weights(n, seed), **leash(n)}
    for name, od in pictures(n).items():
        change = changes(weights, od)
        assert torch.isfinite(change).all(), name
        local = torch.nn.functional.avg_pool2d(change.abs(), WINDOW)
        assert local.max() <= 1.5 * MOST, name
        closed = torch.full_like(change, 5.0)  # a flat map: whatever is written shows
        assert lattice_index(closed + change, closed).max() <= 4 * MOST, name
        if name == "glass":
            assert local.max() <= 2 * FLAT


@pytest.mark.parametrize("size", [0.9, 2.1])
def test_a_change_of_twice_the_limit_is_none(size: float) -> None:
    """A change within the limit is kept whole; from twice of it on, the closed form stands."""
    weights = {**slide_network.init_weights(2, torch.Generator().manual_seed(0)), **leash(2)}
    weights["head.bias"] = torch.full((8,), size * FLAT / 0.8)
    change = changes(weights, torch.full((3, 64, 64), 0.3))
    torch.testing.assert_close(
        change, torch.full_like(change, size * FLAT * (size < 1)), atol=1e-4, rtol=0
    )


def test_pixels_fall_back_each_for_themselves() -> None:
    """Half a picture is like in training, half is not: the network keeps the first half."""
    limit = leash(2)["limit"]
    change = torch.full((1, 2, 64, 64), FLAT)
    change[..., 32:] = 1.0
    inside = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    kept = slide_network.kept_share(change, torch.zeros(1, 2, 64, 64), inside, limit)
    assert (kept[..., :24] == 1).all()
    assert (kept[..., 40:] == 0).all()
    assert (kept[..., 1:] <= kept[..., :-1] + 1e-6).all()


@pytest.mark.usefixtures("full_precision")
def test_pixels_beyond_the_bound_are_taken_for_the_bound() -> None:
    weights = {k: v * 0.1 for k, v in large_weights(2, 1).items()}
    weights["bound"] = leash(2)["bound"]
    rows = torch.from_numpy(HDAB)
    highest = float(weights["bound"][1, 0])

    def change(amount: float) -> Tensor:
        q = torch.from_numpy(concentrations(2, 64, 3))
        q[0, :, 32:] = amount
        return changes(weights, torch.einsum("nhw,nc->chw", q, rows))

    inside, at, beyond = (change(highest + d) for d in (-0.5, 0.0, 9.0))
    size = float(at.abs().max())
    torch.testing.assert_close(beyond, at, atol=1e-3 * size, rtol=1e-3)
    assert (inside - at).abs().max() > 0.05 * size


def smeared(seed: int, side: int = 160) -> TileInput:
    """A tile with noise, a JPEG, and a stroke of a pen that no training crop holds."""
    od = compose_od(concentrations(2, side, seed, sigma=5.0), HDAB, GLASS)
    if seed > 2:
        od[:, 60:100] = np.array([1.9, 1.7, 0.9], np.float32)[:, None, None]
    how = Acquisition(2.0, 80, "4:2:0")
    pixels = degrade(od, how, np.random.default_rng(seed))
    return TileInput(pixels, np.ones((side, side), bool), GLASS, 0, seed)


def trained(seed: int) -> SlidePrior:
    start = replace(prior_of(HDAB), spectral_correction=np.full(2, 1.0, np.float32))
    tiles = [smeared(s) for s in range(3)]
    with ThreadPoolExecutor(1) as executor:
        found = training.train_slide_network(
            tiles, start, BALANCED, steps=60, seed=seed, device=CPU, executor=executor
        )
    assert found is not None
    return found


def test_seeds_agree_where_a_pen_crosses_the_tissue() -> None:
    """Whatever the luck of a training, its maps differ little, and never by a lattice."""
    tile, maps = smeared(3), []
    rows, glass = torch.from_numpy(HDAB), torch.from_numpy(GLASS)
    for seed in range(3):
        weights = {k: torch.from_numpy(v) for k, v in trained(seed).network.items()}
        assert {"bound", "limit"} < set(weights)
        q, closed = slide_network.estimate(weights, torch.from_numpy(tile.od), rows, glass, 1.0)
        assert lattice_index(q, closed).max() < 0.03
        maps.append(q)
    for one in maps[1:]:
        assert float((one - maps[0]).square().mean().sqrt()) < 0.018
