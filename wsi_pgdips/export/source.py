"""The pixels, pixel size and provenance that exports take from a reader.

A reader is anything with OpenSlide's interface. It may be a ``NormalizedSlide``, which also knows
its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from wsi_pgdips import __version__
from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.schema import Json
from wsi_pgdips.machine import in_threads, usable_cpus
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.colour import on_white
from wsi_pgdips.slide.source import MAX_ANISOTROPY

if TYPE_CHECKING:
    from openslide import AbstractSlide

    from wsi_pgdips.layers.reader import Layers

MAX_THREADS = 8
_SIDE = 1024  # pixels that are read at once: a reader may hold them as optical densities
# only these properties of a reader are recorded, since a slide's own may name a person
_PROVENANCE = (
    *("reference", "reference-sha256", "group-sha256", "map-sha256"),
    *("method", "keep-amounts", "residual", "only", "account"),
)


def check_option(valid: bool, option: str, allowed: str, found: object) -> None:
    """Refuse a value that an option cannot take.

    Raises:
        SettingsError: ``valid`` is False.
    """
    if not valid:
        raise SettingsError(f"{option} must be {allowed}", found=found, where=option)


def export_threads() -> int:
    """Return how many threads read and encode."""
    return min(usable_cpus(), MAX_THREADS)


def squares(region: Region, side: int = _SIDE) -> list[Region]:
    """Cut a region into squares of ``side`` pixels, in raster order; the last ones may be smaller.

    All positions are in pixels of the same level.
    """
    return [
        Region(y, x, min(side, region.stop_y - y), min(side, region.stop_x - x))
        for y in range(region.y, region.stop_y, side)
        for x in range(region.x, region.stop_x, side)
    ]


def read_rgb(reader: AbstractSlide, region: Region, level: int = 0) -> ByteArray:
    """Read a region of a level, on white.

    Args:
        region: in the level's pixels; what lies outside the slide is white.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    scale = reader.level_downsamples[level]
    location = (round(region.x * scale), round(region.y * scale))
    return on_white(np.asarray(reader.read_region(location, level, (region.w, region.h))))


def read_large(
    reader: AbstractSlide, region: Region, advance: Callable[[], object] = lambda: None
) -> ByteArray:
    """Read a region of level 0 of any size, in squares, by several threads.

    Args:
        advance: called after each square of :func:`squares`.

    Returns:
        (h, w, 3) uint8 RGB, on white.
    """
    out = np.empty((region.h, region.w, 3), np.uint8)

    def read(square: Region) -> None:
        out[square.within(region).slices] = read_rgb(reader, square)

    for _ in in_threads(read, squares(region), export_threads()):
        advance()
    return out


def mpp_of(reader: AbstractSlide) -> float:
    """Return the micrometres per level-0 pixel; layers decide where the reader has some.

    Raises:
        SlideError: it is not known, or the pixels are not square.
    """
    layers: Layers | None = getattr(reader, "layers", None)
    if layers is not None:  # the user may have corrected the file's value with --mpp-source
        of_slide = reader.dimensions != (layers.grid.shape[1], layers.grid.shape[0])
        return layers.grid.mpp / layers.grid.factor if of_slide else layers.grid.mpp
    values = [reader.properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
    try:
        down, across = (float(v) for v in values if v is not None)
    except ValueError:
        raise SlideError(
            "the slide does not say how large its pixels are",
            expected="the properties openslide.mpp-x and openslide.mpp-y",
            found="none",
            hint="run it with --mpp-source, and normalise it with these layers",
        ) from None
    if abs(down - across) > MAX_ANISOTROPY * across:
        raise SlideError(
            "the slide's pixels are not square",
            expected=f"mpp down and across within {MAX_ANISOTROPY:.0%}",
            found=f"{down:.4g} down, {across:.4g} across",
        )
    return (down + across) / 2


def provenance(reader: AbstractSlide) -> Json:
    """Return what an export records of its origin, JSON-ready.

    Nothing in it names a slide, a path or a person.
    """
    found: Json = {"software": f"wsi-pgdips {__version__}"}
    for key in _PROVENANCE:
        value = reader.properties.get(f"wsi-pgdips.{key}")
        if value is not None:
            found[key.replace("-", "_")] = value
    layers: Layers | None = getattr(reader, "layers", None)
    if layers is not None:
        found["layers"] = layers.provenance.get("identity")
        # a reference that was fitted to this slide may have the slide's name
        name = str((layers.provenance.get("slide") or {}).get("name"))
        if found.get("reference") in (name, PurePath(name).stem, layers.path.name):
            del found["reference"]
    return found
