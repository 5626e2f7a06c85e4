"""Sufficient statistics of a tile, from which ``field`` estimates S(x) and M(x) (decision 8).

The average of the extreme rays of tiles without pure pixels is biased; the ray of their summed
histograms is not. So each tile provides histograms and moments, for each of its cells.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import CELLS_PER_TILE
from wsi_pgdips.optics.cone import Plane, dual, edge_histograms, pixel_noise
from wsi_pgdips.optics.foreign import BLACK_OD, GREY_OD, is_brown, is_grey
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver.rays import POOL, pool_od
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.solver.trust import PooledTile

Q_BINS = 300
Q_MAX = 3.0  # OD
PERCENTILE_M = 99.9  # of q; C = 1 there (decision 4)
_STRIDE = 8  # of the sample of values from which the tail is estimated


def cell_statistics(
    y: FloatArray, half: npt.NDArray[np.bool_], stain_matrix: FloatArray, noise: float
) -> dict[str, npt.NDArray[Any]]:
    """The statistics of one cell, or of any set of pixels. They are sums and may be added.

    Args:
        y: (P, 3) pooled, glass-corrected OD. half: (P,) interleaved halves.
        stain_matrix: (N, 3) S0.
        noise: of pooled OD across the rays, used if there are too few pooled pixels to measure it.

    Returns:
        ``count`` () pooled pixels; ``sum`` (2, 3) per half; for two stains ``moment`` (3, 3) sum of
        y y', ``edges`` (2, ANGLE_BINS) of ``optics.cone``, and ``plane_qq`` (2, 2), ``plane_qr``
        (2,) for the regression of the out-of-plane component on q.
    """
    stats: dict[str, npt.NDArray[Any]] = {
        "count": np.array(len(y), np.int64),
        "sum": np.stack([part.sum(0, dtype=np.float64) for part in (y[~half], y[half])]),
    }
    if len(stain_matrix) == 2:
        plane, angles, across = _axes(stain_matrix.tobytes())
        wide = y.astype(np.float64)
        along = wide @ across
        spread = pixel_noise(wide, plane, angles, noise)
        stats["moment"] = wide.T @ wide
        stats["edges"] = edge_histograms(wide, plane, spread)
        stats["plane_qq"] = along.T @ along
        stats["plane_qr"] = along.T @ (wide @ plane.normal)
    return stats


@functools.lru_cache(maxsize=4)
def _axes(rows: bytes) -> tuple[Plane, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The plane of two stains, their angles in it, and their dual; constant over a slide."""
    matrix = np.frombuffer(rows, np.float32).reshape(2, 3)
    plane = Plane.of(matrix)
    return plane, plane.angles(matrix), dual(matrix)


def q_histogram(q: FloatArray) -> npt.NDArray[np.uint32]:
    """The histogram of (N, K) q, (N, Q_BINS); values out of range are in the first or last bin."""
    bins = [np.clip(row * np.float32(Q_BINS / Q_MAX), 0, Q_BINS - 1).astype(np.int32) for row in q]
    return np.stack([np.bincount(b, minlength=Q_BINS) for b in bins]).astype(np.uint32)


