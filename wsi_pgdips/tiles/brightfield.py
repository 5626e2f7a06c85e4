"""Refusal of pictures that are not brightfield, by their background and their histogram."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SlideError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray
from wsi_pgdips.tiles.fill import BLACK, beyond
from wsi_pgdips.tiles.pixels import local_std, near
from wsi_pgdips.tiles.whitepoint import Glass

_LEAST_PIXELS = 64
_PALEST, _PALEST_SPREAD = 1.0, 1.2  # percentile; most OD between its channels
_BRIGHT = 99.0  # percentile
_DARK, _DARK_SHARE = 0.25, 0.25  # relative to the brightest; of the scanned pixels
_FLAT_COUNTS = 2.0  # standard deviation over 5x5 overview pixels
_PURE, _LIT, _PURE_SHARE = 0.08, 40, 0.05  # relative; counts; of the scanned pixels
_OUTLINE, _RAGGED = 40, 0.25  # pixels; of them, that a majority among 9x9 pixels changes
_STILL, _CONTRAST = 2.0, 30.0  # counts between the 0.1th and the 99.9th percentile
_GREY = 1  # counts between the channels
_CHANNELS = ("red", "green", "blue")


def require_brightfield(rgb: ByteArray, glass: Glass, fill: BoolArray, name: str) -> None:
    """Refuse a picture in which light is not absorbed on its way from a bright background.

    Args:
        rgb: (H, W, 3) uint8 overview. glass: found on it. fill: (H, W) bool, never scanned.
        name: of the slide, for the message.

    Raises:
        SlideError: the background is dark, or lacks a colour; or a picture has only grey, or only
            one channel, which no stain on glass has.
    """
    scanned = ~(fill | glass.padding)
    if scanned.sum() < _LEAST_PIXELS:
        return
    pixels = rgb[scanned].astype(np.int16)
    found = _without_colour(pixels) or (None if _has_glass(glass) else _dark(rgb, fill, scanned))
    if found is not None:
        raise SlideError(
            "this is not a brightfield picture",
            expected="stains that absorb light, on a bright background",
            found=found,
            where=name,
            hint="fluorescence, dark-field, inverted and greyscale pictures have no optical "
            "density; give the brightfield scan",
        )


def _has_glass(glass: Glass) -> bool:
    if "glass_saturated" in glass.flags:
        return bool(glass.clear.sum() >= _DARK_SHARE * (~glass.padding).sum())
    return glass.found


def _without_colour(pixels: npt.NDArray[np.int16]) -> str | None:
    """Say what a histogram lacks that every stained slide has; (n, 3) scanned pixels."""
    low, high = np.percentile(pixels, [0.1, 99.9], axis=0)
    contrast = high - low
    if contrast.max() < _CONTRAST:
        return None
    spread = float(np.percentile(np.ptp(pixels, axis=1), 99.9))
    if spread <= _GREY:
        return f"only grey: red, green and blue differ by at most {spread:.0f} of 255 counts"
    for channel, brightest in zip(_CHANNELS, high, strict=True):
        if brightest <= BLACK:
            return f"no {channel} light anywhere: at most {brightest:.0f} of 255 counts"
    still = [c for c, r in zip(_CHANNELS, contrast, strict=True) if r <= _STILL]
    if len(still) > 1:
        return f"a single colour channel: {' and '.join(still)} vary by at most {_STILL:.0f} counts"
    return None


def _dark(rgb: ByteArray, fill: BoolArray, scanned: BoolArray) -> str | None:
    """Say what is wrong with the background of a picture in which no glass was found."""
    palest = np.percentile(rgb_to_od(rgb[scanned]), _PALEST, axis=0)
    if np.ptp(palest) > _PALEST_SPREAD:
        weak = int(np.argmax(palest))
        return (
            f"no white anywhere: even of the palest 1 % the {_CHANNELS[weak]} has an optical "
            f"density of {palest[weak]:.2f}, the {_CHANNELS[int(np.argmin(palest))]} of "
            f"{palest.min():.2f}"
        )
    light = rgb.max(2)
    pure = (np.median(rgb, axis=2) < _PURE * light) & (light > _LIT)
    if (part := float(pure[scanned].mean())) > _PURE_SHARE:
        return (
            f"colours that no stain has: in {part:.0%} of the picture two channels have less than "
            f"{_PURE:.0%} of the light of the third"
        )
    bright = float(np.percentile(light[scanned], _BRIGHT))
    black = light <= BLACK
    if _is_ragged(black):
        scanned = scanned | black
    flat = local_std(beyond(rgb, fill & ~scanned).astype(np.float32), 5) < _FLAT_COUNTS
    dark = (flat | black) & (light < _DARK * bright) & scanned
    share = float(dark.sum() / scanned.sum())
    if share > _DARK_SHARE:
        return (
            f"a dark background: {share:.0%} of the picture is flat or black, with less than "
            f"{_DARK:.0%} of the light of its brightest parts ({bright:.0f} of 255 counts)"
        )
    return None


def _is_ragged(black: BoolArray) -> bool:
    """Return whether black has the outline of shining objects; that of fill is straight or round"""
    from scipy import ndimage

    outline = int((near(black, 1) & ~black).sum())
    smooth = ndimage.uniform_filter(black.astype(np.float64), 9) > 0.5
    return outline >= _OUTLINE and bool((black ^ smooth).sum() > _RAGGED * outline)
