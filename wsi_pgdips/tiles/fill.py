"""Pixels that no scanner wrote: unwritten tiles, surrounds, corners of a rotated picture.

Such fill is exactly constant, also at full resolution and after a JPEG, and it comes in rectangles.
Glass has noise, and where a scanner or a JPEG has flattened it, its border is not straight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, TileSource

WHITE, BLACK = 254, 8  # the darkest channel of white, the brightest of black
_GLASS_SUM, _GLASS_SPREAD = 0.5, 0.2  # OD, at most, of what may be glass
_SEEDS = 9  # overview pixels that equal their neighbours, in the least piece: 5x5 pixels
_RUN, _STRAIGHT = 5, 0.8  # pixels, and share of a border that lies in straight runs of that length
_NEARLY = 0.6  # such a share at first sight
_SAME = 2  # counts
_HOLDS = 0.1  # share of a line
_PIECES = 50  # largest pieces of which several places are looked at
_LOOKS = 500  # at the borders of fill
_MARGIN = 2  # overview pixels beside fill that may hold a part of it, or the ringing of a JPEG
_REACH = 8  # overview pixels around what is surely inside of a piece, to find its borders in
Scalar = TypeVar("Scalar", bound=np.generic)
_SIDES = ((0, -1), (0, 1), (1, -1), (1, 1))  # axis and direction


@dataclass(frozen=True, eq=False)
class Fill:
    """What was never scanned, on an overview of (H, W) pixels.

    Attributes:
        certain: (H, W) bool, with the pixels beside it that it spoils.
        like_glass: (H, W) bool, constant pieces that are as bright and achromatic as glass.
    """

    certain: BoolArray
    like_glass: BoolArray


def find_fill(source: TileSource, rgb: ByteArray, scale: float) -> Fill:
    """Find fill on an overview, and make sure of it at full resolution.

    Black counts whatever its shape, because the light that a camera sees has noise. White and other
    colours count in pieces with straight borders only, because an overexposed glass is constant.

    Args:
        source: the slide. rgb: (H, W, 3) uint8, its overview. scale: output pixels per pixel of it.
    """
    from scipy import ndimage

    shape = rgb.shape[:2]
    # seeds that touch share a colour, because their neighbourhoods overlap
    labels, n = ndimage.label(_constant(rgb))
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[0] = 0
    look = _FullResolution(source, round(scale))
    found = Fill(np.zeros(shape, bool), np.zeros(shape, bool))
    sizes[~_worth_a_look(labels, rgb, n)] = 0
    large = [k for k in np.argsort(-sizes, kind="stable") if sizes[k] >= _SEEDS]
    boxes = ndimage.find_objects(labels) if large else []
    for rank, k in enumerate(large):
        rows, columns = boxes[k - 1]
        h, w = rows.stop - rows.start, columns.stop - columns.start
        box = Region(rows.start, columns.start, h, w).grown(_REACH).clipped(shape)
        seeds, part = labels[box.slices] == k, rgb[box.slices].astype(np.int16)
        colour = part[seeds][0]
        piece = _piece(seeds, part, colour, box, shape)
        if piece is None:
            continue
        y, x = np.nonzero(seeds)
        some = np.linspace(0, len(y) - 1, 3 if rank < _PIECES else 1).astype(int)
        if not all(look.is_constant(box.y + y[i], box.x + x[i], colour) for i in some):
            continue
        od = rgb_to_od(colour.astype(np.uint8))
        bright = colour.min() < WHITE and od.sum() < _GLASS_SUM and np.ptp(od) < _GLASS_SPREAD
        kind = found.like_glass if bright else found.certain
        kind[box.slices] |= piece | _spoiled(piece, box, colour, look)
    return found


def beyond(picture: npt.NDArray[Scalar], fill: BoolArray) -> npt.NDArray[Scalar]:
    """Repeat the nearest scanned pixel in fill, as filters do beyond the border of an image.

    Args:
        picture: (H, W) or (H, W, C). fill: (H, W) bool.
    """
    from scipy import ndimage

    if not fill.any() or fill.all():
        return picture
    nearest = ndimage.distance_transform_edt(fill, return_distances=False, return_indices=True)
    return np.asarray(picture[tuple(nearest)])


class _FullResolution:
    """The output pixels of single overview pixels."""

    def __init__(self, source: TileSource, side: int) -> None:
        self._source, self._side, self.looks_left = source, side, _LOOKS
        self.on_whole_pixels = source.grid.factor == round(source.grid.factor)

    def is_constant(self, y: int, x: int, colour: npt.NDArray[np.int16]) -> bool:
        pixels = self._read(y, x)
        return pixels is not None and bool((np.abs(pixels - colour) <= 1).all())

    def begins_with(
        self, y: int, x: int, axis: int, step: int, colour: npt.NDArray[np.int16]
    ) -> bool:
        """Return whether its first line, in the direction of ``step``, holds some of a colour."""
        self.looks_left -= 1
        pixels = self._read(y, x) if self.looks_left >= 0 else None
        if pixels is None or not self.on_whole_pixels:
            return True
        line = pixels.take(0 if step > 0 else -1, axis)
        return bool((np.abs(line - colour) <= _SAME).all(1).mean() > _HOLDS)

    def _read(self, y: int, x: int) -> npt.NDArray[np.int16] | None:
        """(h, w, 3), or None where they cannot be had."""
        side = self._side
        r = Region(int(y) * side, int(x) * side, side, side).clipped(self._source.grid.shape)
        try:
            return self._source.read(r.y, r.x, r.h, r.w).astype(np.int16)
        except SlideError:  # it is told where the tile is worked on
            return None


def _constant(rgb: ByteArray) -> BoolArray:
    """Find the pixels that equal all of their neighbours, (H, W); those at the border never do."""
    out = np.zeros(rgb.shape[:2], bool)
    if min(out.shape) < 3:
        return out
    code = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    across = (code[:, :-2] == code[:, 1:-1]) & (code[:, 1:-1] == code[:, 2:])
    down = (code[:-2] == code[1:-1]) & (code[1:-1] == code[2:])
    out[1:-1, 1:-1] = across[:-2] & across[1:-1] & across[2:] & down[:, 1:-1]
    return out


def _worth_a_look(labels: npt.NDArray[np.int32], rgb: ByteArray, n: int) -> BoolArray:
    """Tell which of n pieces of seeds are black or have nearly straight borders: (n + 1,) bool."""
    seeds = labels > 0
    total, straight = np.zeros(n + 1), np.zeros(n + 1)
    for axis, step in _SIDES:
        border = seeds & ~_moved(seeds, axis, -step)
        b, where = (border, labels) if axis == 0 else (border.T, labels.T)
        runs = np.zeros_like(b)  # of three pixels, as seeds end a pixel inside of their piece
        runs[:, 1:-1] = b[:, :-2] & b[:, 1:-1] & b[:, 2:]
        runs |= _moved(runs, 1, 1) | _moved(runs, 1, -1)
        total += np.bincount(where[b], minlength=n + 1)
        straight += np.bincount(where[runs], minlength=n + 1)
    out = straight >= _NEARLY * total
    out[np.unique(labels[seeds & (rgb.max(2) <= BLACK)])] = True
    return out


def _piece(
    seeds: BoolArray,
    rgb: npt.NDArray[np.int16],
    colour: npt.NDArray[np.int16],
    box: Region,
    shape: tuple[int, int],
) -> BoolArray | None:
    """Grow seeds by the connected pixels of their colour; None if that has no shape of fill."""
    from scipy import ndimage

    for same in (_SAME, 0):  # what is around white fill may be nearly white
        piece = ndimage.binary_propagation(seeds, mask=(np.abs(rgb - colour) <= same).all(2))
        if colour.max() <= BLACK or _has_straight_borders(piece, box, shape):
            return np.asarray(piece, bool)
    return None


def _has_straight_borders(piece: BoolArray, box: Region, shape: tuple[int, int]) -> bool:
    """Return whether the borders of a piece run along rows and columns; those of the image do."""
    straight = total = 0
    for axis, step in _SIDES:
        border = piece & ~_moved(piece, axis, -step)
        lines = border if axis == 0 else border.T
        end = lines[-1 if step > 0 else 0]
        stop = (box.stop_y, box.stop_x)[axis] == shape[axis]
        start = (box.y, box.x)[axis] == 0
        if not (stop if step > 0 else start):
            total += int(end.sum())  # the piece goes on beyond the box
        end[:] = False
        total += int(lines.sum())
        padded = np.pad(lines, ((0, 0), (1, 1))).astype(np.int8)
        change = np.diff(padded, axis=1)
        runs = np.nonzero(change == -1)[1] - np.nonzero(change == 1)[1]
        straight += int(runs[runs >= _RUN].sum())
    return straight >= _STRAIGHT * total


def _spoiled(
    piece: BoolArray, box: Region, colour: npt.NDArray[np.int16], look: _FullResolution
) -> BoolArray:
    """Find the pixels beside fill that hold a part of it, or its ringing: (h, w) bool.

    Where fill ends exactly with an overview pixel, the one beside it is whole.
    """
    from scipy import ndimage

    mixed = np.zeros_like(piece)
    for axis, step in _SIDES:
        y, x = np.nonzero(_moved(piece, axis, step) & ~piece)
        line = (y, x)[axis]
        for k in np.unique(line):
            (on,) = np.nonzero(line == k)
            some = on[np.linspace(0, len(on) - 1, 3).astype(int)]
            if any(look.begins_with(box.y + y[i], box.x + x[i], axis, step, colour) for i in some):
                mixed[y[on], x[on]] = True
    near = ndimage.maximum_filter(mixed.astype(np.uint8), 2 * _MARGIN - 1, mode="constant")
    return np.asarray((near > 0) & ~piece, bool)


def _moved(mask: BoolArray, axis: int, step: int) -> BoolArray:
    """Move a mask by one pixel along an axis."""
    out = np.zeros_like(mask)
    old, new = (mask, out) if axis == 0 else (mask.T, out.T)
    if step > 0:
        new[1:] = old[:-1]
    else:
        new[:-1] = old[1:]
    return out
