"""How much a pixel is tissue: 1 inside the mask, 0 outside, and a ramp within its margin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_pgdips.looks.transfer import Place, even_weight
from wsi_pgdips.optics.interpolate import Interpolation, interpolation_at
from wsi_pgdips.records import BoolArray

RAMP_UM = 24.0  # a mask holds 32 um of glass around tissue: the ramp ends before tissue begins


@dataclass(frozen=True)
class TissueWeight:
    """A coarse tissue mask, read as a weight.

    Attributes:
        mask: (H, W) bool, whole slide. cell: output pixels a side of one of its pixels.
        mpp: micrometres per output pixel.
    """

    mask: BoolArray
    cell: float
    mpp: float

    def at(self, place: Place) -> Interpolation:
        """The weight at these pixels, in [0, 1], one channel."""
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
        window = self._window(*cut)
        if window.all() or not window.any():
            return even_weight(float(window[0, 0]), place.shape)
        distance = np.asarray(distance_transform_edt(window), np.float32)
        weight = np.clip((distance - 0.5) / ramp, 0, 1)
        return interpolation_at(weight, (side[0], side[1]), (start[0], start[1]), place.shape)

    def _window(self, rows: tuple[int, int], columns: tuple[int, int]) -> BoolArray:
        """Part of the mask; beyond its end it goes on as it ends."""
        index = [
            np.clip(np.arange(*span), 0, size - 1)
            for span, size in zip((rows, columns), self.mask.shape, strict=True)
        ]
        return np.asarray(self.mask[np.ix_(*index)])
