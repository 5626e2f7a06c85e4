"""The forward model of PGDIPS in numpy: OD = sum_n q_n S_n + B, with q_n = M_n C_n."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import FloatArray


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
