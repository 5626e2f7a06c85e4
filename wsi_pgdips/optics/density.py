"""Intensity to optical density and back (Beer-Lambert, I0 = 255)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import ByteArray, FloatArray

I0 = 255.0
# a black pixel has no finite OD; half a count is the usual floor for 8-bit detectors
_BLACK = 0.5
_TABLE = (-np.log10(np.maximum(np.arange(256), _BLACK) / I0)).astype(np.float32)
OD_MAX = float(_TABLE[0])


def od_table() -> FloatArray:
    """(256,) float32 OD of each value of a byte."""
    return _TABLE.copy()


def rgb_to_od(rgb: ByteArray) -> FloatArray:
    """OD = -log10(I / I0), by table so that every pixel of a value gets the same bits.

    Args:
        rgb: uint8 of any shape.

    Returns:
        float32 of the same shape, in [0, 2.71]; a zero counts as half a count.
    """
    if rgb.dtype != np.uint8:
        raise TypeError(f"rgb_to_od takes uint8, got {rgb.dtype}")
    # several times as fast as indexing; no value is out of the table's range
    return _TABLE.take(rgb, mode="clip")


def od_to_rgb(od: npt.NDArray[np.floating]) -> ByteArray:
    """I = I0 10**(-OD), rounded and clipped to uint8; any shape.

    Undoes ``rgb_to_od`` exactly, also after errors of up to 8e-4 OD.
    """
    intensity = I0 * np.power(10.0, -np.asarray(od, np.float64))
    # the half count of black lies on the edge of rounding: a little more is still black
    counts = np.where(intensity < 1.01 * _BLACK, 0, np.rint(intensity))
    return np.clip(counts, 0, 255).astype(np.uint8)
