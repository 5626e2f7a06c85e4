"""A normalised slide: slide, layers and reference put together behind OpenSlide's interface."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from openslide import AbstractSlide

from wsi_pgdips.errors import SlideError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.files import load_reference
from wsi_pgdips.looks.pseudo import single_stain
from wsi_pgdips.looks.reader import LayerPixels, NormalizedReader, SlidePixels
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.looks.transfer import Method, Transfer, make_transfer
from wsi_pgdips.looks.weight import CELL_UM, TissueWeight
from wsi_pgdips.slide.native import BorrowedPixels, NativePixels

SELF = "self"
_OWN = "wsi-pgdips."
_LOG = logging.getLogger(__name__)
SlideLike = str | os.PathLike[str] | AbstractSlide


class NormalizedSlide(NormalizedReader):
    """A slide that looks like a reference, for every program that takes an ``openslide.OpenSlide``.

    With the slide it keeps the slide's own dimensions, levels and properties, so that coordinates
    made on the original stay valid: native pixels are read, and what the layers' fields say is
    applied to them in closed form, with all that the stains do not explain carried over. Without
    it, the layers alone are rendered: at their own levels and resolution, without that residual.
    Thread-safe, survives a fork, and can be pickled unless the slide was given as an open object.

    Args:
        slide: its file, an open slide object, or None for the layers alone.
        layers: what ``run`` has written of it, or an open ``Layers``.
        reference: ``he`` or ``hdab``, the path of a reference, a ``Reference``, or ``self``
            (the slide itself: its own bytes; of layers alone, what the model says of it).
        method: ``typical`` (colours and amounts of each stain's own pixels), ``augmented`` or
            ``stains`` (as published: S, M and B, or S alone), or ``percentile`` (S, B, and amounts
            by their 99th percentile); see ``looks.transfer``.
        keep_amounts: change colours only, not how much stain there is.
        only: label of a stain to be shown by itself, without residual; under ``self`` in its own
            colour on white.

    Raises:
        SlideError: not to be read, or of another size than the slide that the layers are of.
        OutputError: no finished layers there. StainError: the reference is of other stains.
    """

    def __init__(
        self,
        slide: SlideLike | None,
        layers: str | os.PathLike[str] | Layers,
        reference: str | os.PathLike[str] | Reference = "he",
        *,
        method: Method = "typical",
        keep_amounts: bool = False,
        only: str | None = None,
    ) -> None:
        options: dict[str, Any] = {"method": method, "keep_amounts": keep_amounts}
        self._arguments = ((slide, layers, reference), {**options, "only": only})
        opened = layers if isinstance(layers, Layers) else open_layers(Path(layers))
        target = find_reference(reference)
        native = _native(slide, opened)
        own = slide_look(opened, _source(slide, opened))
        options["tile"] = opened.grid.tile
        transfer: Transfer
        if only is None:
            transfer = make_transfer(opened.fields, own, target, **options)
        else:
            transfer = single_stain(opened.fields, own, target, only, **options)
        weight = _weight(opened)
        pixels: SlidePixels | LayerPixels
        if native is None:
            shapes = tuple(opened.grid.level_shape(k) for k in range(opened.grid.n_levels))
            pixels = LayerPixels(opened, shapes, transfer, weight)
            properties = _layer_properties(opened)
            _LOG.info("%s: from layers alone, without residual", opened.path.name)
        else:
            pixels = SlidePixels(native, transfer, weight, opened.grid.factor)
            properties = {**native.properties, **_told_mpp(opened)}
        self.layers, self.look, self.reference = opened, own, target
        properties |= {
            _OWN + "reference": SELF if target is None else target.name,
            _OWN + "reference-sha256": (own if target is None else target).digest,
            _OWN + "method": SELF if target is None else method,
            _OWN + "residual": "none: rendered from layers alone" if native is None else "carried",
        }
        if keep_amounts and target is not None:
            properties[_OWN + "keep-amounts"] = "true"
        if only is not None:
            shown = {"residual": f"none: {only} alone", "only": only}
            properties |= {_OWN + key: value for key, value in shown.items()}
        super().__init__(pixels, properties)

    @property
    def from_layers_alone(self) -> bool:
        """Whether the slide itself was not there, so that there is no residual."""
        return self._arguments[0][0] is None

    def __reduce__(self) -> tuple[Any, ...]:
        arguments, options = self._arguments
        if isinstance(arguments[0], AbstractSlide):
            raise TypeError("a slide that was given open cannot be pickled; give its path")
        return _again, (arguments, options)


def find_reference(reference: str | os.PathLike[str] | Reference) -> Reference | None:
    """A reference by name, file or as it is; None for ``self``."""
    if isinstance(reference, Reference):
        return reference
    return None if str(reference) == SELF else load_reference(reference)


def _again(arguments: tuple[Any, ...], options: dict[str, Any]) -> NormalizedSlide:
    return NormalizedSlide(*arguments, **options)


def _native(slide: SlideLike | None, layers: Layers) -> NativePixels | BorrowedPixels | None:
    if slide is None:
        return None
    icc = bool((layers.provenance.get("settings") or {}).get("icc"))
    if isinstance(slide, AbstractSlide):
        if icc:
            raise SlideError(
                "these layers are of pixels converted by the slide's ICC profile",
                hint="give the slide's path, so that its pixels are converted too",
            )
        native: NativePixels | BorrowedPixels = BorrowedPixels(slide)
    else:
        native = NativePixels(Path(slide), icc=icc)
    found = native.level_dimensions[0]
    wanted = layers.grid.shape_l0
    if (found[1], found[0]) != tuple(wanted):
        raise SlideError(
            "the slide is not the one these layers are of",
            expected=f"{wanted[1]} x {wanted[0]} pixels at level 0",
            found=f"{found[0]} x {found[1]}",
            where=slide if isinstance(slide, str | Path) else layers.path,
            hint="give the slide that `wsi-pgdips run` was given",
        )
    return native


def _source(slide: SlideLike | None, layers: Layers) -> Any:
    """The slide on the layers' grid, for layers of before looks were measured."""
    if slide is None or isinstance(slide, AbstractSlide) or layers.provenance.get("look"):
        return None
    from wsi_pgdips.slide.reader import open_source

    grid = layers.grid
    mpp_l0 = grid.mpp / grid.factor
    return open_source(slide, mpp=grid.mpp, mpp_source=mpp_l0, tile=grid.tile, block=grid.block)


def _weight(layers: Layers) -> TissueWeight:
    mask, level = layers.tissue_near(CELL_UM)
    total = layers.concentration(level).sum(0).compute(scheduler="synchronous")
    amount = np.nan_to_num(np.asarray(total)).astype(np.float16)
    return TissueWeight(mask, float(2**level), layers.grid.mpp, amount)


def _told_mpp(layers: Layers) -> dict[str, str]:
    """The slide's mpp where the run was told it, as the file is silent or wrong."""
    if (layers.provenance.get("settings") or {}).get("mpp_source") is None:
        return {}
    mpp_l0 = repr(layers.grid.mpp / layers.grid.factor)
    return {"openslide.mpp-x": mpp_l0, "openslide.mpp-y": mpp_l0}


def _layer_properties(layers: Layers) -> dict[str, str]:
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
