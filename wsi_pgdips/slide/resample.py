"""Resampling of a pyramid level to the output grid: the choice of the level, and the averages.

Frames: ``_lvl`` are pixels of the slide's own level, ``ratio`` is level pixels per output pixel.
Pixel j of a level with scale n covers level-0 pixels [j n, (j + 1) n). Output pixel i covers
[i f, (i + 1) f), so its centre is at ``x_l0 = (i + 0.5) f - 0.5``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsi_pgdips.geometry import Region
from wsi_pgdips.records import ByteArray, FloatArray

# a level that may misplace a pixel by more than this, in output pixels, is not used
MAX_SHIFT = 0.25
SCALE_TOLERANCE = 1e-3
# windows of an inexact level are placed at whole level-0 pixels and interpolated
WINDOW_SHIFT_L0 = 1.0
# weights are whole multiples of 1 / PARTS, intermediate values of 1 / SUBCOUNTS: float32 adds them
# without error as long as 255 * PARTS * SUBCOUNTS < 2**24
PARTS = 4096
SUBCOUNTS = 16
# the most level pixels and output pixels in one matrix product: longer blocks multiply by more
# zeros, shorter blocks convert more pixels twice
BLOCK_LVL = 32
BLOCK_MAX = 8
# blocks of rows that are in memory as float32 at once
STRIPE = 16


@dataclass(frozen=True)
class Level:
    """A level of a slide's pyramid.

    Attributes:
        index: its number in the file; 0 is finest.
        shape: (height, width) in its own pixels.
        scale: level-0 pixels per pixel of this level.
        slack_l0: level-0 pixels by which its far edge may be misplaced, given its shape.
        exact: any window of pixels is read as stored, without interpolation by the library.
    """

    index: int
    shape: tuple[int, int]
    scale: float
    slack_l0: float
    exact: bool


def describe_levels(shapes: Sequence[tuple[int, int]], exact: Sequence[bool]) -> tuple[Level, ...]:
    """Describe the levels with their true scale.

    Scanners downsample by an integer n and round the shape. So 14486 -> 3621 is n = 4, not 4.0006
    as the ratio of the shapes says, which would drift by pixels over the slide. The uncertainty due
    to rounding becomes ``slack_l0``. Levels of another aspect ratio are left out.
    """
    height, width = shapes[0]
    levels = []
    for index, ((h, w), is_exact) in enumerate(zip(shapes, exact, strict=True)):
        ratio = (height / h + width / w) / 2
        n = max(round(ratio), 1)
        rest = max(abs(height - n * h), abs(width - n * w))
        if rest < n:
            levels.append(Level(index, (h, w), float(n), float(rest), is_exact))
            continue
        rest_ratio = max(abs(height - ratio * h), abs(width - ratio * w))
        if rest_ratio <= 2 * ratio:
            levels.append(Level(index, (h, w), ratio, rest_ratio + ratio, False))
    return tuple(levels)


def choose_level(levels: Sequence[Level], factor: float, *, exact: bool = True) -> Level:
    """Choose the coarsest level that fits ``factor`` level-0 pixels per output pixel.

    A level fits if it is not coarser than the factor and misplaces no pixel by more than
    ``MAX_SHIFT`` output pixels. With ``exact`` its windows must also be read as stored, and an
    integer factor needs an integer ratio, so that a plain mean is enough.
    """
    fit = levels[0]
    for level in levels:
        shift_l0 = level.slack_l0 + (0.0 if level.exact else WINDOW_SHIFT_L0)
        if (
            level.scale <= factor * (1 + SCALE_TOLERANCE)
            and shift_l0 <= MAX_SHIFT * factor
            and (level.exact or not exact)
            and (not exact or is_integer(factor / level.scale) or not is_integer(factor))
            and level.scale > fit.scale
        ):
            fit = level
    return fit


def is_integer(ratio: float) -> bool:
    """Return whether a ratio is a whole number, up to rounding errors."""
    return abs(ratio - round(ratio)) < 1e-6


def box_mean(pixels: ByteArray, ratio: int) -> ByteArray:
    """Means of ratio x ratio squares, rounded half up: (h ratio, w ratio, 3) -> (h, w, 3)."""
    if ratio == 1:
        return pixels
    if ratio & (ratio - 1) == 0:
        # Pillow is ten times as fast, but exact for powers of two only
        return np.asarray(Image.fromarray(pixels).reduce(ratio))
    total = np.zeros((pixels.shape[0] // ratio, pixels.shape[1] // ratio, 3), np.uint32)
    for dy in range(ratio):
        for dx in range(ratio):
            total += pixels[dy::ratio, dx::ratio]
    n = ratio * ratio
    return ((total + n // 2) // n).astype(np.uint8)


def taps_lvl(start: int, n: int, ratio: float, length: int) -> tuple[int, int]:
    """The level pixels [first, stop) that :func:`antialiased` needs for n output pixels.

    This is for one axis, from output pixel ``start`` on; ``length`` is the level's.
    """
    reach = max(ratio, 1.0)
    first = math.floor((start + 0.5) * ratio - reach + 0.5)
    stop = math.ceil((start + n - 0.5) * ratio + reach - 0.5)
    return max(first, 0), min(stop, length)


def antialiased(
    pixels: ByteArray,
    origin_lvl: tuple[int, int],
    region: Region,
    ratio: float,
    shape_lvl: tuple[int, int],
) -> ByteArray:
    """Resample level pixels to ``region`` of the output grid: (h, w, C) -> (region.h, region.w, C).

    The kernel is a Hamming-windowed sinc, scaled to the ratio. It has no negative lobes, so no
    bright fringes arise that would look like negative optical density. At the ends of the level the
    kernel is cut and renormalised.

    A pixel has the same bytes whichever window it is computed in. Weights depend on the absolute
    index of an output pixel and are rounded to 12 bits; values between the two axes are rounded to
    1/16 of a count. So float32 holds every sum of products exactly, in any order of addition. At
    the end pixels are rounded half up.

    Args:
        pixels: uint8 window of the level, with at least the pixels of :func:`taps_lvl` on both
            axes.
        origin_lvl: (y, x) of its first pixel in the level.
        region: not empty, inside the output grid.
        ratio: level pixels per output pixel.
        shape_lvl: (height, width) of the level.
    """
    (y0, x0), (h, w, channels) = origin_lvl, pixels.shape
    block = min(max(int(BLOCK_LVL / ratio), 1), BLOCK_MAX)
    down = _bands(region.y, region.h, ratio, shape_lvl[0], (y0, y0 + h), block)
    across = [
        # channels stay interleaved: separating them takes longer than multiplying by zeros
        (_times(o, channels), _times(i, channels), _interleaved(weights, channels))
        for o, i, weights in _bands(region.x, region.w, ratio, shape_lvl[1], (x0, x0 + w), block)
    ]
    # these are powers of two, so scaling is exact
    down = [(o, i, weights * np.float32(SUBCOUNTS)) for o, i, weights in down]
    across = [(o, i, weights / np.float32(SUBCOUNTS)) for o, i, weights in across]
    out = np.empty((region.h, region.w * channels), np.uint8)
    longest = max(i.stop - i.start for _, i, _ in down)
    floats = np.empty((longest, w * channels), np.float32)
    rows = np.empty((min(region.h, STRIPE * block), w * channels), np.float32)
    both = np.empty((len(rows), region.w * channels), np.float32)
    for k in range(0, len(down), STRIPE):
        stripe = down[k : k + STRIPE]
        top, stop = stripe[0][0].start, stripe[-1][0].stop
        for o, i, weights in stripe:
            part = floats[: i.stop - i.start]
            part.reshape(-1, w, channels)[:] = pixels[i]
            np.matmul(weights, part, out=rows[o.start - top : o.stop - top])
        between, values = rows[: stop - top], both[: stop - top]
        np.rint(between, out=between)
        for o, i, weights in across:
            np.matmul(between[:, i], weights, out=values[:, o])
        values += np.float32(0.5)
        out[top:stop] = values  # the conversion to uint8 cuts the fraction off
    return out.reshape(region.h, region.w, channels)


def _bands(
    start: int, n: int, ratio: float, length: int, window: tuple[int, int], block: int
) -> list[tuple[slice, slice, FloatArray]]:
    """The weights of n output pixels along an axis, in blocks of ``block`` output pixels.

    Each block has its output pixels (counted from ``start``), its level pixels (counted from the
    start of ``window`` = (first, stop)), and its part of :func:`_weights`, (output pixels, level
    pixels).
    """
    first, weights = _weights(start, n, ratio, length)
    begins = first[::block]
    column = (first - np.repeat(begins, block)[:n])[:, None] + np.arange(weights.shape[1])
    dense = np.zeros((n, int(column.max()) + 1), np.float32)
    np.put_along_axis(dense, column, weights, axis=1)
    bands = []
    for k, begin in enumerate(begins.tolist()):
        low, high = max(begin, window[0]), min(begin + dense.shape[1], window[1])
        o = slice(k * block, min((k + 1) * block, n))
        i = slice(low - window[0], high - window[0])
        bands.append((o, i, dense[o, low - begin : high - begin]))
    return bands


def _weights(
    start: int, n: int, ratio: float, length: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The first level pixel of each output pixel, (n,), and its weights, (n, taps).

    Weights are whole multiples of 1 / PARTS and sum to 1.
    """
    reach = max(ratio, 1.0)
    centre = np.arange(start + 0.5, start + n) * ratio
    first = np.floor(centre - reach + 0.5).astype(np.int64)
    taps = first[:, None] + np.arange(math.ceil(2 * reach))
    x = (taps + 0.5 - centre[:, None]) / reach
    kernel = np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))
    kernel[(np.abs(x) >= 1) | (taps < 0) | (taps >= length)] = 0
    # running sums are rounded, not weights: the last sum is then whole, and errors cancel
    running = np.cumsum(kernel, axis=1)
    whole = np.rint(running * (PARTS / running[:, -1:]))
    return first, (np.diff(whole, axis=1, prepend=0) / PARTS).astype(np.float32)


