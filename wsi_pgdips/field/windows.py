"""Weights by which tiles are blended: Gaussian sums over the tile grid, and cross-fades of maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from wsi_pgdips.geometry import CELLS_PER_TILE, OutputGrid, Region
from wsi_pgdips.records import FloatArray


def neighbourhood_sum(values: npt.NDArray[Any], sigma: float) -> npt.NDArray[np.float64]:
    """Gaussian-weighted sum over neighbouring tiles; outside the grid there is nothing.

    Args:
        values: (GY, GX, ...) additive statistics. sigma: in tiles.

    Returns:
        (GY, GX, ...) float64; the kernel's centre weighs 1, so a lone tile keeps its own sum.
    """
    out = np.asarray(values, np.float64)
    for axis in (0, 1):
        out = gaussian_filter1d(out, sigma, axis=axis, mode="constant", truncate=3.0)
    return out * (2 * np.pi * sigma**2)


def blend(
    values: npt.NDArray[Any], weight: npt.NDArray[Any], sigma: float, fallback: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Confidence-weighted Gaussian mean over neighbouring tiles.

    Args:
        values: (GY, GX, K); NaN where unknown. weight: (GY, GX) or (GY, GX, K), >= 0.
        sigma: in tiles. fallback: (K,), used where no neighbour has any weight.

    Returns:
        (GY, GX, K) float64, finite.
    """
    w = np.broadcast_to(weight if weight.ndim == values.ndim else weight[..., None], values.shape)
    w = np.where(np.isfinite(values), w, 0.0)
    mass = neighbourhood_sum(w, sigma)
    total = neighbourhood_sum(w * np.nan_to_num(values), sigma)
    mean = np.divide(total, mass, out=np.zeros_like(total), where=mass > 1e-12)
    return np.where(mass > 1e-12, mean, np.asarray(fallback, np.float64))


def interpolation_weights(centres: int, side: float, start: int, length: int) -> FloatArray:
    """Linear interpolation from centres to pixels along one axis, constant beyond the ends.

    Returns:
        (length, centres) float32; rows are >= 0 and sum to one.
    """
    position = (np.arange(start, start + length) + 0.5) / side - 0.5
    position = np.clip(position, 0, centres - 1)
    low = np.minimum(position.astype(np.int64), max(centres - 2, 0))
    share = position - low
    weights = np.zeros((length, centres), np.float32)
    rows = np.arange(length)
    weights[rows, low] = 1 - share
    if centres > 1:
        weights[rows, low + 1] += share
    return weights


@dataclass(frozen=True)
class Interpolation:
    """A field around a region, and the weights that carry it to the region's pixels.

    Attributes:
        local: (K, a, b) float32, the field's K channels at the cells around the region.
        down: (h, a) and across: (b, w) float32; the field at the pixels is down @ local @ across.
    """

    local: FloatArray
    down: FloatArray
    across: FloatArray


def interpolation(field: npt.NDArray[Any], grid: OutputGrid, region: Region) -> Interpolation:
    """What :func:`interpolate` multiplies, for who does so on another device.

    Args:
        field: (CY, CX, ...), flattened to K channels. grid, region: as for :func:`interpolate`.
    """
    side = grid.tile * grid.tile_grid[0] // field.shape[0]
    # only the cells around the region matter, and a local window keeps the matrices small
    cut, weights = [], []
    for axis, (start, length) in enumerate(((region.y, region.h), (region.x, region.w))):
        full = field.shape[axis]
        first = int(np.clip((start + 0.5) / side - 0.5, 0, full - 1))
        last = int(np.clip((start + length) / side - 0.5, 0, full - 1)) + 2
        first, last = max(min(first, full - 2), 0), min(last, full)
        cut.append(slice(first, last))
        weights.append(interpolation_weights(full, side, start, length)[:, first:last])
    local = np.asarray(field[cut[0], cut[1]], np.float32)
    flat = np.moveaxis(local.reshape(*local.shape[:2], -1), 2, 0)  # (a, b, K) -> (K, a, b)
    down, across = weights[0], weights[1].T
    return Interpolation(*(np.ascontiguousarray(m) for m in (flat, down, across)))


def interpolate(field: npt.NDArray[Any], grid: OutputGrid, region: Region) -> FloatArray:
    """A field on the centres of cells or tiles, evaluated at the pixels of a region.

    Args:
        field: (CY, CX, ...) values at the centres of as many cells as the tiles are divided into.
        grid: the output grid. region: pixels.

    Returns:
        (..., h, w) float32, continuous over the whole slide: no step at any tile border.
    """
    i = interpolation(field, grid, region)
    return (i.down @ (i.local @ i.across)).reshape(*field.shape[2:], region.h, region.w)


def at_cells(field: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(CY, CX, ...) values of a field on tiles at the centres of the cells."""
    down, across = (
        interpolation_weights(n, CELLS_PER_TILE, 0, n * CELLS_PER_TILE) for n in field.shape[:2]
    )
    return np.asarray(np.einsum("ya,ab...,xb->yx...", down, field, across), field.dtype)


def crossfade(side: int, halo: int) -> FloatArray:
    """Weight of a tile's map over its own pixels and its halo, along one axis.

    Rises linearly over the 2 * halo pixels that a tile shares with its neighbour, so that the
    weights of neighbours sum to one.

    Returns:
        (side + 2 * halo,) float32 in (0, 1].
    """
    ramp = (np.arange(2 * halo) + 0.5) / (2 * halo)
    return np.concatenate([ramp, np.ones(side - 2 * halo), ramp[::-1]]).astype(np.float32)
