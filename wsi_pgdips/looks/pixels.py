"""Pixels of a slide: where they lie, their optical densities and their stain amounts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.interpolate import Interpolation, interpolation_at
from wsi_pgdips.optics.physics import I0, od_table
from wsi_pgdips.records import ByteArray, FloatArray

_IMPORTED_BY = os.getpid()
_TABLE = od_table()
_LN10 = np.float32(np.log(10.0))
# below a half, so that black, which counts as half a count, becomes black again
_ROUND = np.float32(0.4945)
_CONSTANT = 1e-7  # a field that varies less over a window is taken as constant there


@dataclass(frozen=True)
class PixelGrid:
    """A rectangle of pixels of any size on a slide.

    Attributes:
        start: (y, x) edge of the first pixel, counted in these pixels from the slide's top left.
        shape: (h, w) in pixels. size: (down, across) output pixels per pixel.
    """

    start: tuple[float, float]
    shape: tuple[int, int]
    size: tuple[float, float]

    def around(self, field: npt.NDArray[np.floating], cell: float) -> Interpolation:
        """Return the cells of a (CY, CX, ...) field around these pixels, and their weights.

        Args:
            cell: side of a cell of the field, output pixels.
        """
        side = (cell / self.size[0], cell / self.size[1])
        return interpolation_at(field, side, self.start, self.shape)

    def field(self, field: npt.NDArray[np.floating], cell: float) -> FloatArray:
        """Evaluate a (CY, CX, ...) field at these pixels.

        Args:
            cell: side of a cell of the field, output pixels.

        Returns:
            (..., h, w) float32, or (..., 1, 1) where the field is constant.
        """
        found = self.around(field, cell)
        flat = found.local.reshape(len(found.local), -1)
        lead = field.shape[2:]
        if np.ptp(flat, axis=1).max() <= _CONSTANT:
            return flat[:, 0].reshape(*lead, 1, 1)
        return found.pixels().reshape(*lead, *self.shape)


def planes_od(rgb: ByteArray) -> FloatArray:
    """Convert (h, w, >=3) uint8 to (3, h, w) float32 OD."""
    planes = np.ascontiguousarray(rgb[..., :3].transpose(2, 0, 1))  # strided bytes take 4 x longer
    return _TABLE.take(planes, mode="clip")


def write_rgb(od: FloatArray, rgb: ByteArray) -> None:
    """Write (3, h, w) float32 OD into the first channels of (h, w, >=3) uint8.

    It is the exact inverse of :func:`planes_od`. ``od`` is overwritten.
    """
    od *= -_LN10
    np.exp(od, out=od)
    od *= np.float32(I0)
    od += _ROUND
    np.clip(od, 0, 255, out=od)
    for c, plane in enumerate(od):
        rgb[..., c] = plane  # truncated


def unmixed(od: FloatArray, stain_matrix: FloatArray, background: FloatArray) -> FloatArray:
    """Unmix pixels in closed form, see ``optics.unmix.unmix``.

    Args:
        od: (3, ...) OD. stain_matrix: (N, 3), or (N, 3, ...) where it varies per pixel.
        background: (3,), or (3, ...).

    Returns:
        (N, ...) float32 q >= 0, OD along the unit vectors.
    """
    import torch

    from wsi_pgdips.optics.unmix import unmix

    if os.getpid() != _IMPORTED_BY:  # OpenMP's threads do not survive a fork
        torch.set_num_threads(1)
    arrays = (np.array(a, np.float32, order="C") for a in (od, stain_matrix, background))
    with torch.no_grad():
        q = unmix(*(torch.from_numpy(a) for a in arrays))
    return np.asarray(q.numpy(), np.float32)
