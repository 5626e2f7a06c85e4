"""Sufficient statistics of a tile, from which ``field`` estimates S(x) and M(x) (decision 8).

Averaging the extreme rays of tiles that lack pure pixels stays biased; summing the tiles'
histograms and then taking the ray does not. So tiles hand over histograms and moments, each for
the cells that it is divided into.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import CELLS_PER_TILE
from wsi_pgdips.optics.cone import Plane, edge_histograms, pixel_noise
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver.rays import pool_od
from wsi_pgdips.solver.tile import TileInput

Q_BINS = 300
Q_MAX = 3.0  # OD
PERCENTILE_M = 99.9  # of q; where it lies is C = 1 (decision 4)
_FIRST_LOOK = 8  # every so manieth value


def cell_statistics(
    y: FloatArray,
    half: npt.NDArray[np.bool_],
    q: FloatArray,
    stain_matrix: FloatArray,
    noise: float,
) -> dict[str, npt.NDArray[Any]]:
    """Statistics of one cell, or of any set of pixels; all sums, so that several may be added.

    Args:
        y: (P, 3) pooled, glass-corrected OD. half: (P,) interleaved halves.
        q: (N, K) q of tissue pixels under the slide's S0. stain_matrix: (N, 3) S0.
        noise: of pooled OD across the rays, where there are too few pooled pixels to tell.

    Returns:
        ``count`` () pooled pixels; ``moment`` (2, 3, 3) sum of y y' per half; ``sum`` (2, 3) per
        half; ``q_hist`` (N, Q_BINS); for two stains, per half, ``edges`` (2, 2, ANGLE_BINS) of
        ``optics.cone``, and ``plane_qq`` (2, 2, 2), ``plane_qr`` (2, 2): the regression of the
        out-of-plane component on q.
    """
    histogram = _q_histograms(q, np.zeros(q.shape[1], np.intp), 1)[0]
    return {"q_hist": histogram, **_of_pooled(y, half, stain_matrix, noise)}


def _of_pooled(
    y: FloatArray, half: npt.NDArray[np.bool_], stain_matrix: FloatArray, noise: float
) -> dict[str, npt.NDArray[Any]]:
    halves = [y[~half].astype(np.float64), y[half].astype(np.float64)]
    stats: dict[str, npt.NDArray[Any]] = {
        "count": np.int64(len(y)) * np.ones((), np.int64),
        "moment": np.stack([part.T @ part for part in halves]),
        "sum": np.stack([part.sum(0) for part in halves]),
    }
    if len(stain_matrix) == 2:
        plane = Plane.of(stain_matrix)
        dual = np.linalg.pinv(stain_matrix.astype(np.float64))  # (3, 2)
        angles, qq, qr = [], [], []
        spread = pixel_noise(y, plane, plane.angles(stain_matrix), noise)
        for part, own in zip(halves, (spread[~half], spread[half]), strict=True):
            angles.append(edge_histograms(part, plane, own))
            along = part @ dual
            qq.append(along.T @ along)
            qr.append(along.T @ (part @ plane.normal))
        stats["edges"] = np.stack(angles)
        stats["plane_qq"], stats["plane_qr"] = np.stack(qq), np.stack(qr)
    return stats


def _q_histograms(q: FloatArray, cell: npt.NDArray[np.intp], cells: int) -> npt.NDArray[np.int64]:
    """(cells, N, Q_BINS) of (N, K) q, each pixel in the histogram of its cell (K,)."""
    first = cell * Q_BINS
    rows = []
    for row in q:
        bins = np.clip(row * np.float32(Q_BINS / Q_MAX), 0, Q_BINS - 1).astype(np.int32)
        rows.append(np.bincount(first + bins, minlength=cells * Q_BINS).reshape(cells, Q_BINS))
    return np.stack(rows, 1).astype(np.int64)


def upper_quantile(values: FloatArray, share: float) -> float:
    """``numpy.quantile`` near the upper end, without sorting what lies far below.

    Args:
        values: (K,), K >= 1. share: of values below it.
    """
    position = (len(values) - 1) * share
    above = len(values) - int(position)  # the values from the quantile's lower neighbour on
    look = values[::_FIRST_LOOK]
    rank = max(len(look) - 2 * (above // _FIRST_LOOK) - _FIRST_LOOK, 0)
    tail = values[values >= np.partition(look, rank)[rank]]
    tail = np.sort(tail if len(tail) >= above else values)
    low, high = tail[-above], tail[-max(above - 1, 1)]
    return float(low + (high - low) * (position % 1))


def tile_statistics(
    tile: TileInput, q: FloatArray, stain_matrix: FloatArray, noise: float
) -> dict[str, npt.NDArray[Any]]:
    """Statistics of the cells of one tile (decision 29).

    Args:
        tile: whose own pixels are divided, without its halo. q: (N, K) of its own tissue pixels,
            in raster order. stain_matrix, noise: as for :func:`cell_statistics`.

    Returns:
        name -> (CELLS_PER_TILE, CELLS_PER_TILE, ...), cells by row and column.
    """
    of_stains, own = tile.of_stains, tile.own_tissue
    per, side = CELLS_PER_TILE, len(own) // CELLS_PER_TILE
    line = np.arange(len(own)) // side
    cell = (line[:, None] * per + line)[own]
    histograms = _q_histograms(q, cell, per**2).reshape(per, per, *q.shape[:1], Q_BINS)

    def of_cell(y: int, x: int) -> dict[str, npt.NDArray[Any]]:
        at = tuple(slice(i * side, (i + 1) * side) for i in (y, x))
        pooled = pool_od(of_stains[(slice(None), *at)], own[at])
        return _of_pooled(*pooled, stain_matrix, noise)

    cells = [[of_cell(y, x) for x in range(per)] for y in range(per)]
    return {"q_hist": histograms, **_stacked(cells)}


def empty_statistics(stain_matrix: FloatArray) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a tile that says nothing."""
    return _stacked([[empty_cell(stain_matrix)] * CELLS_PER_TILE] * CELLS_PER_TILE)


def empty_cell(stain_matrix: FloatArray) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a cell that says nothing."""
    pixels, q = np.zeros((0, 3), np.float32), np.zeros((len(stain_matrix), 0), np.float32)
    return cell_statistics(pixels, np.zeros(0, bool), q, stain_matrix, 0.0)


def _stacked(cells: list[list[dict[str, npt.NDArray[Any]]]]) -> dict[str, npt.NDArray[Any]]:
    return {
        name: np.stack([np.stack([c[name] for c in row]) for row in cells]) for name in cells[0][0]
    }
