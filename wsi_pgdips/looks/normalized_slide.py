"""A slide in the look of a reference, with OpenSlide's interface."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from openslide import AbstractSlide
from PIL import Image

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.account import account
from wsi_pgdips.looks.colour_map import ColourMap, load_map
from wsi_pgdips.looks.files import load_reference
from wsi_pgdips.looks.foreign_pixels import NO_TISSUE, ForeignPixels, unpacked
from wsi_pgdips.looks.reader import LayerPixels, SlidePixels
from wsi_pgdips.looks.recompose import single_stain
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.looks.transfer import Method, Transfer, constant_fields, make_transfer
from wsi_pgdips.records import Fields
from wsi_pgdips.slide.native import BorrowedPixels, NativePixels

SELF = "self"
_OWN = "wsi-pgdips."
_LOG = logging.getLogger(__name__)
SlideLike = str | os.PathLike[str] | AbstractSlide
LookLike = str | os.PathLike[str] | Reference
_Size = tuple[int, int]


class NormalizedSlide(AbstractSlide):
    """A slide in the look of a reference, for any program that takes an ``openslide.OpenSlide``.

    Given the slide, it keeps the slide's dimensions, levels and properties, so that coordinates
    made on the original stay valid. It reads the slide's own pixels and changes them in closed
    form; what the stains do not explain is carried over. Layers let it follow colours that vary
    over the slide; a look alone, measured on the slide in seconds, needs no layers. Without the
    slide it renders the layers alone, at their own levels and resolution and without that residual.

    Thread-safe. It survives a fork, and can be pickled unless the slide was given open.

    Args:
        slide: the slide's file, an open slide object, or None for the layers alone.
        layers: output of ``run`` for this slide, or an open ``Layers``; or None with a ``look``.
        reference: ``he`` or ``hdab``, the path of a reference, a ``Reference``, or ``self`` for the
            slide's own look: its own bytes, or, from layers alone, the model of it.
        look: the slide's own look, from ``wsi-pgdips look`` or ``measure_slide_look``, in place of
            the one in the layers.
        group_look: the look of the slide's scanner, laboratory or staining day, from ``pool_looks``
            or ``reference fit``; or its file.
        colour_map: of two scanners, from ``reference pair``, or its file; it stands in place of
            looks and reference.
        method: ``matched`` (what the looks support) or ``augmented`` (as published: S, M and B);
            see ``looks.transfer``.
        keep_amounts: change colours only, not how dark the stains are.
        only: label of a stain to show by itself, without residual; with ``self`` in its own colour
            on white.

    Attributes:
        layers: the open ``Layers``, or None. look: the slide's own look, a ``Reference``.
        reference: the look that it is given, or None for ``self``.
        account: in plain words, what is changed and what that rests on.

    Raises:
        SlideError: the slide cannot be read, or has another size than the slide of these layers.
        OutputError: there are no finished layers. SettingsError: an unknown method; neither layers
            nor a look; a look without a slide.
        StainError: the reference is of other stains, or ``only`` is not a stain of the slide.
    """

    def __init__(
        self,
        slide: SlideLike | None,
        layers: str | os.PathLike[str] | Layers | None = None,
        reference: LookLike = "he",
        *,
        look: LookLike | None = None,
        group_look: LookLike | None = None,
        colour_map: str | os.PathLike[str] | ColourMap | None = None,
        method: Method = "matched",
        keep_amounts: bool = False,
        only: str | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"method": method, "keep_amounts": keep_amounts}
        given = {"look": look, "group_look": group_look, "colour_map": colour_map, "only": only}
        self._arguments = ((slide, layers, reference), {**options, **given})
        opened = (
            layers if isinstance(layers, Layers) or layers is None else open_layers(Path(layers))
        )
        own = None if look is None else find_reference(look)
        if opened is None and (own is None or slide is None):
            raise SettingsError(
                "a slide cannot be normalised with this",
                expected="layers, or the slide's file with its look",
                found="no layers" + (", no look" if own is None else ", no slide"),
                hint="`wsi-pgdips run` makes layers, `wsi-pgdips look` a look",
            )
        target = find_reference(reference)
        icc = (
            opened is None
            and own is not None
            and any(source.get("icc_sha256") for source in own.sources)
        )
        native = _native(slide, opened, icc=icc)
        if own is None:
            assert opened is not None  # checked above
            own = slide_look(opened, _source(slide, opened))
        fields, options["tile"], factor = _fields(opened, own)
        options["group"] = None if group_look is None else find_reference(group_look)
        options["colour_map"] = found_map(colour_map)
        transfer: Transfer
        if only is None:
            transfer = make_transfer(fields, own, target, **options)
        else:
            transfer = single_stain(fields, own, target, only, **options)
        self._pixels: SlidePixels | LayerPixels
        if native is None:
            assert opened is not None  # a look needs a slide
            self._pixels = LayerPixels(opened, transfer)
            properties = _layer_properties(opened)
            _LOG.info("%s: from layers alone, without residual", opened.path.name)
        else:
            foreign = unpacked(own.foreign) if opened is None else _foreign(opened)
            self._pixels = SlidePixels(native, transfer, foreign, factor)
            properties = {**native.properties, **({} if opened is None else _corrected_mpp(opened))}
        self.layers, self.look, self.reference = opened, own, target
        self.account: tuple[str, ...] = ()
        if target is not None or options["colour_map"] is not None:
            self.account = account(own, target, transfer, options["group"], options["colour_map"])
        properties |= {
            _OWN + "reference": SELF if target is None else target.name,
            _OWN + "reference-sha256": (own if target is None else target).digest,
            _OWN + "method": SELF if target is None else method,
            _OWN + "residual": "none: rendered from layers alone" if native is None else "carried",
        }
        if options["group"] is not None:
            properties[_OWN + "group-sha256"] = options["group"].digest
        if options["colour_map"] is not None:
            properties[_OWN + "map-sha256"] = options["colour_map"].digest
        if self.account:
            properties[_OWN + "account"] = "; ".join(self.account)
        if keep_amounts and target is not None:
            properties[_OWN + "keep-amounts"] = "true"
        if only is not None:
            shown = {"residual": f"none: {only} alone", "only": only}
            properties |= {_OWN + key: value for key, value in shown.items()}
        self._properties: dict[str, str] = properties

    @property
    def from_layers_alone(self) -> bool:
        """True if the slide itself was not given, so that there is no residual."""
        return self._arguments[0][0] is None

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """Return None: no file by itself is a normalised slide."""
        return None

    def close(self) -> None:
        """Close the slide's file, unless the slide was given as an open object."""
        self._pixels.close()

    @property
    def level_count(self) -> int:
        """Number of levels."""
        return len(self._pixels.level_dimensions)

    @property
    def level_dimensions(self) -> tuple[_Size, ...]:
        """(width, height) of each level."""
        return self._pixels.level_dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""
        return self._pixels.level_downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        """The slide's properties, and our own, which begin with ``wsi-pgdips.``."""
        return self._properties

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Empty: label and macro image are not normalised, and may name a patient."""
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than ``downsample``."""
        fits = [k for k, own in enumerate(self.level_downsamples) if own <= downsample]
        return max(fits, default=0)

    def read_region(self, location: _Size, level: int, size: _Size) -> Image.Image:
        """Return an RGBA picture of a region, as ``OpenSlide.read_region``.

        Args:
            location: (x, y) of its top left pixel at level 0. level: to read.
            size: (width, height) in the level's pixels.

        Raises:
            ValueError: a negative size. SlideError: the pixels cannot be read.
        """
        if min(size) < 0:
            raise ValueError(f"a region cannot have a negative size, got {size}")
        if not 0 <= level < self.level_count:  # OpenSlide too gives transparent pixels
            return Image.new("RGBA", size)
        return Image.fromarray(self._pixels.read_rgba(location, level, size))

    def __reduce__(self) -> tuple[Any, ...]:
        arguments, options = self._arguments
        if isinstance(arguments[0], AbstractSlide):
            raise TypeError("a slide that was given open cannot be pickled; give its path")
        return partial(NormalizedSlide, **options), arguments


