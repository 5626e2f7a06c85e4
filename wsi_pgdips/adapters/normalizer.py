"""A stain normaliser as TIAToolbox's are: ``fit(target)``, then ``transform(img)`` per tile."""

from __future__ import annotations

import logging
import os
from typing import Any, cast

import numpy as np

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.looks.normalized_slide import find_reference
from wsi_pgdips.looks.pixels import PixelGrid, planes_od
from wsi_pgdips.looks.reader import windows
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import (
    FieldTransfer,
    Method,
    check_method,
    constant_fields,
    make_transfer,
)
from wsi_pgdips.looks.weight import even_weight, pixel_weight
from wsi_pgdips.pipeline.image import checked_image, deconvolve_image
from wsi_pgdips.records import ByteArray

_LOG = logging.getLogger(__name__)
ReferenceLike = str | os.PathLike[str] | Reference


class PgdipsNormalizer:
    """``tiatoolbox.tools.stainnorm.StainNormalizer``'s interface, for whoever has tiles in hand.

    Give ``slide_look`` wherever tiles belong to a slide. One tile says little about its stains'
    colours (a tile without eosin says nothing of eosin), so looks measured tile by tile differ
    between neighbours and show as a checkerboard; under the slide's look every tile is mapped by
    the same function of a pixel's colour, and quickly. Without it ``transform`` measures each image
    by itself, with the preset ``fast``: seconds an image, and right for images that stand alone.
    What varies over a slide is left to ``NormalizedSlide``, which knows where a tile lies.

    Picklable; ``transform`` may run in several threads.

    Args:
        slide_look: ``NormalizedSlide(...).look``, or ``slide_look(open_layers(path))``.
        stains: of images whose look is measured, ``fit``'s target among them; ``he``, or the name
            or TOML file of a stain set. ``slide_look`` brings its own.
        mpp: micrometres per pixel of images whose look is measured.
        method, keep_amounts: as for ``NormalizedSlide``.

    Raises:
        SettingsError: an unknown method.
    """

    def __init__(
        self,
        slide_look: Reference | None = None,
        *,
        stains: str = "he",
        mpp: float = 0.5,
        method: Method = "typical",
        keep_amounts: bool = False,
    ) -> None:
        check_method(method)
        self._slide_look, self._stains, self._mpp = slide_look, stains, mpp
        self._options: dict[str, Any] = {"method": method, "keep_amounts": keep_amounts}
        self._target: Reference | None = None
        self._transfer: FieldTransfer | None = None  # of all tiles, where the slide's look is known

    @property
    def target(self) -> Reference | None:
        """The look that images are given; None before ``fit``."""
        return self._target

    def fit(self, target: ByteArray | ReferenceLike) -> None:
        """Take the look to give to images.

        Args:
            target: (H, W, 3) uint8 RGB, measured with the preset ``fast``; or a reference: an
                object, ``he``, ``hdab``, or the path of a file.

        Raises:
            SettingsError: neither. SlideError: an image without tissue.
            StainError: an unknown reference, or one of other stains than ``slide_look``.
        """
        found: Reference | None = None
        if isinstance(target, np.ndarray):
            found = self._measured(target)
        elif isinstance(target, str | os.PathLike | Reference):
            found = find_reference(target)  # none for "self": an image without a change of look
        if found is None:
            raise SettingsError(
                "not a target for a normaliser",
                expected="(height, width, 3) uint8 RGB, or a reference: its name, path or object",
                found=target if isinstance(target, str) else type(target).__name__,
            )
        if self._slide_look is not None:
            self._transfer = self._between(self._slide_look, found)
        self._target = found

    def transform(self, img: ByteArray) -> ByteArray:
        """An image in the look of the target.

        Args:
            img: (H, W, 3) uint8 RGB; left as it is.

        Returns:
            (H, W, 3) uint8, new. An image of glass alone has no look to be measured: without
            ``slide_look`` it comes back unchanged.

        Raises:
            SettingsError: not such an image, or ``fit`` was not called before.
            StainError: the target is of other stains than ``stains``.
        """
        img = checked_image(img, "normalised")
        if self._target is None:
            raise SettingsError(
                "the normaliser has no target yet", hint="call fit(target) before transform(img)"
            )
        transfer = self._transfer
        if transfer is None:
            try:
                own = self._measured(img)
            except SlideError as error:
                _LOG.info("an image is left as it is: %s", error.message)
                return img.copy()
            transfer = self._between(own, self._target)
        out = np.array(img, order="C")
        for top, left, part in windows(out):
            grid = PixelGrid((top, left), (part.shape[0], part.shape[1]), (1, 1))
            weight = even_weight(1.0, 1.0, grid.shape)
            if transfer.lifts:
                weight = pixel_weight(transfer.amounts(planes_od(part), grid).sum(0))
            transfer.recolour(part, grid, weight)
        return out

    def _between(self, own: Reference, target: Reference) -> FieldTransfer:
        return make_transfer(constant_fields(own), own, target, tile=1.0, **self._options)

    def _measured(self, image: ByteArray) -> Reference:
        found = deconvolve_image(image, self._stains, preset="fast", mpp=self._mpp).look
        return cast(Reference, found)  # None for parts of a bench only
