"""Concentrations of a real slide as the tissue of a phantom: unmixed, mirrored, repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from wsi_pgdips.errors import StainError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import ByteArray, FloatArray

ReadRgb = Callable[[int, int, int, int], ByteArray]

_POOL = 8  # tissue is told on squares of this side; divides the side of a cell
_TISSUE_OD = 0.06


def unmix(od: FloatArray, stain_matrix: FloatArray) -> FloatArray:
    """Exact non-negative least squares for up to three stains, by trying all supports.

    Args:
        od: (..., 3) optical density without background. stain_matrix: (N, 3) unit rows, N <= 3.

    Returns:
        (N, ...) float32 q >= 0 minimising |od - q S|^2.
    """
    n, flat = len(stain_matrix), od.reshape(-1, 3).astype(np.float64)
    best = np.zeros((flat.shape[0], n))
    gain = np.zeros(flat.shape[0])  # how far the residual falls below |od|^2
    for size in range(1, n + 1):
        for support in combinations(range(n), size):
            part = stain_matrix[list(support)].astype(np.float64)
            q = flat @ np.linalg.pinv(part)
            explained = np.sum(q * (flat @ part.T), axis=1)
            better = (q >= 0).all(axis=1) & (explained > gain)
            gain[better] = explained[better]
            rows = np.flatnonzero(better)
            best[rows] = 0
            best[rows[:, None], list(support)] = q[rows]
    return np.asarray(best.T.reshape(n, *od.shape[:-1]), np.float32)


@dataclass(frozen=True)
class RealTissue:
    """Tissue taken from RGB pixels; implements ``phantom_scene.Tissue``.

    Args:
        read: (y, x, h, w) -> (h, w, 3) uint8, asked only inside ``shape``.
        shape: (height, width) of the pixels to use; beyond, they are mirrored again and again.
        stain_matrix: (N, 3) unit rows to unmix with. background: (3,) OD of the source's glass.
    """

    read: ReadRgb
    shape: tuple[int, int]
    stain_matrix: FloatArray
    background: FloatArray

    def __post_init__(self) -> None:
        rows = np.asarray(self.stain_matrix)
        if rows.ndim != 2 or rows.shape[1] != 3 or np.linalg.matrix_rank(rows) < len(rows):
            raise StainError(
                "this stain matrix cannot unmix the texture of a phantom",
                expected="one to three independent rows (R, G, B)",
                found=rows.tolist(),
            )

    @classmethod
    def from_array(
        cls, rgb: ByteArray, stain_matrix: FloatArray, background: FloatArray
    ) -> RealTissue:
        """Tissue of an (H, W, 3) uint8 image in memory."""
        return cls(
            lambda y, x, h, w: rgb[y : y + h, x : x + w],
            (rgb.shape[0], rgb.shape[1]),
            stain_matrix,
            background,
        )

    def concentration(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """See ``phantom_scene.Tissue.concentration``; tissue is told on 8 x 8 pixel squares."""
        rgb = np.empty((h, w, 3), np.uint8)
        for top, rows, sy, flip_y in _mirrored(y, h, self.shape[0]):
            for left, cols, sx, flip_x in _mirrored(x, w, self.shape[1]):
                part = self.read(sy, sx, rows, cols)
                part = part[::-1] if flip_y else part
                rgb[top : top + rows, left : left + cols] = part[:, ::-1] if flip_x else part
        od = np.maximum(rgb_to_od(rgb) - np.asarray(self.background, np.float32), 0)
        q = unmix(od, np.asarray(self.stain_matrix, np.float32))
        total = q.sum(axis=0)
        gap = ((0, -h % _POOL), (0, -w % _POOL))
        pooled = np.pad(total, gap, mode="edge")
        pooled = pooled.reshape(pooled.shape[0] // _POOL, _POOL, -1, _POOL).mean(axis=(1, 3))
        mask = np.repeat(np.repeat(pooled > _TISSUE_OD, _POOL, axis=0), _POOL, axis=1)[:h, :w]
        return q * mask, mask.astype(np.uint8)


def _mirrored(start: int, count: int, size: int) -> Iterator[tuple[int, int, int, bool]]:
    """Runs of a mirrored axis: (offset in the window, length, first source index, reversed)."""
    done = 0
    while done < count:
        phase = (start + done) % (2 * size)
        flipped = phase >= size
        length = min(count - done, (2 * size if flipped else size) - phase)
        source = 2 * size - phase - length if flipped else phase
        yield done, length, source, flipped
        done += length
