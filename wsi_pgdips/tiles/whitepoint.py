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
from wsi_pgdips.tiles.surface import fit_surface

# limits of the standard deviation over 5x5 overview pixels: to search for glass, and to be glass
FLATTEST_OD, FLAT_OD = 0.004, 0.006
MIN_SHARE, MIN_PIXELS = 0.002, 100  # of the scanned area, and of flat pixels in any case
_MAX_SUM, _MAX_SPREAD = 0.5, 0.10  # the darkest and the most tinted glass accepted, OD
_TINT_SPREAD, _TINT_SHARE = 0.20, 0.05  # a stronger tint is accepted if glass covers this share
_WHITE, _BLACK = 254, 8
_PEAK, _SEED, _BIN = 0.02, 0.05, 0.005  # OD sum
_TOLERANCE = (0.06, 0.10)  # OD sum
_SAMPLE = 20_000
# a further pane of glass, as under a second block or beyond an edge of the cover slip
_PANE_SHARE = 0.01  # of the scanned area
_PANE_SUM, _PANE_SPREAD = 0.15, 0.03  # most OD from the first pane; a larger spread is a colour
_BLUR = 1 / 96  # sigma that smooths the border of panes, relative to the glass's longer side
# glass in gaps of the tissue
_LUMEN_PIXELS, _LUMEN_SUM = 200, 0.10
_BRIGHTER_OD, _BRIGHTER_SHARE = 0.02, 0.005
# without usable glass
_PALEST, _LEAST_BACKGROUND = 1.0, 0.02  # percentile, OD


@dataclass(frozen=True, eq=False)
class Glass:
    """The glass of an overview of (H, W) pixels.

    Attributes:
        clear: (H, W) bool, flat pixels of the glass's colour; all False if none was found.
        padding: (H, W) bool, never scanned (white or black fill): neither tissue nor glass.
        excess: (H, W) float32, OD above glass, summed over the channels.
        tolerance: excess below which a pixel is glass.
        texture: (H, W) float32, standard deviation of OD over 3x3 pixels, largest channel.
        flags: ``no_glass``, or ``glass_saturated`` if glass is as white as padding.
    """

    clear: BoolArray
    padding: BoolArray
    excess: FloatArray
    tolerance: float
    texture: FloatArray
    flags: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        return "no_glass" not in self.flags


def find_glass(rgb: ByteArray) -> Glass:
    """Find the glass of a slide on its overview.

    The brightest mode among flat pixels is glass if it covers at least 0.2 % of the scanned area.
    From there the model grows along a plane, so that it follows a drift of the illumination. Pure
    white counts as fill, unless there is no other glass.

    Args:
        rgb: (H, W, 3) uint8 at about 8 um per pixel.
    """
    od = rgb_to_od(rgb)
    texture = _local_std(od, 3)
    white, black = rgb.min(2) >= _WHITE, rgb.max(2) <= _BLACK
    padding = _large(white, 16) | _bordering(black)
    scanned, filled = int((~padding).sum()), int((white & padding).sum())
    model = _grow(od, padding, max(MIN_SHARE * scanned, MIN_PIXELS, 0.02 * filled), scanned)
    if model is None:
        model = _grow(od, padding, max(_TINT_SHARE * scanned, MIN_PIXELS), scanned, _TINT_SPREAD)
    if model is not None:
        clear, excess, tolerance = model
        return Glass(clear & ~_near(padding, 2), padding, excess, tolerance, texture)
    total = np.asarray(od.sum(2), np.float32)
    black_fill = _bordering(black)
    if white.sum() >= MIN_SHARE * max(int((~black_fill).sum()), 1):
        # there is no other glass: the white point is clipped, or this is a crop on white fill
        tolerance = _TOLERANCE[0]
        clear = white | (_flat(od, black_fill, FLAT_OD) & (total < tolerance))
        return Glass(clear, black_fill, total, tolerance, texture, ("glass_saturated",))
    nowhere = np.zeros(total.shape, bool)
    return Glass(nowhere, padding, total, 0.0, texture, ("no_glass",))


