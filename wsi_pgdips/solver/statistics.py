"""Sufficient statistics of one tile, from which ``field`` estimates S(x) and M(x) (decision 8).

Averaging the extreme rays of tiles that lack pure pixels stays biased; summing the tiles'
histograms and then taking the ray does not. So tiles hand over histograms and moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.cone import Plane, edge_histograms, pixel_noise
from wsi_pgdips.records import FloatArray

Q_BINS = 300
Q_MAX = 3.0  # OD


def tile_statistics(
    y: FloatArray,
    half: npt.NDArray[np.bool_],
    q: FloatArray,
    stain_matrix: FloatArray,
    noise: float,
) -> dict[str, npt.NDArray[Any]]:
    """Statistics of one tile; all sums, so that those of tiles may be added.

    Args:
        y: (P, 3) pooled, glass-corrected OD. half: (P,) interleaved halves.
        q: (N, K) q of tissue pixels under the slide's S0. stain_matrix: (N, 3) S0.
        noise: of pooled OD across the rays, where the tile has too few cells to tell.

    Returns:
        ``count`` () pooled cells; ``moment`` (2, 3, 3) sum of y y' per half; ``sum`` (2, 3) per
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


def empty_statistics(stain_matrix: FloatArray) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a tile that says nothing."""
    nothing = np.zeros((0, 3), np.float32)
    n = len(stain_matrix)
    return tile_statistics(
        nothing, np.zeros(0, bool), np.zeros((n, 0), np.float32), stain_matrix, 0.0
    )
