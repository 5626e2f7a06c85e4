"""What exports read: RGB of anything with OpenSlide's interface, its mpp, and where it is from."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips import __version__
from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.machine import usable_cpus
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.colour import on_white
from wsi_pgdips.slide.source import MAX_ANISOTROPY

if TYPE_CHECKING:
    from openslide import AbstractSlide

    from wsi_pgdips.layers.reader import Layers

Json = dict[str, Any]
MAX_THREADS = 8
# of the reader's properties, and no others: those of a slide may name a person
_PROVENANCE = ("reference", "reference-sha256", "method", "keep-amounts", "residual", "only")


def check_option(fine: bool, option: str, expected: str, found: object) -> None:
    """Refuse a value of an option."""
    if not fine:
        raise SettingsError(
            f"{option} cannot be used so", expected=expected, found=found, where=option
        )


def export_threads() -> int:
    """How many threads read and encode."""
    return min(usable_cpus(), MAX_THREADS)


def read_rgb(reader: AbstractSlide, region: Region, level: int = 0) -> ByteArray:
    """(h, w, 3) uint8 of a region in a level's pixels, on white; white outside of the slide."""
    scale = reader.level_downsamples[level]
    location = (round(region.x * scale), round(region.y * scale))
    return on_white(np.asarray(reader.read_region(location, level, (region.w, region.h))))


def mpp_of(reader: AbstractSlide) -> float:
    """Micrometres per level-0 pixel, by the layers where there are some.

    Raises:
        SlideError: not known, or the pixels are not square.
    """
    layers: Layers | None = getattr(reader, "layers", None)
    if layers is not None:  # the run may have been told better than the file knows
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
    """Where an export comes from, JSON-ready; nothing of it names a slide, a path or a person."""
    found: Json = {"software": f"wsi-pgdips {__version__}"}
    for key in _PROVENANCE:
        value = reader.properties.get(f"wsi-pgdips.{key}")
        if value is not None:
            found[key.replace("-", "_")] = value
    layers: Layers | None = getattr(reader, "layers", None)
    if layers is not None:
        found["layers"] = layers.provenance.get("identity")
        if found.get("reference") in _names(layers):  # the look of this slide, given as a reference
            del found["reference"]
    return found


def layers_provenance(layers: Layers) -> Json:
    """The same of layers: their identity, and the stains with their vectors."""
    own = layers.provenance
    return {
        "software": f"wsi-pgdips {__version__}",
        "layers": own.get("identity"),
        "stains": list(layers.stains.labels),
        "stain_matrix": own.get("stain_matrix"),
        "background": own.get("background"),
        "encoding": own.get("encoding"),
    }


def _names(layers: Layers) -> set[str]:
    name = str((layers.provenance.get("slide") or {}).get("name"))
    return {name, PurePath(name).stem, layers.path.name}