def find_lumens(rgb: ByteArray) -> BoolArray:
    """Find glass in gaps of the tissue, on an overview at about 2 um per pixel: (H, W) bool.

    Such pixels are flat over 10 um, nearly achromatic, and close to the brightest of their kind.
    None are returned if there are few of them, or if the image has pixels brighter than glass.
    """
    from scipy import ndimage

    od = rgb_to_od(rgb)
    padding = _large(rgb.min(2) >= _WHITE, 16) | _bordering(rgb.max(2) <= _BLACK)
    flat = _flat(od, padding, FLAT_OD)
    nowhere = np.zeros_like(flat)
    total = od.sum(2)
    peak = _brightest_mode(total[flat], MIN_PIXELS)
    if flat.sum() < _LUMEN_PIXELS or peak is None:
        return nowhere
    colour = np.median(od[flat & (np.abs(total - peak) < _PEAK)], axis=0)
    step = od - colour
    kept = flat & (step.sum(2) > -_SEED) & (step.sum(2) < _LUMEN_SUM)
    kept &= np.ptp(step, axis=2) < _PANE_SPREAD
    smooth = ndimage.uniform_filter(total, 5, mode="nearest")  # so that ringing does not count
    brighter = (smooth < peak - _BRIGHTER_OD) & ~_near(padding, 2)
    return kept if brighter.mean() < _BRIGHTER_SHARE else nowhere


def palest(rgb: ByteArray, white_is_fill: bool) -> FloatArray:
    """The OD that all but 1 % of the scanned pixels exceed, for each channel: (3,).

    Glass cannot be denser, as it would then be visible.

    Args:
        rgb: (H, W, 3) overview at about 2 um per pixel. white_is_fill: white pixels are fill; if
            False, they are saturated glass.
    """
    fill = _bordering(rgb.max(2) <= _BLACK)
    if white_is_fill:
        fill |= _large(rgb.min(2) >= _WHITE, 16)
    scanned = rgb[~fill] if not fill.all() else rgb.reshape(-1, 3)
    return np.asarray(np.percentile(rgb_to_od(scanned), _PALEST, axis=0), np.float32)