def find_reference(reference: LookLike) -> Reference | None:
    """Return a look by its name or file, or as it is; None for ``self``."""
    if isinstance(reference, Reference):
        return reference
    return None if str(reference) == SELF else load_reference(reference)


def found_map(colour_map: str | os.PathLike[str] | ColourMap | None) -> ColourMap | None:
    """Return a map by its file, or as it is."""
    if colour_map is None or isinstance(colour_map, ColourMap):
        return colour_map
    return load_map(Path(colour_map))


def _fields(layers: Layers | None, own: Reference) -> tuple[Fields, float, float]:
    """Return fields, the side of a tile, and level-0 pixels per output pixel."""
    if layers is None:
        return constant_fields(own), 1.0, 1.0
    return layers.fields, layers.grid.tile, layers.grid.factor


def _native(
    slide: SlideLike | None, layers: Layers | None, *, icc: bool
) -> NativePixels | BorrowedPixels | None:
    """Open the slide, and check that it has the size of the layers' slide.

    Args:
        icc: the look was measured on pixels converted by the slide's profile, as layers may be.
    """
    if slide is None:
        return None
    icc = icc or (layers is not None and bool((layers.provenance.get("settings") or {}).get("icc")))
    if isinstance(slide, AbstractSlide):
        if icc:
            raise SlideError(
                "layers or look were made of pixels converted by the slide's ICC profile",
                hint="give the slide's path, so that its pixels are converted too",
            )
        native: NativePixels | BorrowedPixels = BorrowedPixels(slide)
    else:
        native = NativePixels(Path(slide), icc=icc)
    found = native.level_dimensions[0]
    wanted = (found[1], found[0]) if layers is None else layers.grid.shape_l0
    if (found[1], found[0]) != tuple(wanted):
        raise SlideError(
            "the slide is not the one that these layers were made of",
            expected=f"{wanted[1]} x {wanted[0]} pixels at level 0",
            found=f"{found[0]} x {found[1]}",
            where=slide if isinstance(slide, str | Path) or layers is None else layers.path,
            hint="give the slide that `wsi-pgdips run` was given",
        )
    return native


