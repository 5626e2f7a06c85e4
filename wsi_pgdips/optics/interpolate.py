"""Fields between the centres of their cells: linear interpolation, continuous everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.records import FloatArray


def interpolation_weights(centres: int, side: float, start: float, length: int) -> FloatArray:
    """Weights of the linear interpolation from centres to pixels on one axis, constant at the ends.

    Args:
        centres: number of cells. side: of a cell, in pixels. start: edge of the first pixel.
        length: number of pixels.

    Returns:
        (length, centres) float32; rows are >= 0 and sum to one.
    """
    position = (start + np.arange(length) + 0.5) / side - 0.5
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

    def pixels(self) -> FloatArray:
        """The field at the region's pixels: (K, h, w)."""
        return self.down @ (self.local @ self.across)


def interpolation(field: npt.NDArray[Any], grid: OutputGrid, region: Region) -> Interpolation:
    """The matrices that :func:`interpolate` multiplies, for a caller on another device.

    Args:
        field: (CY, CX, ...), flattened to K channels. grid, region: as for :func:`interpolate`.
    """
    side = grid.tile * grid.tile_grid[0] // field.shape[0]
    return interpolation_at(field, (side, side), (region.y, region.x), (region.h, region.w))


def interpolation_at(
    field: npt.NDArray[Any],
    side: tuple[float, float],
    start: tuple[float, float],
    shape: tuple[int, int],
) -> Interpolation:
    """The matrices of :func:`interpolation`, for pixels of any size.

    Args:
        field: (CY, CX, ...). side: of a cell, in pixels, down and across. start: edge of the first
            pixel, in pixels from the field's edge. shape: (h, w) pixels.
    """
    # only the cells around the region matter, and a local window keeps the matrices small
    cut, weights = [], []
    for full, cell, first_pixel, length in zip(field.shape, side, start, shape, strict=False):
        first = int(np.clip((first_pixel + 0.5) / cell - 0.5, 0, full - 1))
        last = int(np.clip((first_pixel + length) / cell - 0.5, 0, full - 1)) + 2
        first, last = max(min(first, full - 2), 0), min(last, full)
        cut.append(slice(first, last))
        weights.append(interpolation_weights(full, cell, first_pixel, length)[:, first:last])
    local = np.asarray(field[cut[0], cut[1]], np.float32)
    flat = np.moveaxis(local.reshape(*local.shape[:2], -1), 2, 0)  # (a, b, K) -> (K, a, b)
    down, across = weights[0], weights[1].T
    return Interpolation(*(np.ascontiguousarray(m) for m in (flat, down, across)))


def interpolate(field: npt.NDArray[Any], grid: OutputGrid, region: Region) -> FloatArray:
    """Evaluate a field, given at the centres of cells or tiles, at the pixels of a region.

    Args:
        field: (CY, CX, ...) values at the centres of the cells that the tiles are divided into.
        grid: the output grid. region: output pixels.

    Returns:
        (..., h, w) float32, continuous over the whole slide: no step at any tile border.
    """
    pixels = interpolation(field, grid, region).pixels()
    return pixels.reshape(*field.shape[2:], region.h, region.w)


def crossfade(side: int, halo: int) -> FloatArray:
    """The weight of a tile's map over its own pixels and its halo, along one axis.

    It rises linearly over the 2 * halo pixels that a tile shares with its neighbour, so that the
    weights of neighbours sum to one.

    Returns:
        (side + 2 * halo,) float32 in (0, 1].
    """
    ramp = (np.arange(2 * halo) + 0.5) / (2 * halo)
    return np.concatenate([ramp, np.ones(side - 2 * halo), ramp[::-1]]).astype(np.float32)
