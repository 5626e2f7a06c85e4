"""Conversion of optical density (OD) to uint16 codes and back, and masked 2x2 reductions.

Levels have ceil sizes: the last row or column of an odd level is reduced from fewer pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.layers.schema import CODE_MAX, FILL, SCALE_FACTOR, SIGNED_ZERO
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

CodeArray = npt.NDArray[np.uint16]

_COUNTS_PER_OD = np.float32(1 / SCALE_FACTOR)


def encode(q: FloatArray, measured: BoolArray) -> CodeArray:
    """Encode optical densities: rint(q / 1e-3), at least 1 for measured pixels, else 0.

    Args:
        q: (..., H, W) float32 OD; pixels that are not measured may hold anything.
        measured: (H, W).

    Returns:
        uint16 of q's shape, rounded half to even.

    Raises:
        ValueError: a measured pixel is NaN or infinite.
    """
    return _codes(q, measured, 0)


def encode_signed(od: FloatArray, measured: BoolArray) -> CodeArray:
    """Encode signed OD like ``encode``, as code 32768 + rint(od / 1e-3)."""
    return _codes(od, measured, SIGNED_ZERO)


def decode(codes: CodeArray) -> FloatArray:
    """Decode codes of any shape to float32 OD; NaN: not measured."""
    return _densities(codes, 0)


def decode_signed(codes: CodeArray) -> FloatArray:
    """Decode codes of ``encode_signed``, of any shape, to float32 OD; NaN: not measured."""
    return _densities(codes, SIGNED_ZERO)


def quad_sum(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Sum over 2x2 pixels of the last two axes, in ``dtype``, in a fixed order of addition.

    Args:
        values: (..., H, W).

    Returns:
        (..., ceil(H / 2), ceil(W / 2)).
    """
    h, w = values.shape[-2:]
    total = np.zeros((*values.shape[:-2], (h + 1) // 2, (w + 1) // 2), dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            part = values[..., dy::2, dx::2]
            total[..., : part.shape[-2], : part.shape[-1]] += part
    return total


def downsample(codes: CodeArray) -> CodeArray:
    """Average the measured pixels of each 2x2, rounded half to even; 0 if none is measured.

    Args:
        codes: (..., H, W) uint16.

    Returns:
        (..., ceil(H / 2), ceil(W / 2)) uint16.
    """
    h, w = codes.shape[-2:]
    out = np.empty((*codes.shape[:-2], (h + 1) // 2, (w + 1) // 2), np.uint16)
    for plane in np.ndindex(codes.shape[:-2]):  # plane by plane: a whole block in float32 is large
        # float32 is exact: sums stay below 2**24, and a third is never within rounding of a half
        total = quad_sum(codes[plane], np.float32)
        total /= np.maximum(quad_sum(codes[plane] != FILL, np.uint8), 1)
        out[plane] = np.rint(total, out=total)
    return out


def downsample_rms(codes: CodeArray) -> CodeArray:
    """Reduce arrays of RMS values like ``downsample``, by the root of the mean square."""
    total = quad_sum(np.square(codes, dtype=np.float64), np.float64)
    total /= np.maximum(quad_sum(codes != FILL, np.uint8), 1)
    return np.asarray(np.rint(np.sqrt(total)), np.uint16)


def downsample_labels(labels: ByteArray) -> ByteArray:
    """Take the maximum of each 2x2: (H, W) uint8 -> (ceil(H / 2), ceil(W / 2))."""
    h, w = labels.shape
    top = np.zeros(((h + 1) // 2, (w + 1) // 2), np.uint8)
    for dy in (0, 1):
        for dx in (0, 1):
            part = labels[dy::2, dx::2]
            view = top[: part.shape[0], : part.shape[1]]
            np.maximum(view, part, out=view)
    return top


def _codes(od: FloatArray, measured: BoolArray, zero: int) -> CodeArray:
    codes = np.empty(od.shape, np.uint16)
    for plane in np.ndindex(od.shape[:-2]):  # plane by plane: a whole block in float32 is large
        counts = np.where(measured, od[plane], np.float32(0)) * _COUNTS_PER_OD
        if not np.isfinite(counts).all():
            raise ValueError("the optical density of a measured pixel is not finite")
        np.rint(counts, out=counts)
        counts += np.float32(zero)
        np.clip(counts, 1, CODE_MAX, out=counts)
        codes[plane] = np.where(measured, counts, np.float32(FILL))
    return codes


def _densities(codes: CodeArray, zero: int) -> FloatArray:
    od = codes.astype(np.float32)
    od -= np.float32(zero)
    od *= np.float32(SCALE_FACTOR)
    od[codes == FILL] = np.nan
    return od
