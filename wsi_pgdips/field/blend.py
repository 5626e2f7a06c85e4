"""The smooth fields S(x), M(x), B(x), from the tiles' statistics and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.field.cells import OrderedCells, neighbourhood_sum, per_cell
from wsi_pgdips.field.stains import StainField, raw_stain_matrix, stain_field
from wsi_pgdips.geometry import CELLS_PER_TILE
from wsi_pgdips.optics.foreign import FEW_BROWN, MUCH_BROWN, smooth_share
from wsi_pgdips.optics.interpolate import interpolation_weights
from wsi_pgdips.optics.physics import turned_within, unit_rows
from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior, TileFlag

SIGMA_PARAMETERS = 1.5  # tiles
SIGMA_BROWN = 1.0  # cells: as far as black and the brown around it belong together
PERCENTILE_M = 0.999
UNFITTED = (
    TileFlag.LOW_TISSUE
    | TileFlag.BLANK
    | TileFlag.DIVERGED
    | TileFlag.READ_FAILED
    | TileFlag.FAILED
)


def blend_fields(
    fits: Sequence[BlockFit],
    tile_grid: tuple[int, int],
    prior: SlidePrior,
    background: FloatArray,
    *,
    source: str,
    q_max: float,
    library: FloatArray | None = None,
    freedom: FloatArray | None = None,
    executor: Executor | None = None,
) -> tuple[Fields, FloatArray]:
    """Blend the fits of tiles to fields on the whole tile grid.

    Args:
        fits: of every block, in any order; the result does not depend on it. They are read several
            times one after the other, so they need not all be in memory.
        tile_grid: (GY, GX). prior: the slide's. background: (CY, CX, 3) B of glass.
        source: ``statistics``, or ``parameters`` for the tiles' own S, M, B.
        q_max: OD at the upper end of the q histograms.
        library, executor: see ``stain_field``.
        freedom: (N,) degrees by which S(x) may differ from the library; by default it is free.

    Returns:
        The fields, and the slide's stain matrix (N, 3). Tiles without a fit inherit from their
        neighbours, or from the slide if they have none.
    """
    n = len(prior.stain_matrix)
    # for three and more stains only PGDIPS estimates a tile's own vectors
    known = source != "parameters" and n <= 2
    raw = np.full((*tile_grid, n, 3), np.nan, np.float32)
    histogram = np.zeros((0,))
    plain: list[BlockFit] = []
    shape = (tile_grid[0] * CELLS_PER_TILE, tile_grid[1] * CELLS_PER_TILE)
    dark = np.zeros((*tile_grid, CELLS_PER_TILE, CELLS_PER_TILE, 2))
    for fit in fits:
        if "dark" in fit.statistics:
            dark[fit.index[:, 0], fit.index[:, 1]] = fit.statistics["dark"]
        plain.append(replace(fit, statistics={}))
        if source == "parameters":
            continue
        at, values = (fit.index[:, 0], fit.index[:, 1]), fit.statistics["q_hist"]
        if not len(histogram):
            histogram = np.zeros((*tile_grid, *values.shape[1:]), values.dtype)
        histogram[at] = values
        if known:
            sums = {k: v.astype(np.float64).sum((1, 2)) for k, v in per_cell(fit).items()}
            raw[at] = raw_stain_matrix(sums, prior.stain_matrix)
    flags = _on_grid(plain, "flags", tile_grid, int(TileFlag.LOW_TISSUE))
    inherited = (flags & int(UNFITTED)) != 0
    confidence = _on_grid(plain, "confidence", tile_grid, 0.0, (n,))
    confidence = np.where(inherited[..., None], 0.0, confidence)
    own_m = _masked(_on_grid(plain, "spectral_correction", tile_grid, np.nan, (n,)), inherited)
    own_b = _masked(_on_grid(plain, "background", tile_grid, np.nan, (3,)), inherited)
    own_s = _masked(_on_grid(plain, "stain_matrix", tile_grid, np.nan, (n, 3)), inherited)
    if source == "parameters":
        stains = _from_parameters(own_s, confidence, prior)
        share = confidence.max(-1)
        m = local_mean(own_m, confidence, SIGMA_PARAMETERS, prior.spectral_correction)
        b = at_cells(local_mean(own_b, share, SIGMA_PARAMETERS, prior.background))
    else:
        cells = OrderedCells(fits, plain)
        stains = stain_field(cells, shape, prior.stain_matrix, prior.measured, library, executor)
        m = _local_percentile(histogram, prior, q_max)
        b = background.astype(np.float64)
    matrix, slide = stains.stain_matrix, stains.slide
    if library is not None and freedom is not None:
        matrix, slide = (turned_within(rows, library, freedom) for rows in (matrix, slide))
    fields = Fields(
        stain_matrix=matrix,
        spectral_correction=m.astype(np.float32),
        background=b.astype(np.float32),
        raw_stain_matrix=_masked(raw if known else own_s, inherited),
        raw_spectral_correction=own_m.astype(np.float32),
        raw_background=own_b.astype(np.float32),
        confidence=confidence.astype(np.float32),
        inherited=inherited,
        shrinkage=stains.kept,
        brown=_brown(dark.swapaxes(1, 2).reshape(*shape, 2), prior.saturating >= 0),
    )
    return fields, slide


def _brown(dark: npt.NDArray[np.float64], wanted: bool) -> FloatArray:
    """How far black is the saturating stain, (CY, CX), from counts of brown and black squares."""
    if not wanted:
        return np.zeros((0, 0), np.float32)
    brown, black = np.moveaxis(neighbourhood_sum(dark, SIGMA_BROWN), -1, 0)
    ratio = brown / np.maximum(black, 1.0)  # a single black square needs no brown around it
    return np.asarray(smooth_share(ratio, FEW_BROWN, MUCH_BROWN), np.float32)


def _from_parameters(
    own: npt.NDArray[Any], confidence: npt.NDArray[Any], prior: SlidePrior
) -> StainField:
    """The confidence-weighted Gaussian mean of the tiles' vectors, renormalised."""
    rows = [
        local_mean(own[:, :, k], confidence[..., k], SIGMA_PARAMETERS, prior.stain_matrix[k])
        for k in range(own.shape[2])
    ]
    field = unit_rows(at_cells(np.stack(rows, 2)))
    weight = confidence[..., None]
    total = np.nansum(own * weight, (0, 1)) + 1e-9 * prior.stain_matrix
    return StainField(field, unit_rows(total), {})


