"""Weights in [0, 1] of a pixel: how far it is tissue, and how far it is solid tissue.

Tissue is 1 inside the mask and 0 outside, with a ramp within the mask's margin. Solid tissue is
tissue that stain covers at a resolution of about 8 um, which excludes the mask's margin, lumina and
gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import Region
from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.optics.interpolate import Interpolation, interpolation_at, smoothstep
from wsi_pgdips.records import Artifact, BoolArray, ByteArray, FloatArray

RAMP_UM = 24.0  # shorter than the 32 um of glass that a mask holds around tissue
CELL_UM = 8.0  # wanted side of a pixel of the mask
GLASS_OD, SOLID_OD = 0.01, 0.03  # sum of q, of glass and of solid tissue
NO_TISSUE = [int(a) for a in (Artifact.FILL, Artifact.INK, Artifact.FOREIGN)]
_Span = tuple[int, int]
_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class ForeignPixels:
    """Foreign pixels of a slide: a coarse mask tells where the label is worth reading.

    Attributes:
        coarse: (H, W) bool of the whole slide. cell: side of its pixels, output pixels.
        read: returns the label in a region of a level's pixels. shapes: (h, w) of each level.
    """

    coarse: BoolArray
    cell: float
    read: Callable[[int, Region], ByteArray]
    shapes: Sequence[tuple[int, int]]

    def share(self, grid: PixelGrid) -> FloatArray | None:
        """Return how far pixels are foreign, (h, w) in [0, 1], or None if none is.

        A pixel takes the label around it, so that the change between both has no hard edge.
        """
        from scipy.ndimage import uniform_filter

        if not self.coarse[np.ix_(*self._index(grid, self.cell, self.coarse.shape))].any():
            return None
        size = max(grid.size)
        level = min(max(int(np.log2(max(size, 1.0))), 1), len(self.shapes) - 1)
        rows, columns = self._index(grid, float(1 << level), self.shapes[level])
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


@dataclass(frozen=True)
class TissueWeight:
    """A coarse tissue mask with its amounts of stain, from which weights are interpolated.

    Attributes:
        mask: (H, W) bool of the whole slide. cell: side of a pixel of the mask, output pixels.
        mpp: micrometres per output pixel.
        amount: (H, W) sum of q over all stains, OD, the mean over a pixel of the mask.
        foreign: pixels that take the change of glass, in or beside tissue; None without any.
    """

    mask: BoolArray
    cell: float
    mpp: float
    amount: npt.NDArray[np.floating]
    foreign: ForeignPixels | None = None

    @classmethod
    def of_picture(cls, mask: BoolArray, q: FloatArray, mpp: float) -> TissueWeight:
        """Make the weights of a picture.

        Args:
            mask: (H, W) bool. q: (N, H, W) OD, NaN where not measured.
            mpp: micrometres per pixel of the picture.
        """
        step = max(round(CELL_UM / mpp), 1)
        rows, columns = (np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n in mask.shape)
        amount = _means(np.nan_to_num(q).sum(0), step)
        return cls(mask[np.ix_(rows, columns)], float(step), mpp, amount)

    def at(self, grid: PixelGrid) -> Interpolation:
        """Return the weights at these pixels as two channels: tissue and solid tissue."""
        weight = self._of_tissue(grid)
        share = None if self.foreign is None else self.foreign.share(grid)
        if share is None:
            return weight
        local = np.broadcast_to(weight.pixels(), (2, *share.shape)) * (1 - share)
        return Interpolation(local, *(np.eye(n, dtype=np.float32) for n in share.shape))

    def _of_tissue(self, grid: PixelGrid) -> Interpolation:
        from scipy.ndimage import distance_transform_edt

        ramp = max(RAMP_UM / (self.mpp * self.cell), 1.0)  # in pixels of the mask
        reach = int(ramp) + 2
        cut, side, start = [], [], []
        for axis in (0, 1):
            cell = self.cell / grid.size[axis]
            first = int(grid.start[axis] / cell) - reach
            last = int((grid.start[axis] + grid.shape[axis]) / cell) + reach + 1
            cut.append((first, last))
            side.append(cell)
            start.append(grid.start[axis] - first * cell)
        window = _window(self.mask, cut[0], cut[1])
        if not window.any():
            return even_weight(0.0, 0.0, grid.shape)
        tissue = np.ones(window.shape, np.float32)
        if not window.all():
            distance = np.asarray(distance_transform_edt(window), np.float32)
            tissue = np.clip((distance - 0.5) / ramp, 0, 1)
        solid = tissue * _covered(_window(self.amount, cut[0], cut[1]))
        if min(tissue.min(), solid.min()) == 1:
            return even_weight(1.0, 1.0, grid.shape)
        both = np.stack([tissue, solid], -1)
        return interpolation_at(both, (side[0], side[1]), (start[0], start[1]), grid.shape)


def even_weight(tissue: float, solid: float, shape: tuple[int, int]) -> Interpolation:
    """Return the same weights for all pixels of an (h, w) window."""
    down, across = (np.ones(n, np.float32) for n in shape)
    local = np.array([tissue, solid], np.float32)[:, None, None]
    return Interpolation(local, down[:, None], across[None])


def pixel_weight(amount: npt.NDArray[np.floating]) -> Interpolation:
    """Return weights by each pixel's own colour, for a tile whose surroundings are not known.

    Args:
        amount: (h, w) sum of q, OD. All pixels are taken as tissue.
    """
    local = np.stack([np.ones(amount.shape, np.float32), _covered(amount)])
    return Interpolation(local, *(np.eye(n, dtype=np.float32) for n in amount.shape))


def _covered(amount: npt.NDArray[np.floating]) -> FloatArray:
    """Return 0 up to ``GLASS_OD``, 1 from ``SOLID_OD``, and a smooth step between them."""
    return smoothstep(amount.astype(np.float32), GLASS_OD, SOLID_OD)


def _means(image: FloatArray, step: int) -> FloatArray:
    """Average over squares of ``step`` pixels, which are cut at the image's end."""
    starts = [np.arange(0, n, step) for n in image.shape]
    total = np.add.reduceat(np.add.reduceat(image, starts[0], 0), starts[1], 1)
    ends = (np.append(at, n) for at, n in zip(starts, image.shape, strict=True))
    return np.asarray(total / np.outer(*(np.diff(end) for end in ends)), np.float32)


def _window(image: npt.NDArray[_Value], rows: _Span, columns: _Span) -> npt.NDArray[_Value]:
    """Cut a window of an image whose edge pixels are repeated beyond its end."""
    index = [
        np.clip(np.arange(*span), 0, size - 1)
        for span, size in zip((rows, columns), image.shape, strict=True)
    ]
    return np.asarray(image[np.ix_(*index)])
