"""From the pixels of a pyramid level to the output grid: which level, and which average.

Frames: ``_lvl`` are pixels of the slide's own level here, ``ratio`` level pixels an output pixel.
A level with scale n has pixel j over level-0 pixels [j n, (j + 1) n), and output pixel i lies over
[i f, (i + 1) f), so its centre is at ``x_l0 = (i + 0.5) f - 0.5``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsi_pgdips.records import ByteArray

# how far a level may misplace a pixel, in output pixels, before a finer level is taken
MAX_SHIFT = 0.25
SCALE_TOLERANCE = 1e-3
# windows of an inexact level are placed in whole level-0 pixels and interpolated
WINDOW_SHIFT_L0 = 1.0


@dataclass(frozen=True)
class Level:
    """A level of a slide's pyramid.

    Attributes:
        index: its number in the file; 0 is finest.
        shape: (height, width) in its own pixels.
        scale: level-0 pixels per pixel of this level.
        slack_l0: by how many level-0 pixels its far edge may be misplaced, given its shape.
        exact: any pixel window can be read as stored, without interpolation by the reading library.
    """

    index: int
    shape: tuple[int, int]
    scale: float
    slack_l0: float
    exact: bool


def describe_levels(shapes: Sequence[tuple[int, int]], exact: Sequence[bool]) -> tuple[Level, ...]:
    """The levels with their true scale.

    Scanners downsample by an integer n and round the shape, so 14486 -> 3621 is n = 4 and not the
    4.0006 of the shapes' ratio, which would drift by pixels over the slide. What cannot be told
    from the shapes (the rounded rest) is kept as ``slack_l0``. Levels of another aspect are left
    out.
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
    """The coarsest level fit for ``factor`` level-0 pixels per output pixel.

    Fit means: not coarser than the factor, no pixel misplaced by more than ``MAX_SHIFT`` output
    pixels, and for an integer factor an integer ratio, so that a plain mean remains to be done.
    With ``exact`` only levels are taken that can be read window by window as stored.
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
    """Whether a ratio is a whole number up to rounding errors."""
    return abs(ratio - round(ratio)) < 1e-6


def box_mean(pixels: ByteArray, ratio: int) -> ByteArray:
    """(h ratio, w ratio, 3) -> (h, w, 3): mean of squares, rounded to nearest (halves up)."""
    if ratio == 1:
        return pixels
    if ratio & (ratio - 1) == 0:
        # Pillow's is ten times faster, and exact for powers of two only
        return np.asarray(Image.fromarray(pixels).reduce(ratio))
    total = np.zeros((pixels.shape[0] // ratio, pixels.shape[1] // ratio, 3), np.uint32)
    for dy in range(ratio):
        for dx in range(ratio):
            total += pixels[dy::ratio, dx::ratio]
    n = ratio * ratio
    return ((total + n // 2) // n).astype(np.uint8)


def antialiased(
    pixels: ByteArray, box_lvl: tuple[float, float, float, float], shape: tuple[int, int]
) -> ByteArray:
    """Resample the part ``box_lvl`` = (y0, x0, y1, x1) of pixels (h, w, 3) to ``shape``.

    Hamming-windowed sinc scaled to the ratio: no negative lobes, so no bright fringes that would
    read as negative optical density. What surrounds the box serves as halo.
    """
    y0, x0, y1, x1 = box_lvl
    out = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        # in float, so that it is rounded once: Pillow rounds bytes after each axis, and where the
        # ratio makes ties, windows would differ by two counts
        plane = Image.fromarray(pixels[..., channel].astype(np.float32)).resize(
            (shape[1], shape[0]), Image.Resampling.HAMMING, box=(x0, y0, x1, y1)
        )
        out[..., channel] = np.floor(np.asarray(plane) + 0.5)
    return out


def area_mean(
    pixels: ByteArray, spans_y: npt.NDArray[np.float64], spans_x: npt.NDArray[np.float64]
) -> ByteArray:
    """Exact area mean over a grid of rectangles: (h, w, 3) -> (len(spans_y), len(spans_x), 3).

    Spans are (n, 2) start and stop in pixels, 0 at the outer border of the first pixel; fractions
    of a pixel count by their area.
    """
    rows = _mean_over(pixels, spans_y)
    both = _mean_over(rows.swapaxes(0, 1), spans_x).swapaxes(0, 1)
    return np.floor(both + 0.5).astype(np.uint8)


def _mean_over(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.float64], spans: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Means along axis 0, from differences of the running sum."""
    n = values.shape[0]
    kind = np.uint32 if values.dtype == np.uint8 else np.float64
    below = np.zeros((n + 1, *values.shape[1:]), kind)
    np.cumsum(values, axis=0, dtype=kind, out=below[1:])
    whole = np.clip(spans.astype(np.int64), 0, n)
    fraction = (spans - whole)[..., None, None]
    integral = below[whole] + fraction * values[np.minimum(whole, n - 1)]  # (spans, 2, w, 3)
    length = (spans[:, 1] - spans[:, 0])[:, None, None]
    return np.asarray((integral[:, 1] - integral[:, 0]) / length)
