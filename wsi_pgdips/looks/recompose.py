"""RGB from concentrations, and the residual that makes it lossless.

The model explains OD = B + q S up to a residual of three signed channels. Whoever has the slide
takes the residual from its pixels, under the concentrations as they are stored; added back under
the same S and B it returns the slide, and under a reference's S, M, B it keeps the slide's texture.
"""

from __future__ import annotations

import numpy as np

from wsi_pgdips.optics.physics import compose_od, od_to_rgb
from wsi_pgdips.records import ByteArray, FloatArray


def model_od(q: FloatArray, stain_matrix: FloatArray, background: FloatArray) -> FloatArray:
    """B + q S of stored concentrations.

    Args:
        q: (N, h, w) OD along the unit vectors; NaN (not measured) counts as 0.
        stain_matrix: (N, 3), or (N, 3, h, w) where it varies per pixel.
        background: (3,), or (3, h, w).

    Returns:
        (3, h, w) float32 OD.
    """
    known = np.nan_to_num(np.asarray(q, np.float32), nan=0.0)
    return compose_od(known, stain_matrix, background)


def residual_od(
    od: FloatArray, q: FloatArray, stain_matrix: FloatArray, background: FloatArray
) -> FloatArray:
    """OD - B - q S: what the model leaves unexplained, with its sign.

    Args:
        od: (3, h, w) OD of the slide's pixels (``optics.physics.rgb_to_od``).
        q: (N, h, w), as stored and so after quantisation; NaN (not measured) counts as 0.
        stain_matrix: (N, 3), or (N, 3, h, w). background: (3,), or (3, h, w).

    Returns:
        (3, h, w) float32 OD.
    """
    return np.asarray(od - model_od(q, stain_matrix, background), np.float32)


def recompose(
    q: FloatArray,
    stain_matrix: FloatArray,
    background: FloatArray,
    residual: FloatArray | None = None,
) -> ByteArray:
    """I = 255 10**-(B + q S + residual).

    With the arguments given to :func:`residual_od` and its result, the slide's own pixels, byte for
    byte; a residual stored in steps of 1e-3 OD is exact enough for that too.

    Args:
        q: (N, h, w); NaN (not measured) counts as 0. stain_matrix: (N, 3), or (N, 3, h, w).
        background: (3,), or (3, h, w).
        residual: (3, h, w) OD, or None for the model alone: the slide without what the stains
            cannot explain.

    Returns:
        (h, w, 3) uint8.
    """
    od = model_od(q, stain_matrix, background)
    if residual is not None:
        od = od + residual
    return np.ascontiguousarray(od_to_rgb(od).transpose(1, 2, 0))
