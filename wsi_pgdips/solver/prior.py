"""The calibration of a slide's prior from sampled tiles (decisions 6, 7, 22)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.foreign import is_grey
from wsi_pgdips.optics.physics import angle_deg, turned_within
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray, SlidePrior, StainSet, key_of
from wsi_pgdips.solver.acquisition import UNKNOWN_NOISE_OD, tissue_noise
from wsi_pgdips.solver.presets import NETWORK_ONLY, Preset
from wsi_pgdips.solver.rays import MIN_CELLS, POOL, Rays, across_noise, estimate_rays, pool_od
from wsi_pgdips.solver.slide_network import MAX_STAINS, in_focus, needs_focus
from wsi_pgdips.solver.statistics import PERCENTILE_M, upper_quantile
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.solver.training import OnStep, train_slide_network
from wsi_pgdips.solver.trust import MOST_FOREIGN, PooledTile, pooled_tile, trusted, without_foreign

MIN_PRESENCE_OD = 0.05
NETWORK_DIVERGED = "network_diverged"  # flag: the slide is rendered by the closed form
SQUARE = 32  # pooled cells: side of the squares whose edges are compared
FROM_LIBRARY = "_from_library"  # end of the flag of a stain whose vector the slide does not show
SWAPPED = "red_and_blue_swapped"  # flag: the stains fit the slide better in BGR order
# squared degrees to the library: a sum that is looked into, and the share of it that is better
SWAPPED_FROM, SWAPPED_SHARE = 50.0, 0.5
OUT_OF_FOCUS = "out_of_focus"  # flag: the network restores a part of the focus


def calibrate_prior(
    tiles: Sequence[TileInput],
    stains: StainSet,
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
        tiles: sampled tiles. stains: their vectors, and how far the slide may change them.
        background: (3,) B0 of the slide.
        preset: of the solver. steps: training steps of the slide's network.
        seed: of the slide. prior_weight: Lambda for every stain, or None to estimate it.
        device: for the training. executor: threads that share the work; their number does not
            change the result.
        flags: flags that the slide already has. on_step: called after each training step.

    Returns:
        The prior. Its network is empty for presets without one, and for more stains than channels.
        If the tiles have no tissue, it has the library's vectors and no network.
    """
    n = stains.n
    fixed = None if prior_weight is None else np.full(n, prior_weight, np.float32)
    if not any(t.own_tissue.any() for t in tiles):
        return _library_prior(stains, background, flags)
    own = _own_vectors(tiles, stains)
    s0, pooled_noise = own.stain_matrix, own.noise
    seen = [pooled_tile(t, s0, pooled_noise) for t in tiles]
    cleaned = [without_foreign(t, p) for t, p in zip(tiles, seen, strict=True)]
    foreign = _foreign_share(tiles, seen)
    # specks in every square would leave nothing
    if foreign <= MOST_FOREIGN and any(t.own_tissue.any() for t in cleaned):
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
        measured=np.array(own.measured),
        flags=(*flags, *_unmeasured(own.measured, stains), *own.flags),
        foreign=foreign,
        library=own.library,
        saturating=stains.saturating,
        usual=q.mean(1),
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
    sharp = _own_vectors([in_focus(t, prior, device) for t in tiles], stains)
    return replace(
        prior,
        stain_matrix=sharp.stain_matrix,
        pooled_noise_od=sharp.noise,
        measured=np.array(sharp.measured),
        flags=(*flags, *_unmeasured(sharp.measured, stains), *sharp.flags, OUT_OF_FOCUS),
    )


def trains(preset: Preset, n: int) -> bool:
    """Return whether a slide of n stains gets its own network."""
    return preset.slide_network and n <= MAX_STAINS


@dataclass(frozen=True)
class _Vectors:
    """The slide's own vectors, no further from the set's than it allows.

    Attributes:
        stain_matrix: (N, 3). measured: which of them the slide shows, and may change.
        library: (N, 3) of the set, or those alternatives that are closest to what the slide shows.
        noise: of pooled OD across them. flags: for the prior.
    """

    stain_matrix: FloatArray
    measured: tuple[bool, ...]
    library: FloatArray
    noise: float
    flags: tuple[str, ...]


