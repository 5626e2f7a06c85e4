"""A slide's own levels with OpenSlide's interface, whichever library reads the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.colour import ToSrgb
from wsi_pgdips.slide.pyramid import Pyramid
from wsi_pgdips.slide.reader import OpenSlidePyramid, open_pyramid

Size = tuple[int, int]


class NativePixels:
    """RGBA pixels of any level, at (x, y) level-0 pixels as in OpenSlide. Thread-safe.

    Args:
        path: whole-slide file or image; see ``open_source``.
        icc: convert to sRGB by the embedded profile, like the run that made the fields.

    Raises:
        SlideError: the file is missing, unreadable, or not RGB brightfield.
    """

    def __init__(self, path: Path, *, icc: bool = False) -> None:
        self._pyramid = open_pyramid(path)
        shapes = self._pyramid.level_shapes
        self.level_dimensions: tuple[Size, ...] = tuple((w, h) for h, w in shapes)
        self.level_downsamples, self.properties = _described(self._pyramid)
        profile = self._pyramid.facts.icc_profile if icc else None
        self._to_srgb = None if profile is None else ToSrgb(profile)

    def read_rgba(self, location: Size, level: int, size: Size) -> ByteArray:
        """Read (h, w, 4) uint8 with straight alpha; pixels outside the slide are transparent.

        Raises:
            SlideError: the pixels cannot be read.
        """
        if isinstance(self._pyramid, OpenSlidePyramid):
            rgba = self._pyramid.read_rgba(location, level, size)
        else:
            rgba = self._from_level(location, level, size)
        if self._to_srgb is not None:
            rgba[..., :3] = self._to_srgb(np.ascontiguousarray(rgba[..., :3]))
        return rgba

    def _from_level(self, location: Size, level: int, size: Size) -> ByteArray:
        out = np.zeros((size[1], size[0], 4), np.uint8)
        x, y = (round(v / self.level_downsamples[level]) for v in location)
        width, height = self.level_dimensions[level]
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + size[1], height), min(x + size[0], width)
        if y0 < y1 and x0 < x1:
            part = out[y0 - y : y1 - y, x0 - x : x1 - x]
            part[..., :3] = self._pyramid.read_level(level, y0, x0, y1 - y0, x1 - x0)
            part[..., 3] = 255
        return out

    def close(self) -> None:
        self._pyramid.close()


class BorrowedPixels:
    """The interface of :class:`NativePixels` over a slide that the caller opens and closes."""

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        self.level_dimensions: tuple[Size, ...] = tuple(slide.level_dimensions)
        self.level_downsamples: tuple[float, ...] = tuple(slide.level_downsamples)
        self.properties: Mapping[str, str] = dict(slide.properties)

    def read_rgba(self, location: Size, level: int, size: Size) -> ByteArray:
        return np.array(self._slide.read_region(location, level, size).convert("RGBA"))

    def close(self) -> None:
        """Do nothing: the caller closes its slide."""


def _described(pyramid: Pyramid) -> tuple[tuple[float, ...], dict[str, str]]:
    """The downsamples and properties in OpenSlide's form."""
    if isinstance(pyramid, OpenSlidePyramid):
        return pyramid.level_downsamples, pyramid.all_properties()
    (height, width), facts = pyramid.level_shapes[0], pyramid.facts
    downsamples = tuple((height / h + width / w) / 2 for h, w in pyramid.level_shapes)
    found = {"openslide.vendor": facts.vendor, "openslide.level-count": str(len(downsamples))}
    if facts.mpp_yx is not None:
        found["openslide.mpp-y"], found["openslide.mpp-x"] = (repr(v) for v in facts.mpp_yx)
    for k, ((h, w), scale) in enumerate(zip(pyramid.level_shapes, downsamples, strict=True)):
        found[f"openslide.level[{k}].height"] = str(h)
        found[f"openslide.level[{k}].width"] = str(w)
        found[f"openslide.level[{k}].downsample"] = repr(scale)
    return downsamples, found
