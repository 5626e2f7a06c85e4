"""The forward model of PGDIPS in numpy: OD = sum_n q_n S_n + B, with q_n = M_n C_n."""

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


def compose_od(
    concentration: FloatArray, stain_matrix: FloatArray, background: FloatArray
) -> FloatArray:
    """OD of a mixture: the adapted Beer-Lambert law of PGDIPS.

    Args:
        concentration: (N, H, W) q in OD along the unit vectors.
        stain_matrix: (N, 3), or (N, 3, H, W) where it varies per pixel.
        background: (3,), or (3, H, W).

    Returns:
        (3, H, W) float32.
    """
    if stain_matrix.ndim == 2:
        od = np.einsum("nhw,nc->chw", concentration, stain_matrix)
    else:
        od = np.einsum("nhw,nchw->chw", concentration, stain_matrix)
    return np.asarray(
        od + (background[:, None, None] if background.ndim == 1 else background), np.float32
    )


def unit_rows(matrix: npt.ArrayLike) -> FloatArray:
    """Rows scaled to unit length; a zero row stays zero. Last axis is (R, G, B)."""
    m = np.asarray(matrix, np.float64)
    norm = np.linalg.norm(m, axis=-1, keepdims=True)
    return np.asarray(np.divide(m, norm, out=np.zeros_like(m), where=norm > 0), np.float32)


def angle_deg(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Angle between OD vectors along the last axis, degrees."""
    u = np.asarray(a, np.float64)
    v = np.asarray(b, np.float64)
    cos = np.sum(u * v, -1) / np.maximum(
        np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1), 1e-12
    )
    return np.asarray(np.degrees(np.arccos(np.clip(cos, -1, 1))))
