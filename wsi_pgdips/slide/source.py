"""A pyramid or an array on its output grid: the choice of the grid, and reading on it."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import MPP_LIMITS, OutputGrid, Region, choose_factor
from wsi_pgdips.records import ByteArray, SlideMeta
from wsi_pgdips.slide.colour import ToSrgb
from wsi_pgdips.slide.pyramid import FileFacts, MemoryPyramid, Pyramid
from wsi_pgdips.slide.resample import (
    Level,
    antialiased,
    area_mean,
    box_mean,
    choose_level,
    describe_levels,
    is_integer,
    taps_lvl,
)

MAX_ANISOTROPY = 0.02
# side in level pixels of the largest part in memory at once, whatever the size of a request
CHUNK_LVL = 2048
# unreadable parts of an overview are located to within about this many level pixels
SMALLEST_LVL = 256


def make_grid(
    shape_l0: tuple[int, int],
    facts: FileFacts,
    *,
    mpp: float | Literal["native"],
    mpp_source: float | None,
    tile: int,
    block: int,
    where: object = None,
) -> OutputGrid:
    """Make the output grid for a wanted mpp; ``mpp_source`` overrides the file's mpp.

    Raises:
        SlideError: the slide has no mpp, or an absurd one, or one that differs between the
            directions by more than 2 %; or the wanted mpp is finer than the slide's.
        SettingsError: an option is outside its limits.
    """
    for option, value in (("--mpp", mpp), ("--mpp-source", mpp_source)):
        if isinstance(value, float | int) and not MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
            raise SettingsError(
                "the mpp is outside the range of a microscope",
                expected=f"{MPP_LIMITS[0]} to {MPP_LIMITS[1]} um/px",
                found=f"{value:g}",
                where=option,
            )
    mpp_l0 = _checked_mpp(facts, where) if mpp_source is None else mpp_source
    factor = 1.0 if mpp == "native" else choose_factor(mpp_l0, mpp)
    return OutputGrid(shape_l0, factor, mpp_l0 * factor, tile, block)


def has_usable_mpp(facts: FileFacts) -> bool:
    """Return whether the file's own mpp can be used."""
    try:
        _checked_mpp(facts, None)
    except SlideError:
        return False
    return True


def _checked_mpp(facts: FileFacts, where: object) -> float:
    value, mpp_yx = facts.mpp, facts.mpp_yx
    if mpp_yx is None or value is None:
        raise SlideError(
            "the slide does not state the size of its pixels",
            expected="micrometres per pixel in the file's metadata",
            found="none",
            where=where,
            hint="give it with --mpp-source, e.g. 0.25 for most 40x scans and 0.5 for 20x",
        )
    if not MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
        raise SlideError(
            "the slide's pixel size is absurd",
            expected=f"{MPP_LIMITS[0]} to {MPP_LIMITS[1]} um/px",
            found=f"{value:.4g} um/px",
            where=where,
            hint="give the true one with --mpp-source",
        )
    if abs(mpp_yx[0] - mpp_yx[1]) > MAX_ANISOTROPY * value:
        raise SlideError(
            "the slide's pixels are not square",
            expected=f"mpp down and across within {MAX_ANISOTROPY:.0%}",
            found=f"{mpp_yx[0]:.4g} down, {mpp_yx[1]:.4g} across",
            where=where,
            hint="if only the metadata is wrong, give the true mpp with --mpp-source",
        )
    return value