def _own_vectors(tiles: Sequence[TileInput], stains: StainSet) -> _Vectors:
    """Estimate the slide's own vectors from the pixels that have a say."""
    pooled, squares = [], []
    for i, tile in enumerate(tiles):
        y, _, (row, column) = pool_od(tile.stain_od, tile.own_tissue)
        if stains.saturating >= 0:
            told = ~is_grey(y)
            y, row, column = y[told], row[told], column[told]
        across = -(-tile.od.shape[2] // (POOL * SQUARE))
        pooled.append(y)
        squares.append((i * across + row // SQUARE) * across + column // SQUARE)
    square = np.concatenate(squares)
    found = [_rays_from(pooled, square, library) for library in stains.libraries]
    off = [_distance(f[0], known) for f, known in zip(found, stains.libraries, strict=True)]
    best = min(range(len(found)), key=lambda i: (*off[i], i))
    (rays, kept), library = found[best], stains.libraries[best]
    flags = []
    if stains.n > 1 and np.isinf(stains.freedom).all() and off[best][1] > SWAPPED_FROM:
        turned = np.ascontiguousarray(stains.stain_matrix[:, ::-1])
        other = _distance(_rays_from(pooled, square, turned)[0], turned)
        if other[0] <= off[best][0] and other[1] < SWAPPED_SHARE * off[best][1]:
            flags.append(SWAPPED)
    # the set's own vectors where they are wanted, even if an alternative is closer
    wanted = np.where(np.isfinite(stains.freedom)[:, None], stains.stain_matrix, library)
    matrix = turned_within(rays.stain_matrix, wanted, stains.freedom)
    measured = tuple((np.array(rays.measured) & (stains.freedom > 0)).tolist())
    noise = _pooled_noise(kept, matrix)
    return _Vectors(matrix, measured, wanted.astype(np.float32), noise, tuple(flags))


def _rays_from(
    pooled: Sequence[FloatArray], square: npt.NDArray[np.intp], library: FloatArray
) -> tuple[Rays, list[FloatArray]]:
    """Estimate the vectors near a library; also return each tile's pixels that had a say."""
    kept = trusted(np.concatenate(pooled), square, library)
    parts = np.split(kept, np.cumsum([len(y) for y in pooled])[:-1])
    pooled = [y[own] for y, own in zip(pooled, parts, strict=True)]
    return estimate_rays(np.concatenate(pooled), library, [len(y) for y in pooled]), pooled


def _distance(rays: Rays, library: FloatArray) -> tuple[int, float]:
    """How badly a library fits what was estimated from it: stains not measured, and degrees off."""
    off = angle_deg(rays.stain_matrix, library)[np.array(rays.measured)]
    return rays.measured.count(False), float((off**2).sum())


def _foreign_share(tiles: Sequence[TileInput], pooled: Sequence[PooledTile]) -> float:
    """The share of the tissue that is foreign."""
    inside = [t.tissue[::POOL, ::POOL][: len(p.od[0])] for t, p in zip(tiles, pooled, strict=True)]
    found = [(p.foreign & tissue, tissue) for p, tissue in zip(pooled, inside, strict=True)]
    return sum(int(f.sum()) for f, _ in found) / max(sum(int(t.sum()) for _, t in found), 1)


def _unmeasured(measured: Sequence[bool], stains: StainSet) -> tuple[str, ...]:
    """The flags of stains that keep the library's vector although they need not."""
    free = zip(stains.labels, measured, stains.freedom, strict=True)
    return tuple(f"{key_of(label)}{FROM_LIBRARY}" for label, ok, angle in free if angle and not ok)


def _library_prior(stains: StainSet, background: FloatArray, flags: tuple[str, ...]) -> SlidePrior:
    """The prior of the library, for a slide without a tile of tissue."""
    n = stains.n
    return SlidePrior(
        stain_matrix=stains.stain_matrix,
        spectral_correction=np.ones(n, np.float32),
        background=background,
        presence=np.full(n, MIN_PRESENCE_OD, np.float32),
        noise_od=UNKNOWN_NOISE_OD,
        pooled_noise_od=0.0,
        prior_weight=np.zeros(n, np.float32),
        measured=np.zeros(n, bool),
        flags=(*flags, *_unmeasured((False,) * n, stains)),
        library=stains.stain_matrix,
        saturating=stains.saturating,
        usual=np.ones(n, np.float32),
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
