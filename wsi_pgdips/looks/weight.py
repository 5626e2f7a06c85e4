"""How much a pixel is tissue, and how much it is solid tissue, in which no glass shows.

Tissue: 1 inside the mask, 0 outside, and a ramp within its margin. Solid tissue: of that what
stain covers, seen at some 8 um; a mask's margin, lumina and gaps are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.place import Place
from wsi_pgdips.optics.interpolate import Interpolation, interpolation_at, smoothstep
from wsi_pgdips.records import BoolArray, FloatArray

RAMP_UM = 24.0  # a mask holds 32 um of glass around tissue: the ramp ends before tissue begins
CELL_UM = 8.0  # a pixel of the mask, as near as there is one
GLASS_OD, SOLID_OD = 0.01, 0.03  # sum of q of what is glass, and of what is tissue
_Span = tuple[int, int]
_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class TissueWeight:
    """A coarse tissue mask and what stain there is, read as weights.

    Attributes:
        mask: (H, W) bool, whole slide. cell: output pixels a side of one of its pixels.
        mpp: micrometres per output pixel.
        amount: (H, W) sum of q over all stains, OD, mean over a pixel of the mask.
    """

    mask: BoolArray
    cell: float
    mpp: float
    amount: npt.NDArray[np.floating]

    @classmethod
    def of_picture(cls, mask: BoolArray, q: FloatArray, mpp: float) -> TissueWeight:
        """Of a picture at its own pixels: (H, W) mask, and (N, H, W) q, NaN where not measured."""
        step = max(round(CELL_UM / mpp), 1)
        rows, columns = (np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n in mask.shape)
        amount = _means(np.nan_to_num(q).sum(0), step)
        return cls(mask[np.ix_(rows, columns)], float(step), mpp, amount)

    def at(self, place: Place) -> Interpolation:
        """The weights at these pixels, in [0, 1]: two channels, tissue and solid tissue."""
        from scipy.ndimage import distance_transform_edt

        ramp = max(RAMP_UM / (self.mpp * self.cell), 1.0)  # in pixels of the mask
        reach = int(ramp) + 2
        cut, side, start = [], [], []
        for axis in (0, 1):
            cell = self.cell / place.size[axis]
            first = int(place.start[axis] / cell) - reach
            last = int((place.start[axis] + place.shape[axis]) / cell) + reach + 1
            cut.append((first, last))
            side.append(cell)
            start.append(place.start[axis] - first * cell)
        window = _window(self.mask, cut[0], cut[1])
        if not window.any():
            return even_weight(0.0, 0.0, place.shape)
        tissue = np.ones(window.shape, np.float32)
        if not window.all():
            distance = np.asarray(distance_transform_edt(window), np.float32)
            tissue = np.clip((distance - 0.5) / ramp, 0, 1)
        solid = tissue * _covered(_window(self.amount, cut[0], cut[1]))
        if min(tissue.min(), solid.min()) == 1:
            return even_weight(1.0, 1.0, place.shape)
        both = np.stack([tissue, solid], -1)
        return interpolation_at(both, (side[0], side[1]), (start[0], start[1]), place.shape)


def even_weight(tissue: float, solid: float, shape: tuple[int, int]) -> Interpolation:
    """The same weights for all pixels of a window."""
    down, across = (np.ones(n, np.float32) for n in shape)
    local = np.array([tissue, solid], np.float32)[:, None, None]
    return Interpolation(local, down[:, None], across[None])


def pixel_weight(amount: npt.NDArray[np.floating]) -> Interpolation:
    """Weights by each pixel's own colour, for who does not know what is around it.

    Args:
        amount: (h, w) sum of q, OD. All of it is taken as tissue.
    """
    local = np.stack([np.ones(amount.shape, np.float32), _covered(amount)])
    return Interpolation(local, *(np.eye(n, dtype=np.float32) for n in amount.shape))


def _covered(amount: npt.NDArray[np.floating]) -> FloatArray:
    """0 up to ``GLASS_OD``, 1 from ``SOLID_OD``, without an edge between them."""
    return smoothstep(amount.astype(np.float32), GLASS_OD, SOLID_OD)


def _means(image: FloatArray, step: int) -> FloatArray:
    """Means over squares of ``step`` pixels, those at the end over what there is of them."""
    starts = [np.arange(0, n, step) for n in image.shape]
    total = np.add.reduceat(np.add.reduceat(image, starts[0], 0), starts[1], 1)
    ends = (np.append(at, n) for at, n in zip(starts, image.shape, strict=True))
    return np.asarray(total / np.outer(*(np.diff(end) for end in ends)), np.float32)


def _window(image: npt.NDArray[_Value], rows: _Span, columns: _Span) -> npt.NDArray[_Value]:
    """Part of a picture; beyond its end it goes on as it ends."""
    index = [
        np.clip(np.arange(*span), 0, size - 1)
        for span, size in zip((rows, columns), image.shape, strict=True)
    ]
    return np.asarray(image[np.ix_(*index)])