def _source(slide: SlideLike | None, layers: Layers) -> Any:
    """Open the slide on the layers' grid if the layers hold no measured look; else return None."""
    if slide is None or isinstance(slide, AbstractSlide) or layers.provenance.get("look"):
        return None
    from wsi_pgdips.slide.reader import open_source

    grid = layers.grid
    mpp_l0 = grid.mpp / grid.factor
    return open_source(slide, mpp=grid.mpp, mpp_source=mpp_l0, tile=grid.tile, block=grid.block)


def _foreign(layers: Layers) -> ForeignPixels | None:
    """Return the foreign pixels of the layers' slide, if there are any."""
    level = min(3, layers.grid.n_levels - 1)
    label = np.asarray(layers.artifact(level).compute(scheduler="synchronous"))
    coarse = np.isin(label, NO_TISSUE)
    if not coarse.any():
        return None
    shapes = [layers.grid.level_shape(k) for k in range(layers.grid.n_levels)]
    return ForeignPixels(coarse, float(2**level), layers.read_artifact, shapes)


def _corrected_mpp(layers: Layers) -> dict[str, str]:
    """Return the properties of the mpp that the run was given in place of the file's, if any."""
    if (layers.provenance.get("settings") or {}).get("mpp_source") is None:
        return {}
    mpp_l0 = repr(layers.grid.mpp / layers.grid.factor)
    return {"openslide.mpp-x": mpp_l0, "openslide.mpp-y": mpp_l0}


def _layer_properties(layers: Layers) -> dict[str, str]:
    """Return OpenSlide's standard properties of the layers' levels."""
    grid = layers.grid
    slide = layers.provenance.get("slide") or {}
    found = {
        "openslide.vendor": "wsi-pgdips",
        "openslide.mpp-x": repr(grid.mpp),
        "openslide.mpp-y": repr(grid.mpp),
        "openslide.level-count": str(grid.n_levels),
    }
    power, mpp_l0 = slide.get("objective_power"), slide.get("mpp_l0")
    if power and mpp_l0:
        found["openslide.objective-power"] = f"{power * mpp_l0 / grid.mpp:g}"
    for level in range(grid.n_levels):
        h, w = grid.level_shape(level)
        found[f"openslide.level[{level}].height"] = str(h)
        found[f"openslide.level[{level}].width"] = str(w)
        found[f"openslide.level[{level}].downsample"] = str(2**level)
    return found