def upper_quantile(values: FloatArray, share: float) -> float:
    """The ``numpy.quantile`` near the upper end, without sorting the values far below.

    Args:
        values: (K,), K >= 1. share: of the values below the quantile.
    """
    position = (len(values) - 1) * share
    above = len(values) - int(position)  # the values from the quantile's lower neighbour on
    sample = values[::_STRIDE]
    rank = max(len(sample) - 2 * (above // _STRIDE) - _STRIDE, 0)
    tail = values[values >= np.partition(sample, rank)[rank]]
    tail = np.sort(tail if len(tail) >= above else values)
    low, high = tail[-above], tail[-max(above - 1, 1)]
    return float(low + (high - low) * (position % 1))


def tile_statistics(
    tile: TileInput,
    q: FloatArray,
    stain_matrix: FloatArray,
    noise: float,
    *,
    saturates: bool = False,
) -> dict[str, npt.NDArray[Any]]:
    """The statistics of one tile and of its cells (decision 29).

    Args:
        tile: its own pixels, without the halo, are divided into cells. q: (N, K) of its own tissue
            pixels. stain_matrix, noise: as for :func:`cell_statistics`.
        saturates: a stain does; dark, and dense grey pixels then have no say in the vectors.

    Returns:
        ``q_hist`` (N, Q_BINS) of the tile, and the statistics of its cells by row and column,
        name -> (CELLS_PER_TILE, CELLS_PER_TILE, ...).
    """
    y, half, at = pool_od(tile.stain_od, tile.own_tissue)
    if saturates:
        # pale ones stay: a tile may hold little else
        told = ~is_grey(y) | (np.linalg.norm(y, axis=1) < GREY_OD)
        y, half, at = y[told], half[told], at[:, told]
    side = len(tile.own_tissue) // (CELLS_PER_TILE * POOL)
    row, column = at // side

    def of_cell(cy: int, cx: int) -> dict[str, npt.NDArray[Any]]:
        own = (row == cy) & (column == cx)
        return cell_statistics(y[own], half[own], stain_matrix, noise)

    cells = [[of_cell(cy, cx) for cx in range(CELLS_PER_TILE)] for cy in range(CELLS_PER_TILE)]
    dark = np.zeros((CELLS_PER_TILE, CELLS_PER_TILE, 2), np.int64)  # see ``dark_cells``
    return {"q_hist": q_histogram(q), **_stacked(cells), "dark": dark}


def dark_cells(
    pooled: PooledTile, halo: int, stain: int, vector: FloatArray
) -> npt.NDArray[np.int64]:
    """Count the 4x4 squares of a tile's cells that are brown, and those that are black.

    Args:
        pooled: the tile with its halo. halo: in pixels. stain: the one that saturates.
        vector: (3,) its usual one.

    Returns:
        (CELLS_PER_TILE, CELLS_PER_TILE, 2).
    """
    edge = halo // POOL
    inner = np.s_[edge : pooled.od.shape[1] - edge, edge : pooled.od.shape[2] - edge]
    lowest = pooled.od.min(0)
    kinds = (is_brown(pooled.od, pooled.q, stain, vector) & ~pooled.foreign, lowest > BLACK_OD)
    found = np.stack([kind[inner] for kind in kinds], -1)
    side = found.shape[0] // CELLS_PER_TILE
    split = found.reshape(CELLS_PER_TILE, side, CELLS_PER_TILE, side, 2)
    return np.asarray(split.sum((1, 3)), np.int64)


def empty_statistics(stain_matrix: FloatArray) -> dict[str, npt.NDArray[Any]]:
    """The statistics of a tile without evidence."""
    cells = _stacked([[empty_cell(stain_matrix)] * CELLS_PER_TILE] * CELLS_PER_TILE)
    dark = np.zeros((CELLS_PER_TILE, CELLS_PER_TILE, 2), np.int64)
    return {"q_hist": np.zeros((len(stain_matrix), Q_BINS), np.uint32), **cells, "dark": dark}


def empty_cell(stain_matrix: FloatArray) -> dict[str, npt.NDArray[Any]]:
    """The statistics of a cell without evidence."""
    return cell_statistics(np.zeros((0, 3), np.float32), np.zeros(0, bool), stain_matrix, 0.0)


def _stacked(cells: list[list[dict[str, npt.NDArray[Any]]]]) -> dict[str, npt.NDArray[Any]]:
    found = {
        name: np.stack([np.stack([c[name] for c in row]) for row in cells]) for name in cells[0][0]
    }
    if "edges" in found:  # these are most of the bytes of tens of thousands of tiles
        found["edges"] = found["edges"].astype(np.float32)
    return found
