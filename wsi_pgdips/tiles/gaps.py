"""Glass in gaps of the tissue, or bounded by the palest tissue, where none lies around it."""

from __future__ import annotations

import numpy as np

from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray
from wsi_pgdips.tiles.fill import BLACK, WHITE, beyond
from wsi_pgdips.tiles.pixels import bordering, large, near
from wsi_pgdips.tiles.whitepoint import (
    FLAT_OD,
    MIN_PIXELS,
    PANE_SPREAD,
    PEAK_SUM,
    SEED_SUM,
    brightest_mode,
    flat_pixels,
)

_LUMEN_PIXELS, _LUMEN_SUM = 200, 0.10
_BRIGHTER_OD, _BRIGHTER_SHARE = 0.02, 0.005
_PALEST, _LEAST_BACKGROUND = 1.0, 0.02  # percentile, OD


def find_lumens(rgb: ByteArray, fill: BoolArray) -> BoolArray:
    """Find glass in gaps of the tissue, on an overview at about 2 um per pixel: (H, W) bool.

    Such pixels are flat over 10 um, nearly achromatic, and close to the brightest of their kind.
    None are returned if there are few of them, or if the image has pixels brighter than glass.

    Args:
        rgb: (H, W, 3) uint8. fill: (H, W) bool, pixels that were never scanned.
    """
    from scipy import ndimage

    od = rgb_to_od(beyond(rgb, fill))
    padding = (large(rgb.min(2) >= WHITE, 16) | bordering(rgb.max(2) <= BLACK)) & ~fill
    flat = flat_pixels(od, padding, FLAT_OD) & ~fill
    nowhere = np.zeros_like(flat)
    total = od.sum(2)
    peak = brightest_mode(total[flat], MIN_PIXELS)
    if flat.sum() < _LUMEN_PIXELS or peak is None:
        return nowhere
    colour = np.median(od[flat & (np.abs(total - peak) < PEAK_SUM)], axis=0)
    step = od - colour
    kept = flat & (step.sum(2) > -SEED_SUM) & (step.sum(2) < _LUMEN_SUM)
    kept &= np.ptp(step, axis=2) < PANE_SPREAD
    smooth = ndimage.uniform_filter(total, 5, mode="nearest")  # so that ringing does not count
    brighter = (smooth < peak - _BRIGHTER_OD) & ~near(padding, 2) & ~fill
    return kept if brighter.sum() < _BRIGHTER_SHARE * (~fill).sum() else nowhere


def palest(rgb: ByteArray, fill: BoolArray, white_counts: bool) -> FloatArray:
    """The OD that all but 1 % of the scanned pixels exceed, for each channel: (3,).

    Glass cannot be denser, as it would then be visible.

    Args:
        rgb: (H, W, 3) overview at about 2 um per pixel. fill: (H, W) bool, never scanned.
        white_counts: whether white pixels are saturated glass.
    """
    left_out = fill | bordering((rgb.max(2) <= BLACK) & ~fill)
    if not white_counts:
        left_out = left_out | large(rgb.min(2) >= WHITE, 16)
    scanned = rgb[~left_out] if not left_out.all() else rgb.reshape(-1, 3)
    return np.asarray(np.percentile(rgb_to_od(scanned), _PALEST, axis=0), np.float32)


def assumed_background(of_palest: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The B to assume without usable glass, (3,), and the part added by its floor, (3,).

    B is half of the palest OD, but at least 0.02 OD (decisions 26, 30).
    """
    half = np.maximum(of_palest, 0) / 2
    background = np.maximum(half, _LEAST_BACKGROUND)
    return np.asarray(background, np.float32), np.asarray(background - half, np.float32)
