"""The method ``matched`` on bytes, compiled, because viewers wait for every tile they read."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from wsi_pgdips.looks.match import Inside
from wsi_pgdips.optics.interpolate import Interpolation
from wsi_pgdips.optics.physics import od_table, od_to_rgb
from wsi_pgdips.records import ByteArray, FloatArray

# densities become bytes by a table; its step changes a pixel by at most 0.06 counts
_STEP, _LOWEST, _HIGHEST = 2e-4, -0.25, 3.0
_BYTES = od_to_rgb(np.arange(_LOWEST, _HIGHEST, _STEP))
_OD = od_table()
_FIELDS = 15  # change (3, 3), background (3,), shift (3,)
_NOWHERE = np.zeros((0, 0), np.float32)


def change_pixels(
    rgba: ByteArray, fields: Interpolation, inside: Inside, foreign: FloatArray | None = None
) -> None:
    """Compute OD + shift + (1 - foreign) change [y], with y = OD - B, in place.

    [y] is the nearest colour inside, as in ``Inside.nearest``.

    Args:
        rgba: (h, w, >= 3) uint8; the first three channels are overwritten.
        fields: 15 channels at these pixels: the rows of ``change``, then ``background`` and
            ``shift``.
        inside: the colours that the change was estimated on. foreign: (h, w) in [0, 1], or None.

    Raises:
        ValueError: the shapes differ, or a number is not finite. Compiled code would not notice
            that, and would index a table with the result.
    """
    share = _NOWHERE if foreign is None else np.asarray(foreign, np.float32)
    if not all(np.isfinite(a).all() for a in (fields.local, share)):
        raise ValueError("fields or weights are not finite")
    shapes = {(len(fields.down), fields.across.shape[1]), rgba.shape[:2]}
    if foreign is not None:
        shapes.add(foreign.shape[:2])
    if len(shapes) > 1:
        raise ValueError(f"fields, weights and pixels of {sorted(shapes)} pixels")
    across = np.ascontiguousarray(fields.local @ fields.across)  # (15, a, w)
    edges = np.array([inside.top, *inside.low, *inside.high], np.float32)
    _change(rgba, across, fields.down, share, edges, _OD, _BYTES)


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
    down: FloatArray,
    foreign: FloatArray,
    edges: FloatArray,
    densities: FloatArray,
    counts: ByteArray,
) -> None:
    h, w = rgba.shape[:2]
    row = np.empty((_FIELDS, w), np.float32)
    per_step = np.float32(1 / _STEP)
    first = np.float32(0.5 - _LOWEST / _STEP)
    last = np.float32(counts.size - 1)
    zero, one, least = np.float32(0), np.float32(1), np.float32(1e-6)
    top, low_r, low_b, high_r, high_b = edges
    some = foreign.size > 0
    for i in range(h):
        _interpolated(across, down[i], row)
        for x in range(w):
            r, g, b = densities[rgba[i, x, 0]], densities[rgba[i, x, 1]], densities[rgba[i, x, 2]]
            yr, yg, yb = r - row[9, x], g - row[10, x], b - row[11, x]
            total = yr + yg + yb
            per = one / max(total, least)
            total = min(max(total, zero), top)
            yr = min(max(yr * per, low_r), high_r)
            yb = min(max(yb * per, low_b), high_b)
            yg = one - yr - yb
            if some:
                total *= one - foreign[i, x]
            r += row[12, x] + total * (row[0, x] * yr + row[1, x] * yg + row[2, x] * yb)
            g += row[13, x] + total * (row[3, x] * yr + row[4, x] * yg + row[5, x] * yb)
            b += row[14, x] + total * (row[6, x] * yr + row[7, x] * yg + row[8, x] * yb)
            rgba[i, x, 0] = counts[np.int64(min(max(r * per_step + first, zero), last))]
            rgba[i, x, 1] = counts[np.int64(min(max(g * per_step + first, zero), last))]
            rgba[i, x, 2] = counts[np.int64(min(max(b * per_step + first, zero), last))]
