"""Where pixels lie on a slide, of whatever size, and what a field is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.interpolate import Interpolation, interpolation_at
from wsi_pgdips.records import FloatArray

_SAME = 1e-7  # a field that varies less over a window is taken as constant there


@dataclass(frozen=True)
class Place:
    """Pixels on the slide, of any size.

    Attributes:
        start: (y, x) edge of the first pixel, in these pixels, from the slide's top left corner.
        shape: (h, w). size: (down, across) output pixels per pixel.
    """

    start: tuple[float, float]
    shape: tuple[int, int]
    size: tuple[float, float]

    def around(self, field: npt.NDArray[np.floating], cell: float) -> Interpolation:
        """The cells of a (CY, CX, ...) field around these pixels, and the way from them here."""
        side = (cell / self.size[0], cell / self.size[1])
        return interpolation_at(field, side, self.start, self.shape)

    def field(self, field: npt.NDArray[np.floating], cell: float) -> FloatArray:
        """A (CY, CX, ...) field at these pixels: (..., h, w), or (..., 1, 1) where it is constant.

        Args:
            cell: side of a cell of the field, output pixels.
        """
        found = self.around(field, cell)
        flat = found.local.reshape(len(found.local), -1)
        lead = field.shape[2:]
        if np.ptp(flat, axis=1).max() <= _SAME:
            return flat[:, 0].reshape(*lead, 1, 1)
        return found.pixels().reshape(*lead, *self.shape)
