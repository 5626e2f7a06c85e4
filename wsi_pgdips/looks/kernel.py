"""The method ``typical`` on bytes, compiled, because viewers wait for every tile they read."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from wsi_pgdips.looks.frame import BLACK_OD, DARK_OD
from wsi_pgdips.optics.interpolate import Interpolation
from wsi_pgdips.optics.physics import od_table, od_to_rgb
from wsi_pgdips.records import ByteArray, FloatArray

# densities become bytes by a table; its step changes a pixel by at most 0.06 counts
_STEP, _LOWEST, _HIGHEST = 2e-4, -0.25, 3.0
_BYTES = od_to_rgb(np.arange(_LOWEST, _HIGHEST, _STEP))
_OD = od_table()
_FIELDS = 15  # change (3, 3), background (3,), shift (3,)


def change_pixels(
    rgba: ByteArray, fields: Interpolation, weight: Interpolation, lift: FloatArray
) -> None:
    """Compute OD + shift + tissue * change y + solid * lift, with y = OD - B, in place.

    Black pixels keep their hue, as in ``frame.keep_black``.

    Args:
        rgba: (h, w, >= 3) uint8; the first three channels are overwritten.
        fields: 15 channels at these pixels: the rows of ``change``, then ``background`` and
            ``shift``.
        weight: two channels at these pixels: tissue and solid tissue.
        lift: (3,) OD.

    Raises:
        ValueError: the shapes differ, or a number is not finite. Compiled code would not notice
            that, and would index a table with the result.
    """
    if not all(np.isfinite(a).all() for a in (fields.local, weight.local, lift)):
        raise ValueError("fields or weights are not finite")
    for i in (fields, weight):
        if (len(i.down), i.across.shape[1]) != rgba.shape[:2]:
            raise ValueError(
                f"fields of {len(i.down)} x {i.across.shape[1]} pixels on {rgba.shape[:2]}"
            )
    across = (np.ascontiguousarray(i.local @ i.across) for i in (fields, weight))  # (K, a, w)
    _change(rgba, *across, fields.down, weight.down, np.asarray(lift, np.float32), _OD, _BYTES)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for the cache: a read-only install without a home
        compiled = numba.njit(nogil=True)(function)
    return compiled


@_compiled
def _interpolated(across: FloatArray, down: FloatArray, out: FloatArray) -> None:
    """Compute one row of pixels: out (K, w) = down (a,) times across (K, a, w)."""
    for k in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[k, x] = 0
        for a in range(down.shape[0]):
            share = down[a]
            if share != 0:  # most are
                for x in range(out.shape[1]):
                    out[k, x] += share * across[k, a, x]


@_compiled
def _change(
    rgba: ByteArray,
    across: FloatArray,
    weight_across: FloatArray,
    down: FloatArray,
    weight_down: FloatArray,
    lift: FloatArray,
    densities: FloatArray,
    counts: ByteArray,
) -> None:
    h, w = rgba.shape[:2]
    row = np.empty((_FIELDS + 2, w), np.float32)
    per_step = np.float32(1 / _STEP)
    first = np.float32(0.5 - _LOWEST / _STEP)
    last = np.float32(counts.size - 1)
    dark, per_black = np.float32(DARK_OD), np.float32(1 / (BLACK_OD - DARK_OD))
    one, two, three = np.float32(1), np.float32(2), np.float32(3)
    for i in range(h):
        _interpolated(across, down[i], row[:_FIELDS])
        _interpolated(weight_across, weight_down[i], row[_FIELDS:])
        for x in range(w):
            r, g, b = densities[rgba[i, x, 0]], densities[rgba[i, x, 1]], densities[rgba[i, x, 2]]
            yr, yg, yb = r - row[9, x], g - row[10, x], b - row[11, x]
            part, solid = row[15, x], row[16, x]
            cr = row[0, x] * yr + row[1, x] * yg + row[2, x] * yb
            cg = row[3, x] * yr + row[4, x] * yg + row[5, x] * yb
            cb = row[6, x] * yr + row[7, x] * yg + row[8, x] * yb
            black = (min(yr, yg, yb) - dark) * per_black
            if black > 0:
                black = min(black, one)
                black *= black * (three - two * black)
                after = (yr + cr) ** 2 + (yg + cg) ** 2 + (yb + cb) ** 2
                gain = np.sqrt(after / (yr * yr + yg * yg + yb * yb)) - one
                cr += black * (gain * yr - cr)
                cg += black * (gain * yg - cg)
                cb += black * (gain * yb - cb)
            r += row[12, x] + solid * lift[0] + part * cr
            g += row[13, x] + solid * lift[1] + part * cg
            b += row[14, x] + solid * lift[2] + part * cb
            rgba[i, x, 0] = counts[np.int64(min(max(r * per_step + first, 0), last))]
            rgba[i, x, 1] = counts[np.int64(min(max(g * per_step + first, 0), last))]
            rgba[i, x, 2] = counts[np.int64(min(max(b * per_step + first, 0), last))]