def assumed_background(of_palest: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The B to assume without usable glass, (3,), and the part added by its floor, (3,).

    B is half of the palest OD, but at least 0.02 OD (decisions 26, 30).
    """
    half = np.maximum(of_palest, 0) / 2
    background = np.maximum(half, _LEAST_BACKGROUND)
    return np.asarray(background, np.float32), np.asarray(background - half, np.float32)


def _flat(od: FloatArray, padding: BoolArray, limit: float, tint: float = _MAX_SPREAD) -> BoolArray:
    """Find bright, nearly achromatic pixels in flat pieces, away from padding: (H, W) bool."""
    from scipy import ndimage

    total, spread = od.sum(2), np.ptp(od, axis=2)
    flat = (_local_std(od, 5) < limit) & (total < _MAX_SUM) & (spread < tint)
    flat &= ~_near(padding, 3)
    return np.asarray(ndimage.binary_opening(flat, np.ones((3, 3), bool)), bool)


def _grow(
    od: FloatArray, padding: BoolArray, needed: float, scanned: int, tint: float = _MAX_SPREAD
) -> tuple[BoolArray, FloatArray, float] | None:
    """Grow the glass from the brightest mode that has at least ``needed`` pixels.

    Returns:
        Glass pixels (H, W), the excess over the glass's plane (H, W), and the tolerance; None if
        there is no glass.
    """
    total = od.sum(2)
    peak = _brightest_mode(total[_flat(od, padding, FLATTEST_OD, tint)], needed)
    if peak is None:
        return None
    flat = _flat(od, padding, FLAT_OD, tint)
    clear = flat & (np.abs(total - peak) < _SEED)
    grid = np.ogrid[: od.shape[0], : od.shape[1]]
    excess, tolerance = np.asarray(total - peak, np.float32), _SEED
    for _ in range(8):
        y, x = np.nonzero(clear)
        step = max(len(y) // _SAMPLE, 1)
        y, x = y[::step], x[::step]
        surface = fit_surface(y, x, od[y, x], margin=0.02)
        plane = surface.at(*grid)
        excess = np.asarray(total - plane.sum(-1), np.float32)
        inside = excess[clear]
        sigma = 1.4826 * float(np.median(np.abs(inside - np.median(inside))))
        tolerance = float(np.clip(4 * sigma, *_TOLERANCE))
        grown = flat & (np.abs(excess) < tolerance)
        if not grown.any() or np.array_equal(grown, clear):
            break
        clear = grown
    panes = _further_panes(od, flat, clear, plane, scanned)
    if panes.any():
        clear = clear | panes
        excess = _above_panes(total, clear, plane)
    # pixels within 16 um of the end of the glass fail the test of flatness
    return (np.abs(excess) < tolerance) & _near(clear, 2), excess, tolerance


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

    labels, n = ndimage.label(flat & ~_near(clear, 1))
    out = np.zeros_like(clear)
    area = np.bincount(labels.ravel(), minlength=n + 1)
    for k in np.nonzero(area >= max(_PANE_SHARE * scanned, MIN_PIXELS))[0]:
        if k == 0:
            continue
        piece = labels == k
        step = np.median(od[piece] - plane[piece], axis=0)
        rest = od[piece].sum(1) - plane[piece].sum(1) - step.sum()
        quiet = 1.4826 * float(np.median(np.abs(rest))) < _TOLERANCE[0] / 4
        if quiet and abs(step.sum()) < _PANE_SUM and np.ptp(step) < _PANE_SPREAD:
            out |= piece
    return out


def _above_panes(total: FloatArray, clear: BoolArray, plane: npt.NDArray[np.float64]) -> FloatArray:
    """The OD sum above the nearest glass, (H, W): above the plane, corrected for nearby panes."""
    from scipy import ndimage

    above = np.asarray(total - plane.sum(-1), np.float64)
    nearest = ndimage.distance_transform_edt(~clear, return_distances=False, return_indices=True)
    level = ndimage.uniform_filter(np.where(clear, above, 0.0), 9)
    mass = ndimage.uniform_filter(clear.astype(np.float64), 9)
    level = np.divide(level, mass, out=np.zeros_like(level), where=mass > 1e-6)[tuple(nearest)]
    box = bounding_box(clear)
    level = ndimage.gaussian_filter(level, _BLUR * max(box.h, box.w))
    return np.asarray(above - level, np.float32)


def _brightest_mode(total: FloatArray, needed: float) -> float | None:
    """The OD sum of the brightest local mode with at least ``needed`` pixels, or None."""
    if total.size < needed:
        return None
    counts = np.bincount((total / _BIN).astype(int), minlength=int(_MAX_SUM / _BIN) + 2)
    reach = round(_PEAK / _BIN)
    mass = np.convolve(counts, np.ones(2 * reach + 1), mode="same")
    centres = (np.arange(len(counts)) + 0.5) * _BIN
    for i in np.nonzero(mass >= needed)[0]:
        around = slice(max(i - reach, 0), i + reach + 1)
        if mass[i] == mass[around].max():
            return float(np.average(centres[around], weights=counts[around]))
    return None


def _local_std(od: FloatArray, size: int) -> FloatArray:
    """The standard deviation over size x size pixels, (H, W), the largest of the channels."""
    from scipy import ndimage

    out = np.zeros(od.shape[:2], np.float32)
    for c in range(od.shape[2]):
        # float64 and centred, because a difference of two squares exceeds float32's precision
        z = od[..., c].astype(np.float64) - float(od[..., c].mean())
        mean = ndimage.uniform_filter(z, size, mode="nearest")
        square = ndimage.uniform_filter(z * z, size, mode="nearest")
        np.maximum(out, np.sqrt(np.maximum(square - mean * mean, 0)), out=out, casting="same_kind")
    return out


def _near(mask: BoolArray, pixels: int) -> BoolArray:
    """Grow a mask by a square of side 2 * pixels + 1."""
    from scipy import ndimage

    grown = ndimage.maximum_filter(mask.astype(np.uint8), 2 * pixels + 1, mode="constant")
    return np.asarray(grown, bool)


def _large(mask: BoolArray, area: int) -> BoolArray:
    """Keep the connected pieces of at least ``area`` pixels."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=n + 1) >= area
    keep[0] = False
    return np.asarray(keep[labels], bool)


def _bordering(mask: BoolArray) -> BoolArray:
    """Keep the connected pieces that reach the border of the image."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    keep = np.zeros(n + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep[edge] = True
    keep[0] = False
    return np.asarray(keep[labels], bool)
