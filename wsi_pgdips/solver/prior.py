"""The calibration of a slide's prior from sampled tiles (decisions 6, 7, 22)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import torch

from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray, SlidePrior
from wsi_pgdips.solver.acquisition import UNKNOWN_NOISE_OD, tissue_noise
from wsi_pgdips.solver.presets import NETWORK_ONLY, Preset
from wsi_pgdips.solver.rays import MIN_CELLS, POOL, Rays, across_noise, estimate_rays, pool_od
from wsi_pgdips.solver.slide_network import MAX_STAINS, in_focus, needs_focus
from wsi_pgdips.solver.statistics import PERCENTILE_M, upper_quantile
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.solver.training import OnStep, train_slide_network
from wsi_pgdips.solver.trust import MOST_FOREIGN, trusted, without_foreign

MIN_PRESENCE_OD = 0.05
NETWORK_DIVERGED = "network_diverged"  # flag: the slide is rendered by the closed form
SQUARE = 32  # pooled cells: side of the squares whose edges are compared
OUT_OF_FOCUS = "out_of_focus"  # flag: the network restores a part of the focus


def calibrate_prior(
    tiles: Sequence[TileInput],
    library: FloatArray,
    background: FloatArray,
    preset: Preset,
    *,
    steps: int,
    seed: int,
    prior_weight: float | None,
    device: torch.device,
    executor: Executor,
    flags: tuple[str, ...] = (),
    on_step: OnStep = lambda: None,
) -> SlidePrior:
    """Calibrate the slide's prior on sampled tissue tiles.

    Args:
        tiles: sampled tiles. library: (N, 3). background: (3,) B0 of the slide.
        preset: of the solver. steps: training steps of the slide's network.
        seed: of the slide. prior_weight: Lambda for every stain, or None to estimate it.
        device: for the training. executor: threads that share the work; their number does not
            change the result.
        flags: flags that the slide already has. on_step: called after each training step.

    Returns:
        The prior. Its network is empty for presets without one, and for more stains than channels.
        If the tiles have no tissue, it has the library's vectors and no network.
    """
    n = len(library)
    fixed = None if prior_weight is None else np.full(n, prior_weight, np.float32)
    if not any(t.own_tissue.any() for t in tiles):
        return _library_prior(library, background, flags)
    rays, pooled_noise = _own_rays(tiles, library)
    s0 = rays.stain_matrix
    cleaned = [without_foreign(t, s0, pooled_noise) for t in tiles]
    foreign = 1 - _area(cleaned) / _area(tiles)
    if foreign <= MOST_FOREIGN:
        tiles = cleaned
    q = np.concatenate([_pixels(t, s0) for t in tiles], 1)
    upper = np.array([upper_quantile(row, PERCENTILE_M / 100) for row in q], np.float32)
    m0 = np.maximum(upper, np.float32(MIN_PRESENCE_OD))
    noise = float(np.median([tissue_noise(t.corrected, t.own_tissue) for t in tiles]))
    gain = np.sqrt(np.diag(np.linalg.pinv(s0.astype(np.float64) @ s0.T.astype(np.float64))))
    prior = SlidePrior(
        stain_matrix=s0,
        spectral_correction=m0,
        background=background,
        presence=np.maximum(4 * noise * gain, MIN_PRESENCE_OD).astype(np.float32),
        noise_od=noise,
        pooled_noise_od=pooled_noise,
        prior_weight=np.zeros(n, np.float32),
        measured=np.array(rays.measured),
        flags=(*flags, *_unmeasured(rays)),
        foreign=foreign,
    )
    if preset.noise_input:  # as published, the maps of the tiles' own networks are the result
        faithful = np.full(n, NETWORK_ONLY, np.float32)
        return replace(prior, prior_weight=faithful if fixed is None else fixed)
    if not trains(preset, n):
        return prior
    trained = train_slide_network(
        tiles,
        prior,
        preset,
        steps=steps,
        seed=seed,
        device=device,
        executor=executor,
        on_step=on_step,
    )
    if trained is None:
        return replace(prior, flags=(*prior.flags, NETWORK_DIVERGED))
    prior = trained if fixed is None else replace(trained, prior_weight=fixed)
    if not needs_focus(prior):
        return prior
    # M does not change, because it is the unit of the network
    sharp, pooled_noise = _own_rays([in_focus(t, prior, device) for t in tiles], library)
    return replace(
        prior,
        stain_matrix=sharp.stain_matrix,
        pooled_noise_od=pooled_noise,
        measured=np.array(sharp.measured),
        flags=(*flags, *_unmeasured(sharp), OUT_OF_FOCUS),
    )


def trains(preset: Preset, n: int) -> bool:
    """Return whether a slide of n stains gets its own network."""
    return preset.slide_network and n <= MAX_STAINS


def _own_rays(tiles: Sequence[TileInput], library: FloatArray) -> tuple[Rays, float]:
    """Estimate the slide's own vectors from the pixels that have a say, and the noise across them."""
    pooled, squares = [], []
    for i, tile in enumerate(tiles):
        y, _, (row, column) = pool_od(tile.stain_od, tile.own_tissue)
        across = -(-tile.od.shape[2] // (POOL * SQUARE))
        pooled.append(y)
        squares.append((i * across + row // SQUARE) * across + column // SQUARE)
    kept = trusted(np.concatenate(pooled), np.concatenate(squares), library)
    parts = np.split(kept, np.cumsum([len(y) for y in pooled])[:-1])
    pooled = [y[own] for y, own in zip(pooled, parts, strict=True)]
    rays = estimate_rays(np.concatenate(pooled), library, [len(y) for y in pooled])
    return rays, _pooled_noise(pooled, rays.stain_matrix)


def _area(tiles: Sequence[TileInput]) -> int:
    """The number of tissue pixels."""
    return sum(int(np.count_nonzero(t.own_tissue)) for t in tiles)


def _unmeasured(rays: Rays) -> tuple[str, ...]:
    return tuple(f"stain_{i}_from_library" for i, ok in enumerate(rays.measured) if not ok)


def _library_prior(
    library: FloatArray, background: FloatArray, flags: tuple[str, ...]
) -> SlidePrior:
    """The prior of the library, for a slide without a tile of tissue."""
    n = len(library)
    return SlidePrior(
        stain_matrix=np.asarray(library, np.float32),
        spectral_correction=np.ones(n, np.float32),
        background=background,
        presence=np.full(n, MIN_PRESENCE_OD, np.float32),
        noise_od=UNKNOWN_NOISE_OD,
        pooled_noise_od=0.0,
        prior_weight=np.zeros(n, np.float32),
        measured=np.zeros(n, bool),
        flags=(*flags, *(f"stain_{i}_from_library" for i in range(n))),
    )


def _pooled_noise(pooled: Sequence[FloatArray], stain_matrix: FloatArray) -> float:
    """The median noise of tiles; a median over tiles, so that drift does not count as noise."""
    if len(stain_matrix) != 2:
        return 0.0
    plane = Plane.of(stain_matrix)
    values = [across_noise(y, plane) for y in pooled if len(y) >= MIN_CELLS]
    return float(np.median(values)) if values else 0.0


def _pixels(tile: TileInput, stain_matrix: FloatArray) -> FloatArray:
    """Unmix the tile's own tissue pixels under S0: (N, K) q."""
    y = tile.corrected[:, tile.own_tissue]
    q = unmix(torch.from_numpy(y), torch.from_numpy(stain_matrix), torch.zeros(3))
    return np.asarray(q.numpy())