def _times(span: slice, channels: int) -> slice:
    return slice(span.start * channels, span.stop * channels)


def _interleaved(weights: FloatArray, channels: int) -> FloatArray:
    """Weights for interleaved channels: (out, in) -> (in * channels, out * channels)."""
    n_out, n_in = weights.shape
    spread = np.zeros((n_in, channels, n_out, channels), np.float32)
    for c in range(channels):
        spread[:, c, :, c] = weights.T
    return spread.reshape(n_in * channels, n_out * channels)


def area_mean(
    pixels: ByteArray, spans_y: npt.NDArray[np.float64], spans_x: npt.NDArray[np.float64]
) -> ByteArray:
    """The exact area mean over a grid of rectangles: (h, w, 3) -> (len(spans_y), len(spans_x), 3).

    Spans are (n, 2) starts and stops in pixels; 0 is the outer border of the first pixel. Fractions
    of a pixel count by their area.
    """
    rows = _mean_over(pixels, spans_y)
    both = _mean_over(rows.swapaxes(0, 1), spans_x).swapaxes(0, 1)
    return np.floor(both + 0.5).astype(np.uint8)


def _mean_over(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.float64], spans: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The means over spans of axis 0, as differences of the running sum: (spans, w, 3)."""
    n = values.shape[0]
    kind = np.uint32 if values.dtype == np.uint8 else np.float64
    below = np.zeros((n + 1, *values.shape[1:]), kind)
    np.cumsum(values, axis=0, dtype=kind, out=below[1:])
    whole = np.clip(spans.astype(np.int64), 0, n)
    fraction = (spans - whole)[..., None, None]
    integral = below[whole] + fraction * values[np.minimum(whole, n - 1)]  # (spans, 2, w, 3)
    length = (spans[:, 1] - spans[:, 0])[:, None, None]
    return np.asarray((integral[:, 1] - integral[:, 0]) / length)
