"""Ink on the overview: strokes of a pen and paint, which are dense and have no texture.

Over 40 um the density of real tissue varies by more than a twentieth of itself on the overview of
any slide, that of ink on the cover slip by less: it lies out of focus and has no cells. A flat
piece of a colour that the stains make, or that much of the slide's tissue has, such as colloid, is
tissue all the same. From flat pieces ink grows over pixels of its own colour, to its soft edges,
and over tissue that lies under it (decision 55).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.tiles.pixels import local_std

DENSE_OD, PALE_OD = 0.15, 0.05  # OD sum of ink's middle, and of its soft edges
FLAT = 0.06  # standard deviation over mean density, over 40 um
LEAST_UM2 = 1500.0  # of a flat piece
NEAR_UM = 300.0  # around ink, colours are not taken for the tissue's
SQUARE_UM = 256.0
# a piece is tissue if its colour makes up so much of so many squares of tissue elsewhere
_KIN_DEG, _KIN_SHARE, _KIN_SQUARES = 5.0, 0.05, 0.35
_LEAST_IN_SQUARE, _LEAST_SQUARES = 0.1, 4
_STAIN_DEG = 6.0
_GROWN_DEG, GAP_UM = 7.0, 200.0
# over tissue: least share of the ink's density; shares of other tissue that may be as dense, and of
# what is dense that may be ink over tissue
_OVER, _ALIKE, _MOST_OVER = 0.8, 0.01, 0.3
MARGIN_UM = 24.0  # ink is dilated by so much


def find_ink(
    y: FloatArray, scanned: BoolArray, mpp: float, stains: Sequence[FloatArray]
) -> tuple[BoolArray, bool]:
    """Find ink on the overview of a slide.

    Args:
        y: (H, W, 3) OD above glass. scanned: (H, W) pixels that are no fill.
        mpp: micrometres per pixel of the overview, about 8.
        stains: (N, 3) vectors of the stains, and alternatives; what they explain is no ink.

    Returns:
        (H, W) bool, and whether ink goes on over tissue where it is too pale to be told from it.
    """
    from scipy import ndimage

    total = y.sum(2)
    middle = np.maximum(ndimage.uniform_filter(y.max(2), 5, mode="nearest"), 1e-3)
    dense = scanned & (total > DENSE_OD)
    flat = ndimage.binary_opening(dense & (local_std(y, 5) < FLAT * middle), np.ones((3, 3)))
    labels, n = ndimage.label(flat, np.ones((3, 3)))
    if n == 0:
        return np.zeros(total.shape, bool), False
    direction = unit_rows(y)
    far = dense & (ndimage.distance_transform_edt(~flat) > NEAR_UM / mpp)
    squares = _squares(far, round(SQUARE_UM / mpp))
    out, lost = np.zeros(total.shape, bool), False
    beside = out  # near what has been found
    area = np.bincount(labels.ravel())[1:] * mpp**2
    for k in np.argsort(-area, kind="stable") + 1:
        small = area[k - 1] < LEAST_UM2
        if small and not beside.any():
            break
        piece = labels == k
        # a stroke goes on in smaller pieces
        if small and not beside[piece].any():
            continue
        colour = unit_rows(y[piece].mean(0))
        if any(_is_stain(colour, rows) for rows in stains):
            continue
        kin = direction[far] @ colour > np.cos(np.radians(_KIN_DEG))
        if _share_of_squares(squares, kin) > _KIN_SQUARES:
            continue
        own = scanned & (total > PALE_OD) & (direction @ colour > np.cos(np.radians(_GROWN_DEG)))
        own = _reached(own | piece, piece, mpp)
        over = scanned & (y > _OVER * y[piece].mean(0)).all(2)
        both = _reached(over | own, piece, mpp)
        # where tissue alone is often as dense, the ink cannot be followed over it
        alike = np.count_nonzero(over & far & ~both) > _ALIKE * np.count_nonzero(far)
        if not alike and np.count_nonzero(both & ~own) < _MOST_OVER * np.count_nonzero(dense):
            own = both
        elif np.count_nonzero(both & ~own & _within(own, MARGIN_UM, mpp)) * mpp**2 > LEAST_UM2:
            lost = True
        out = out | own
        beside = _within(out, GAP_UM, mpp)
    return _within(out, MARGIN_UM, mpp), lost


def _within(found: BoolArray, distance_um: float, mpp: float) -> BoolArray:
    """Find the pixels within a distance of those found."""
    from scipy import ndimage

    if not found.any():
        return found
    return np.asarray(ndimage.distance_transform_edt(~found) <= distance_um / mpp)


def _is_stain(colour: FloatArray, rows: FloatArray) -> bool:
    """Return whether a unit colour lies within ``_STAIN_DEG`` of the cone of (N, 3) stains."""
    from scipy.optimize import nnls

    _, outside = nnls(rows.T.astype(np.float64), colour.astype(np.float64))
    return bool(outside < np.sin(np.radians(_STAIN_DEG)))


def _reached(own: BoolArray, piece: BoolArray, mpp: float) -> BoolArray:
    """Find the pixels of an ink's colour that are connected with a piece of it.

    Tissue that a stroke crosses does not end the stroke, and specks do not carry it on.
    """
    from scipy import ndimage

    labels, n = ndimage.label(own)
    large = np.bincount(labels.ravel(), minlength=n + 1) * mpp**2 >= LEAST_UM2
    large[0] = False
    near = _within(large[labels], GAP_UM / 2, mpp)
    groups, _ = ndimage.label(near | piece)
    return np.asarray((large[labels] & np.isin(groups, np.unique(groups[piece]))) | piece)


def _squares(mask: BoolArray, side: int) -> npt.NDArray[np.intp]:
    """Number the squares of ``side`` pixels that hold enough of a mask.

    Returns:
        (K,) number of the square of each True pixel, -1 in squares with too few.
    """
    y, x = np.nonzero(mask)
    number = y // side * (mask.shape[1] // side + 1) + x // side
    count = np.bincount(number, minlength=1)
    return np.where(count[number] >= _LEAST_IN_SQUARE * side**2, number, -1)


def _share_of_squares(square: npt.NDArray[np.intp], own: BoolArray) -> float:
    """The share of the squares in which pixels ``own`` make up ``_KIN_SHARE``, 0 if few squares."""
    used = square >= 0
    count = np.bincount(square[used], minlength=1)
    if np.count_nonzero(count) < _LEAST_SQUARES:
        return 0.0
    kin = np.bincount(square[used & own], minlength=len(count))
    return float((kin >= _KIN_SHARE * count)[count > 0].mean())
