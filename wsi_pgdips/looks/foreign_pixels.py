"""The foreign pixels of a slide, which take the change of glass alone."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import Region
from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.records import Artifact, BoolArray, ByteArray, FloatArray

NO_TISSUE = [int(a) for a in (Artifact.FILL, Artifact.INK, Artifact.FOREIGN)]


@dataclass(frozen=True)
class ForeignPixels:
    """Foreign pixels of a slide: a coarse mask tells where the label is worth reading.

    Attributes:
        coarse: (H, W) bool of the whole slide. cell: side of its pixels, output pixels.
        read: returns the label in a region of a level's pixels. shapes: (h, w) of each level.
        finest: side of a pixel of level 0 of the label, output pixels.
    """

    coarse: BoolArray
    cell: float
    read: Callable[[int, Region], ByteArray]
    shapes: Sequence[tuple[int, int]]
    finest: float = 1.0

    def share(self, grid: PixelGrid) -> FloatArray | None:
        """Return how far pixels are foreign, (h, w) in [0, 1], or None if none is.

        A pixel takes the label around it, so that the change between both has no hard edge.
        """
        from scipy.ndimage import uniform_filter

        if not self.coarse[np.ix_(*self._index(grid, self.cell, self.coarse.shape))].any():
            return None
        size = max(grid.size) / self.finest
        level = min(max(int(np.log2(max(size, 1.0))), 1), len(self.shapes) - 1)
        rows, columns = self._index(grid, self.finest * (1 << level), self.shapes[level])
        box = Region(int(rows[0]), int(columns[0]), *(int(np.ptp(i)) + 1 for i in (rows, columns)))
        box = box.grown(1).clipped(self.shapes[level])
        found = np.isin(self.read(level, box), NO_TISSUE)
        soft = uniform_filter(found.astype(np.float32), 3, mode="nearest")
        return np.asarray(soft[np.ix_(rows - box.y, columns - box.x)], np.float32)

    @staticmethod
    def _index(
        grid: PixelGrid, cell: float, shape: tuple[int, int]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The rows and columns of cells that pixels lie in, clipped to the image."""
        rows, columns = (
            np.clip(((first + np.arange(n) + 0.5) * size / cell).astype(np.intp), 0, side - 1)
            for first, n, size, side in zip(grid.start, grid.shape, grid.size, shape, strict=True)
        )
        return rows, columns


def packed(foreign: BoolArray, cell: float) -> dict[str, Any]:
    """Return a coarse mask of foreign pixels as JSON holds it; empty if there are none.

    Args:
        foreign: (H, W) bool of the whole slide. cell: side of its pixels, level-0 pixels.
    """
    if not foreign.any():
        return {}
    bits = base64.b64encode(zlib.compress(np.packbits(foreign).tobytes(), 9)).decode()
    return {"shape": list(foreign.shape), "cell": cell, "bits": bits}


def unpacked(table: dict[str, Any]) -> ForeignPixels | None:
    """Return the mask that :func:`packed` made; None if it is empty.

    Raises:
        KeyError, TypeError, ValueError, zlib.error: it is damaged.
    """
    if not table:
        return None
    h, w = (int(n) for n in table["shape"])
    raw = np.frombuffer(zlib.decompress(base64.b64decode(table["bits"])), np.uint8)
    mask = np.unpackbits(raw, count=h * w).reshape(h, w).astype(bool)
    label = np.where(mask, np.uint8(NO_TISSUE[0]), np.uint8(0))
    cell = float(table["cell"])
    return ForeignPixels(mask, cell, lambda _, box: label[box.slices], [(h, w)], finest=cell)