def _local_percentile(
    histogram: npt.NDArray[Any], prior: SlidePrior, q_max: float
) -> npt.NDArray[np.float64]:
    """The field M(x), (GY, GX, N): the local 99.9th percentile of q.

    So C = q / M is in [0, 1] (decision 4).
    """
    found, bins = [], histogram.shape[-1]
    for k, usual in enumerate(prior.spectral_correction):
        total = np.cumsum(neighbourhood_sum(histogram[:, :, k], SIGMA_PARAMETERS), -1)
        index = (total < PERCENTILE_M * total[..., -1:]).sum(-1)
        value = (np.minimum(index, bins - 1) + 0.5) * q_max / bins
        found.append(np.where(total[..., -1] > 0, np.maximum(value, prior.presence[k]), usual))
    return np.stack(found, -1)


def _on_grid(
    fits: Sequence[BlockFit],
    name: str,
    tile_grid: tuple[int, int],
    fill: float,
    shape: tuple[int, ...] = (),
) -> npt.NDArray[Any]:
    """Collect a value of all tiles on their grid, (GY, GX, *shape), with ``fill`` elsewhere."""
    dtype = np.int64 if name == "flags" else np.float64
    out = np.full((*tile_grid, *shape), fill, dtype)
    for fit in fits:
        out[fit.index[:, 0], fit.index[:, 1]] = getattr(fit, name)
    return out


def _masked(values: npt.NDArray[Any], inherited: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    mask = inherited.reshape(*inherited.shape, *([1] * (values.ndim - 2)))
    return np.where(mask, np.nan, values).astype(np.float32)


def local_mean(
    values: npt.NDArray[Any], weight: npt.NDArray[Any], sigma: float, fallback: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """The confidence-weighted Gaussian mean over neighbouring tiles.

    Args:
        values: (GY, GX, K); NaN: unknown. weight: (GY, GX) or (GY, GX, K), >= 0.
        sigma: in tiles. fallback: (K,), used if no neighbour has any weight.

    Returns:
        (GY, GX, K) float64, finite.
    """
    w = np.broadcast_to(weight if weight.ndim == values.ndim else weight[..., None], values.shape)
    w = np.where(np.isfinite(values), w, 0.0)
    mass = neighbourhood_sum(w, sigma)
    total = neighbourhood_sum(w * np.nan_to_num(values), sigma)
    mean = np.divide(total, mass, out=np.zeros_like(total), where=mass > 1e-12)
    return np.where(mass > 1e-12, mean, np.asarray(fallback, np.float64))


def at_cells(field: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Interpolate a field on tiles, (GY, GX, ...), at the centres of the cells: (CY, CX, ...)."""
    down, across = (
        interpolation_weights(n, CELLS_PER_TILE, 0, n * CELLS_PER_TILE) for n in field.shape[:2]
    )
    return np.asarray(np.einsum("ya,ab...,xb->yx...", down, field, across), field.dtype)
