"""Which pixels of an overview are tissue, and which stained pixels are left out as dust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsi_pgdips.records import BoolArray, ByteArray
from wsi_pgdips.tiles.fill import beyond
from wsi_pgdips.tiles.maskers import dark_mask
from wsi_pgdips.tiles.pixels import near
from wsi_pgdips.tiles.whitepoint import Glass

Masker = Literal["od", "otsu", "morphological"]
MASKERS = ("od", "otsu", "morphological")
Specimen = Literal["tissue", "cytology"]
HOLE_UM = 200.0  # a hole of this diameter or less is filled
GAP_UM = 24.0  # clefts twice as wide are closed
LEAST_UM2 = {"tissue": 500.0, "cytology": 20.0}  # of stained pixels; pieces with less are dust
_PALE_UM2 = 20_000.0  # of rough pixels, in a piece without stained ones
_STAINED_OD = 0.15  # OD sum above glass that no glass has
_ROUGH_OD = 0.015  # OD sum above glass that rough pixels need
_CYTOLOGY_SHARE = 0.25  # of what is stained, in pieces that are dust beside tissue


@dataclass(frozen=True, eq=False)
class Solid:
    """The tissue of an overview of (H, W) pixels.

    Attributes:
        tissue: (H, W) bool, with its holes, undilated.
        dust: (H, W) bool, stained pixels of pieces that are too small.
        scattered: whether small pieces hold so much of the stain that this may be cytology.
    """

    tissue: BoolArray
    dust: BoolArray
    scattered: bool = False


def find_solid(
    rgb: ByteArray, glass: Glass, mpp: float, masker: Masker, specimen: Specimen
) -> Solid:
    """Find the tissue of an overview with its holes, undilated.

    With ``od``, a piece counts if it holds enough pixels far above glass, or far more that have the
    texture of tissue. With tiatoolbox's maskers, tissue is what they find.

    Args:
        rgb: (H, W, 3) uint8. glass: its glass. mpp: micrometres per pixel.
    """
    from scipy import ndimage

    inside = ~glass.padding
    if not glass.found:
        return Solid(inside, np.zeros_like(inside))
    if masker == "od":
        dense = (glass.excess > glass.tolerance) & inside
        rough = (
            (glass.texture > glass.rough)
            & (glass.excess > min(glass.tolerance / 2, _ROUGH_OD))
            & inside
        )
        found, pale = dense | rough, dense & rough
        stained = dense & (glass.excess > _STAINED_OD)
    else:
        # fill would form a class of its own
        found = stained = dark_mask(beyond(rgb, glass.padding), masker, mpp) & inside
        pale = np.zeros_like(found)
    labels, n = ndimage.label(found, np.ones((3, 3), bool))
    area = np.bincount(labels[stained], minlength=n + 1) * mpp**2
    keep = area >= LEAST_UM2[specimen]
    keep |= np.bincount(labels[pale], minlength=n + 1) * mpp**2 >= _PALE_UM2
    keep[0] = False
    small = area[1:][area[1:] < LEAST_UM2["tissue"]].sum()
    return Solid(
        np.asarray(keep[labels], bool),
        np.asarray(stained & ~keep[labels], bool),
        bool(small > _CYTOLOGY_SHARE * area[1:].sum()),
    )


def filled(tissue: BoolArray, mpp: float, outside: BoolArray | None = None) -> BoolArray:
    """Close narrow clefts and fill holes up to ``HOLE_UM``; larger holes are lumens or glass.

    Args:
        tissue: (H, W) bool. mpp: micrometres per pixel.
        outside: (H, W) bool, not scanned; what touches it is no hole.
    """
    from scipy import ndimage

    gap = GAP_UM / mpp
    pad = int(np.ceil(gap)) + 1
    if outside is None:
        outside = np.zeros_like(tissue)
    # closing by distance: as beyond the border, tissue goes on in what was not scanned
    whole = np.pad(beyond(tissue, outside), pad, mode="edge")
    grown = dilated(whole, gap)
    closed = ndimage.distance_transform_edt(grown) > gap if not grown.all() else grown
    out = tissue | (np.asarray(closed, bool)[pad:-pad, pad:-pad] & ~outside)
    labels, n = ndimage.label(~(out | outside))
    limit = np.pi * (HOLE_UM / 2 / mpp) ** 2
    small = np.bincount(labels.ravel(), minlength=n + 1) <= limit
    small[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1], labels[near(outside, 1)]):
        small[edge] = False
    return np.asarray(out | small[labels])


def dilated(mask: BoolArray, radius: float) -> BoolArray:
    """Grow a mask by a disk of ``radius`` pixels."""
    from scipy import ndimage

    if not mask.any():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius, bool)
