"""The Beer-Lambert law: intensity to optical density (OD) and back (I0 = 255), and the forward
model of PGDIPS, OD = sum_n q_n S_n + B with q_n = M_n C_n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import ByteArray, FloatArray

I0 = 255.0
# a black pixel has no finite OD: it counts as half a count, the usual floor of 8-bit detectors
_BLACK = 0.5
_TABLE = (-np.log10(np.maximum(np.arange(256), _BLACK) / I0)).astype(np.float32)
OD_MAX = float(_TABLE[0])


def od_table() -> FloatArray:
    """The OD of each byte value: (256,) float32."""
    return _TABLE.copy()


def rgb_to_od(rgb: ByteArray) -> FloatArray:
    """Convert intensity to OD = -log10(I / I0), by table: equal values get equal bits.

    Args:
        rgb: uint8 of any shape.

    Returns:
        float32 of the same shape, in [0, 2.71]; a zero counts as half a count.

    Raises:
        TypeError: ``rgb`` is not uint8.
    """
    if rgb.dtype != np.uint8:
        raise TypeError(f"rgb_to_od takes uint8, got {rgb.dtype}")
    # several times as fast as indexing; every byte is inside the table
    return _TABLE.take(rgb, mode="clip")


def light_to_od(light: npt.NDArray[np.floating]) -> FloatArray:
    """Convert blurred intensity, 0..255 in any shape, to float32 OD; see ``rgb_to_od``."""
    return np.asarray(-np.log10(np.maximum(light, _BLACK) / I0), np.float32)


def od_to_rgb(od: npt.NDArray[np.floating]) -> ByteArray:
    """Convert OD of any shape to intensity I = I0 10**(-OD), rounded and clipped to uint8.

    It undoes ``rgb_to_od`` exactly, also after errors of up to 8e-4 OD.
    """
    intensity = I0 * np.power(10.0, -np.asarray(od, np.float64))
    # black counts as half a count, which could round either way: slightly more is still black
    counts = np.where(intensity < 1.01 * _BLACK, 0, np.rint(intensity))
    return np.clip(counts, 0, 255).astype(np.uint8)


def compose_od(
    concentration: FloatArray, stain_matrix: FloatArray, background: FloatArray
) -> FloatArray:
    """Compose the OD of a mixture by the adapted Beer-Lambert law of PGDIPS.

    Args:
        concentration: (N, H, W) q in OD along the unit vectors.
        stain_matrix: (N, 3), or (N, 3, H, W) if it varies per pixel.
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
    """Scale rows (last axis R, G, B) to unit length; a zero row stays zero."""
    m = np.asarray(matrix, np.float64)
    norm = np.linalg.norm(m, axis=-1, keepdims=True)
    return np.asarray(np.divide(m, norm, out=np.zeros_like(m), where=norm > 0), np.float32)


def turned_within(rows: npt.ArrayLike, centre: npt.ArrayLike, degrees: npt.ArrayLike) -> FloatArray:
    """Turn unit rows towards others until they are no further from them than so many degrees.

    Args:
        rows: (..., N, 3). centre: (N, 3) unit rows. degrees: (N,), infinite to leave a row alone.
    """
    u, c = np.asarray(rows, np.float64), np.asarray(centre, np.float64)
    limit = np.broadcast_to(np.asarray(degrees, np.float64), u.shape[:-1])
    across = unit_rows(u - (u * c).sum(-1, keepdims=True) * c)
    angle = np.radians(np.minimum(limit, 90.0))[..., None]
    turned = np.cos(angle) * c + np.sin(angle) * across
    return np.where((angle_deg(u, c) > limit)[..., None], turned, u).astype(np.float32)


def angle_deg(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The angle in degrees between OD vectors along the last axis."""
    u = np.asarray(a, np.float64)
    v = np.asarray(b, np.float64)
    cos = np.sum(u * v, -1) / np.maximum(
        np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1), 1e-12
    )
    return np.asarray(np.degrees(np.arccos(np.clip(cos, -1, 1))))