class PyramidSource:
    """A :class:`~wsi_pgdips.records.TileSource` over a pyramid.

    Args:
        pyramid: the pixels.
        meta: the slide's metadata.
        grid: the output grid; its ``shape_l0`` is the pyramid's.
        icc: convert to sRGB by the embedded profile. Without a profile (see ``meta.has_icc``)
            nothing is converted.
    """

    def __init__(
        self, pyramid: Pyramid, meta: SlideMeta, grid: OutputGrid, *, icc: bool = False
    ) -> None:
        self._pyramid, self._meta, self._grid = pyramid, meta, grid
        self._levels = describe_levels(pyramid.level_shapes, pyramid.level_exact)
        self._level = choose_level(self._levels, grid.factor)
        profile = pyramid.facts.icc_profile if icc else None
        self._to_srgb = None if profile is None else ToSrgb(profile)
        self._unreadable: tuple[Region, ...] = ()

    @property
    def grid(self) -> OutputGrid:
        return self._grid

    @property
    def meta(self) -> SlideMeta:
        return self._meta

    @property
    def unreadable(self) -> tuple[Region, ...]:
        """The regions in output pixels that the last ``overview`` could not read and left white."""
        return self._unreadable

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        """Read (h, w, 3) uint8 RGB of the output grid; pixels outside the image are white.

        A pixel has the same bytes in whichever window it is read. For integer factors it is the
        rounded mean of its level pixels, for others their average under the kernel of
        ``antialiased``.

        Raises:
            SlideError: the pixels cannot be read; reads of other windows still work.
        """
        out = np.full((h, w, 3), 255, np.uint8)
        inside = Region(y, x, h, w).clipped(self._grid.shape)
        side = max(int(CHUNK_LVL * self._level.scale / self._grid.factor), 1)
        for cy in range(inside.y, inside.stop_y, side):
            for cx in range(inside.x, inside.stop_x, side):
                ch, cw = min(side, inside.stop_y - cy), min(side, inside.stop_x - cx)
                out[cy - y : cy - y + ch, cx - x : cx - x + cw] = self._resampled(cy, cx, ch, cw)
        return out

    def _resampled(self, y: int, x: int, h: int, w: int) -> ByteArray:
        level, ratio = self._level, self._grid.factor / self._level.scale
        if is_integer(ratio):
            r = round(ratio)
            rgb = box_mean(self._window(level, y * r, x * r, (y + h) * r, (x + w) * r), r)
        else:
            y0, y1 = taps_lvl(y, h, ratio, level.shape[0])
            x0, x1 = taps_lvl(x, w, ratio, level.shape[1])
            window = self._window(level, y0, x0, y1, x1)
            rgb = antialiased(window, (y0, x0), Region(y, x, h, w), ratio, level.shape)
        return rgb if self._to_srgb is None else self._to_srgb(rgb)

    def _window(self, level: Level, y0: int, x0: int, y1: int, x1: int) -> ByteArray:
        """Read level pixels [y0, y1) x [x0, x1); beyond the level, repeat its last row or column"""
        stop_y, stop_x = min(y1, level.shape[0]), min(x1, level.shape[1])
        rgb = self._pyramid.read_level(level.index, y0, x0, stop_y - y0, stop_x - x0)
        if (stop_y, stop_x) == (y1, x1):
            return rgb
        return np.pad(rgb, ((0, y1 - stop_y), (0, x1 - stop_x), (0, 0)), mode="edge")

    def overview(self, mpp: float, part: Region | None = None) -> tuple[ByteArray, float]:
        """Read the whole slide, or a part of it, as area means.

        It is read chunk by chunk from the coarsest level that places pixels correctly, so memory
        does not grow with the slide. Parts that cannot be read stay white and are listed in
        :attr:`unreadable`.

        Args:
            mpp: wanted micrometres per overview pixel.
            part: in output pixels; all overview pixels that it touches are read.

        Returns:
            (H, W, 3) uint8, and s, the output pixels per overview pixel; s is a whole number, and
            for the whole slide H = ceil(height / s).

        Raises:
            SlideError: no part could be read.
        """
        s = max(round(mpp / self._grid.mpp), 1)
        inside = Region(0, 0, *self._grid.shape) if part is None else part.clipped(self._grid.shape)
        y, x = inside.y // s, inside.x // s
        whole = Region(y, x, -(-inside.stop_y // s) - y, -(-inside.stop_x // s) - x)
        out = np.full((whole.h, whole.w, 3), 255, np.uint8)
        level = choose_level(self._levels, s * self._grid.factor, exact=False)
        ratio = s * self._grid.factor / level.scale
        side = max(int(CHUNK_LVL // 2 / ratio), 1)
        todo = _parts(whole, side, side)
        failed: list[tuple[Region, SlideError]] = []
        while todo:
            piece = todo.pop()
            try:
                rgb = self._averaged(level, ratio, piece)
            except SlideError as error:
                if max(piece.h, piece.w) == 1 or max(piece.h, piece.w) * ratio <= SMALLEST_LVL:
                    failed.append((piece, error))
                else:
                    todo.extend(_parts(piece, -(-piece.h // 2), -(-piece.w // 2)))
                continue
            out[piece.within(whole).slices] = rgb
        if failed and sum(piece.h * piece.w for piece, _ in failed) == whole.h * whole.w:
            raise failed[0][1]
        self._unreadable = tuple(
            Region(p.y * s, p.x * s, p.h * s, p.w * s).clipped(self._grid.shape)
            for p, _ in sorted(failed, key=lambda item: item[0])
        )
        return out, float(s)

    def _averaged(self, level: Level, ratio: float, part: Region) -> ByteArray:
        end_y, end_x = (
            min(float(size), size_out * self._grid.factor / level.scale)
            for size, size_out in zip(level.shape, self._grid.shape, strict=True)
        )
        spans_y = _spans(part.y, part.h, ratio, end_y)
        spans_x = _spans(part.x, part.w, ratio, end_x)
        y0, x0 = math.floor(spans_y[0, 0]), math.floor(spans_x[0, 0])
        y1, x1 = math.ceil(spans_y[-1, 1]), math.ceil(spans_x[-1, 1])
        window = self._window(level, y0, x0, y1, x1)
        r = round(ratio)
        if is_integer(ratio) and window.shape[:2] == (part.h * r, part.w * r):
            rgb = box_mean(window, r)
        else:
            rgb = area_mean(window, spans_y - y0, spans_x - x0)
        return rgb if self._to_srgb is None else self._to_srgb(rgb)

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        self._pyramid.close()


def _spans(start: int, n: int, ratio: float, end: float) -> npt.NDArray[np.float64]:
    """Starts and stops of n overview pixels on an axis that ends at ``end``: (n, 2) level pixels.

    A level with a rounded-down shape may end before the last overview pixel begins; that pixel
    repeats the last row.
    """
    edges = np.arange(start, start + n + 1) * ratio
    return np.stack((np.minimum(edges[:-1], end - 1), np.minimum(edges[1:], end)), axis=1)


def _parts(whole: Region, h: int, w: int) -> list[Region]:
    """Cut a region into parts of at most (h, w), in raster order."""
    return [
        Region(y, x, min(h, whole.stop_y - y), min(w, whole.stop_x - x))
        for y in range(whole.y, whole.stop_y, h)
        for x in range(whole.x, whole.stop_x, w)
    ]


class ArraySource(PyramidSource):
    """An image in memory as a :class:`~wsi_pgdips.records.TileSource`.

    Args:
        rgb: (H, W, 3) uint8; it is not copied, so it must not change afterwards.
        mpp: micrometres per pixel of the array.
        output_mpp: the wanted mpp of the output grid, or "native" for the array's own pixels.
        tile, block: sides of tiles and blocks in output pixels.
        name: a name for reports.

    Raises:
        SlideError: this is not a uint8 RGB image.
        SettingsError: an mpp is outside its limits.
    """

    def __init__(
        self,
        rgb: ByteArray,
        *,
        mpp: float,
        output_mpp: float | Literal["native"] = "native",
        tile: int = 512,
        block: int = 4096,
        name: str = "array",
    ) -> None:
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise SlideError(
                "this is not an RGB image",
                expected="(height, width, 3) uint8",
                found=f"{rgb.shape} {rgb.dtype}",
            )
        shape = (rgb.shape[0], rgb.shape[1])
        facts = FileFacts("array", (mpp, mpp))
        grid = make_grid(
            shape, facts, mpp=output_mpp, mpp_source=mpp, tile=tile, block=block, where=name
        )
        digest = hashlib.sha256(repr(shape).encode())
        digest.update(np.ascontiguousarray(rgb).data)
        meta = SlideMeta(name, "array", shape, mpp, None, (shape,), None, False, digest.hexdigest())
        super().__init__(MemoryPyramid(rgb, facts), meta, grid)
