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
    n = len(stain_matrix)
    halves = [y[~half].astype(np.float64), y[half].astype(np.float64)]
    stats: dict[str, npt.NDArray[Any]] = {
        "count": np.int64(len(y)) * np.ones((), np.int64),
        "moment": np.stack([part.T @ part for part in halves]),
        "sum": np.stack([part.sum(0) for part in halves]),
        "q_hist": np.stack(
            [np.histogram(np.clip(row, 0, Q_MAX), Q_BINS, (0, Q_MAX))[0] for row in q]
        ).astype(np.int64),
    }
    if n == 2:
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
    side = len(own) // CELLS_PER_TILE
    at_y, at_x = (i // side for i in np.nonzero(own))

    def cell(y: int, x: int) -> dict[str, npt.NDArray[Any]]:
        at = tuple(slice(i * side, (i + 1) * side) for i in (y, x))
        od, tissue = of_stains[(slice(None), *at)], own[at]
        inside = (at_y == y) & (at_x == x)
        return cell_statistics(*pool_od(od, tissue), q[:, inside], stain_matrix, noise)

    return _stacked([[cell(y, x) for x in range(CELLS_PER_TILE)] for y in range(CELLS_PER_TILE)])


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
