"""Bare glass on the overview, and the density of everything else above glass.

Glass is bright, nearly achromatic and, above all, flat: over 40 um the overview of real slides
varies by less than 0.005 OD on glass and by more than 0.008 OD on any tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import bounding_box
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray
from wsi_pgdips.tiles.fill import BLACK, WHITE, beyond
from wsi_pgdips.tiles.pixels import between_channels, bordering, large, local_std, near
from wsi_pgdips.tiles.surface import fit_surface

# limits of the standard deviation over 5x5 overview pixels: to search for glass, and to be glass
FLATTEST_OD, FLAT_OD = (0.001, 0.002, 0.004), 0.006
MIN_SHARE, MIN_PIXELS = 0.002, 100  # of the scanned area, and of flat pixels in any case
# the darkest and the most tinted glass accepted (OD), and the share that it has to cover
_MAX_SUM, _MAX_SPREAD = 0.5, 0.10
_KINDS = ((_MAX_SUM, _MAX_SPREAD, MIN_SHARE), (_MAX_SUM, 0.20, 0.05), (2.0, 0.20, 0.05))
_NEAR_WHITE, _CLIPPED_SHARE = 0.04, 0.02  # OD sum; of what was scanned
_BRIGHTER, _BRIGHTER_SHARE = 0.06, 0.005  # than dark glass (OD sum); at most, of what was scanned
PEAK_SUM, SEED_SUM, _BIN = 0.02, 0.05, 0.005  # OD sum
# glass of one slide: its own noise, within limits that rounding and illumination set
_FLATNESS, _QUIET = 2.5, (0.0015, FLAT_OD)  # times the 90th percentile of its flattest pixels
_ROUGHNESS, _ROUGH = 3.0, (0.003, 0.010)  # the same of its texture over 3x3 pixels
_SIGMAS, _TOLERANCE = 5, (0.02, 0.10)  # OD sum
_SAMPLE = 20_000
_STEPS = 24  # of 4 pixels each, through which glass is followed
_WORTH = 1e-3  # least growth in a step
# a further pane of glass, as under a second block or beyond an edge of the cover slip
_PANE_SHARE = 0.01  # of the scanned area
_PANE_SUM, PANE_SPREAD = 0.15, 0.03  # most OD from the first pane; a larger spread is a colour
_PANE_NOISE = 0.015  # OD sum
_BLUR = 1 / 96  # sigma that smooths the border of panes, relative to the glass's longer side


@dataclass(frozen=True, eq=False)
class Glass:
    """The glass of an overview of (H, W) pixels.

    Attributes:
        clear: (H, W) bool, flat pixels of the glass's colour; all False if none was found.
        padding: (H, W) bool, never scanned, or clipped to white: neither tissue nor glass.
        excess: (H, W) float32, OD above the glass around, summed over the channels.
        tolerance: excess below which a pixel is glass.
        texture: (H, W) float32, standard deviation of OD over 3x3 pixels, largest channel.
        rough: texture that glass does not have.
        flags: ``no_glass``, or ``glass_saturated`` if glass is as white as padding.
    """

    clear: BoolArray
    padding: BoolArray
    excess: FloatArray
    tolerance: float
    texture: FloatArray
    rough: float
    flags: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        return "no_glass" not in self.flags


def find_glass(rgb: ByteArray, fill: BoolArray | None = None) -> Glass:
    """Find the glass of a slide on its overview.

    The brightest mode among flat pixels is glass if it covers at least 0.2 % of the scanned area.
    From there the model grows along a plane, then step by step through flat pixels, so that it
    follows the illumination. Pure white counts as fill, unless there is no other glass.

    Args:
        rgb: (H, W, 3) uint8 at about 8 um per pixel.
        fill: (H, W) bool, pixels that were never scanned and have no say (see ``tiles.fill``).
    """
    from scipy import ndimage

    if fill is None:
        fill = np.zeros(rgb.shape[:2], bool)
    seen = beyond(rgb, fill)
    od = rgb_to_od(seen)
    texture = local_std(od, 3)
    white, black = (rgb.min(2) >= WHITE) & ~fill, (rgb.max(2) <= BLACK) & ~fill
    # of what was scanned: neither of these shows the colour of glass
    clipped, dark = large(white, 16), bordering(black)
    padding = fill | clipped | dark
    scanned = int((~padding).sum())
    beside = 0.02 * int(clipped.sum())
    total = np.asarray(od.sum(2), np.float32)
    for most, spread, share in _KINDS:
        least = max(share * scanned, MIN_PIXELS, beside)
        model = _grow(od, texture, clipped | dark, fill, least, scanned, most, spread)
        if model is None:
            continue
        clear, excess, tolerance, rough = model
        brighter = ndimage.uniform_filter(excess, 5, mode="nearest") < -_BRIGHTER
        if most > _MAX_SUM and (brighter & ~padding).sum() > _BRIGHTER_SHARE * scanned:
            continue
        # so near to much white, this is pale tissue beside overexposed glass
        if clipped.sum() > _CLIPPED_SHARE * scanned and np.median(total[clear]) < _NEAR_WHITE:
            continue
        clear &= ~near(clipped | dark, 2) & ~fill
        return Glass(clear, padding, excess, tolerance, texture, rough)
    if white.sum() >= MIN_SHARE * max(int((~dark & ~fill).sum()), 1):
        # there is no other glass: the white point is clipped
        tolerance, rough = _TOLERANCE[0], _rough(texture[white])
        quiet = float(np.median(local_std(od, 5)[white]))
        flat = flat_pixels(od, dark, _flatness(quiet)) & (total < tolerance)
        clear = (white | flat) & ~fill
        flags = ("glass_saturated",)
        return Glass(clear, dark | fill, total, tolerance, texture, rough, flags)
    nowhere = np.zeros(total.shape, bool)
    return Glass(nowhere, padding, total, 0.0, texture, _ROUGH[1], ("no_glass",))


def flat_pixels(
    od: FloatArray,
    padding: BoolArray,
    limit: float,
    deviation: FloatArray | None = None,
    *,
    most: float = _MAX_SUM,
    tint: float = _MAX_SPREAD,
) -> BoolArray:
    """Find bright, nearly achromatic pixels in flat pieces, away from padding: (H, W) bool.

    Args:
        limit: largest local standard deviation. deviation: (H, W), that over 5x5 pixels, if known.
        most, tint: largest OD sum, and largest difference between channels.
    """
    from scipy import ndimage

    total, spread = od.sum(2), between_channels(od)
    deviation = local_std(od, 5) if deviation is None else deviation
    flat = (deviation < limit) & (total < most) & (spread < tint)
    flat &= ~near(padding, 3)
    return np.asarray(ndimage.binary_opening(flat, np.ones((3, 3), bool)), bool)


def _grow(
    od: FloatArray,
    texture: FloatArray,
    padding: BoolArray,
    fill: BoolArray,
    needed: float,
    scanned: int,
    most: float,
    tint: float,
) -> tuple[BoolArray, FloatArray, float, float] | None:
    """Grow the glass from the brightest mode that has at least ``needed`` pixels.

    Returns:
        Glass pixels (H, W); the excess over the glass around (H, W); the tolerance; and the texture
        that no glass of this slide has. None if there is no glass.
    """
    total = od.sum(2)
    spread = local_std(od, 5)
    peak, quiet = np.inf, 0.0
    # pale tissue beside quiet glass may be flatter than glass of another slide
    for limit in FLATTEST_OD:
        flat = flat_pixels(od, padding, limit, spread, most=most, tint=tint) & ~fill
        mode = brightest_mode(total[flat], needed)
        if mode is not None and mode < peak - _BIN:
            peak = mode
            quiet = float(np.percentile(spread[flat & (np.abs(total - peak) < PEAK_SUM)], 90))
    if np.isinf(peak):
        return None
    flat = flat_pixels(od, padding, _flatness(quiet), spread, most=most, tint=tint) & ~fill
    clear = flat & (np.abs(total - peak) < SEED_SUM)
    if not clear.any():
        return None
    grid = np.ogrid[: od.shape[0], : od.shape[1]]
    tolerance = SEED_SUM
    for _ in range(8):
        y, x = np.nonzero(clear)
        step = max(len(y) // _SAMPLE, 1)
        y, x = y[::step], x[::step]
        plane = fit_surface(y, x, od[y, x], margin=0.02).at(*grid)
        excess = np.asarray(total - plane.sum(-1), np.float32)
        tolerance = float(np.clip(_SIGMAS * _deviation(excess[clear]), *_TOLERANCE))
        grown = flat & (np.abs(excess) < tolerance)
        if not grown.any() or np.array_equal(grown, clear):
            break
        clear = grown
    clear = clear | _further_panes(od, flat, clear, plane, scanned)
    flat |= flat_pixels(od, padding, FLAT_OD, spread, most=most, tint=tint) & ~fill
    excess, clear = _above_local(od, flat, clear, plane, tolerance)
    tolerance = float(np.clip(_SIGMAS * _deviation(excess[clear]), *_TOLERANCE))
    rough = _rough(texture[clear])
    # pixels within 16 um of the end of the glass fail the test of flatness
    clear = (np.abs(excess) < tolerance) & (texture < rough) & near(clear, 2)
    return clear, excess, tolerance, rough


def _further_panes(
    od: FloatArray,
    flat: BoolArray,
    clear: BoolArray,
    plane: npt.NDArray[np.float64],
    scanned: int,
) -> BoolArray:
    """Find flat pieces that are darker or brighter than the glass by one achromatic step: (H, W).

    Pale tissue is neither so large and flat, nor achromatic: its excess is in its stain's channels.
    """
    from scipy import ndimage

    labels, n = ndimage.label(flat & ~near(clear, 1))
    out = np.zeros_like(clear)
    area = np.bincount(labels.ravel(), minlength=n + 1)
    for k in np.nonzero(area >= max(_PANE_SHARE * scanned, MIN_PIXELS))[0]:
        if k == 0:
            continue
        piece = labels == k
        step = np.median(od[piece] - plane[piece], axis=0)
        rest = od[piece].sum(1) - plane[piece].sum(1) - step.sum()
        quiet = 1.4826 * float(np.median(np.abs(rest))) < _PANE_NOISE
        if quiet and abs(step.sum()) < _PANE_SUM and np.ptp(step) < PANE_SPREAD:
            out |= piece
    return out


def _above_local(
    od: FloatArray,
    flat: BoolArray,
    clear: BoolArray,
    plane: npt.NDArray[np.float64],
    tolerance: float,
) -> tuple[FloatArray, BoolArray]:
    """Follow the glass through flat pixels, and measure everything above the glass around it.

    Returns:
        (H, W) OD sum above the nearest glass, and (H, W) the glass.
    """
    from scipy import ndimage

    above = np.asarray(od.sum(2) - plane.sum(-1), np.float32)
    open_to = flat & ~clear & (np.abs(above) < _PANE_SUM)
    open_to[open_to] = np.ptp(od[open_to] - plane[open_to], axis=1) < PANE_SPREAD
    for _ in range(_STEPS):
        level, mass = _local_mean(above, clear)
        grown = open_to & (mass > 0) & (np.abs(above - level) < tolerance / 4)
        clear, open_to = clear | grown, open_to & ~grown
        if grown.sum() < _WORTH * clear.sum():
            break
    level, _ = _local_mean(above, clear)
    nearest = ndimage.distance_transform_edt(~clear, return_distances=False, return_indices=True)
    box = bounding_box(clear)
    level = ndimage.gaussian_filter(
        level[tuple(nearest)], _BLUR * max(box.h, box.w), mode="nearest"
    )
    return np.asarray(above - level, np.float32), clear


def _local_mean(values: FloatArray, of: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The mean over the True pixels among 9x9, (H, W), 0 where there are none, and their share."""
    from scipy import ndimage

    level = ndimage.uniform_filter(np.where(of, values, np.float32(0)), 9, mode="constant")
    mass = ndimage.uniform_filter(of.astype(np.float32), 9, mode="constant")
    mass[mass < 1e-3] = 0
    return np.divide(level, mass, out=np.zeros_like(level), where=mass > 0), mass


def _flatness(quiet: float) -> float:
    """The largest standard deviation over 5x5 pixels of glass whose usual one is known."""
    return float(np.clip(_FLATNESS * quiet, *_QUIET))


def _rough(of_glass: FloatArray) -> float:
    """The texture that no glass of a slide has, from that of its glass."""
    return float(np.clip(_ROUGHNESS * np.percentile(of_glass, 90), *_ROUGH))


def _deviation(values: FloatArray) -> float:
    """A robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def brightest_mode(total: FloatArray, needed: float) -> float | None:
    """The OD sum of the brightest local mode with at least ``needed`` pixels, or None."""
    if total.size < needed:
        return None
    counts = np.bincount((total / _BIN).astype(int), minlength=int(_MAX_SUM / _BIN) + 2)
    reach = round(PEAK_SUM / _BIN)
    mass = np.convolve(counts, np.ones(2 * reach + 1), mode="same")
    centres = (np.arange(len(counts)) + 0.5) * _BIN
    for i in np.nonzero(mass >= needed)[0]:
        around = slice(max(i - reach, 0), i + reach + 1)
        if mass[i] == mass[around].max():
            return float(np.average(centres[around], weights=counts[around]))
    return None
