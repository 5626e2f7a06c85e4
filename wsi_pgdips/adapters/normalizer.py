"""A stain normaliser with TIAToolbox's interface: ``fit(target)``, then ``transform(img)``."""

from __future__ import annotations

import logging
import os
from typing import Any, cast

import numpy as np

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.looks.normalized_slide import LookLike, find_reference
from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.looks.reader import windows
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import (
    FieldTransfer,
    Method,
    check_method,
    constant_fields,
    make_transfer,
)
from wsi_pgdips.pipeline.image import checked_image, deconvolve_image
from wsi_pgdips.records import ByteArray

_LOG = logging.getLogger(__name__)


class PgdipsNormalizer:
    """Normalises single tiles, with the interface of TIAToolbox's ``StainNormalizer``.

    Give ``slide_look`` if tiles belong to a slide. A single tile holds little information about its
    stains' colours, and none about a stain that it lacks. Looks that are measured tile by tile
    therefore differ between neighbours, which shows as a checkerboard. Under the slide's look the
    same function of colour maps every tile, and it is fast.

    Without ``slide_look``, ``transform`` measures each image by itself with the preset ``fast``.
    That takes seconds an image, and suits images that stand alone.

    Colours that vary over a slide are not followed; ``NormalizedSlide`` does that, because it knows
    where a tile lies.

    It is picklable, and ``transform`` may run in several threads.

    Args:
        slide_look: ``NormalizedSlide(...).look``, the look of the tiles' slide.
        group_look: the look of the images' scanner, laboratory or staining day; see
            ``NormalizedSlide``.
        stains: of images whose look is measured, including the target of ``fit``: the name or TOML
            file of a stain set. ``slide_look`` has its own stains.
        mpp: micrometres per pixel of images whose look is measured.
        method, keep_amounts: see ``NormalizedSlide``.

    Raises:
        SettingsError: an unknown method.
    """

    def __init__(
        self,
        slide_look: Reference | None = None,
        *,
        group_look: LookLike | None = None,
        stains: str = "he",
        mpp: float = 0.5,
        method: Method = "matched",
        keep_amounts: bool = False,
    ) -> None:
        check_method(method)
        self._slide_look, self._stains, self._mpp = slide_look, stains, mpp
        group = None if group_look is None else find_reference(group_look)
        self._options: dict[str, Any] = {
            "method": method,
            "keep_amounts": keep_amounts,
            "group": group,
        }
        self._target: Reference | None = None
        self._transfer: FieldTransfer | None = None  # for all tiles, if the slide's look is known

    @property
    def target(self) -> Reference | None:
        """The look that images are given, a ``Reference``; None before ``fit``."""
        return self._target

    def fit(self, target: ByteArray | LookLike) -> None:
        """Set the look to give to images.

        Args:
            target: (H, W, 3) uint8 RGB, whose look is measured with the preset ``fast``; or a
                reference: an object, ``he``, ``hdab``, or the path of a file.

        Raises:
            SettingsError: neither of them. SlideError: the image has no tissue.
            StainError: an unknown reference, or its stains are not those of ``slide_look``.
        """
        found: Reference | None = None
        if isinstance(target, np.ndarray):
            found = self._measured(target)
        elif isinstance(target, str | os.PathLike | Reference):
            found = find_reference(target)  # None for "self", which is no target
        if found is None:
            raise SettingsError(
                "this cannot be the target of a normaliser",
                expected="(height, width, 3) uint8 RGB, or a reference: its name, path or object",
                found=target if isinstance(target, str) else type(target).__name__,
            )
        if self._slide_look is not None:
            self._transfer = self._between(self._slide_look, found)
        self._target = found

    def transform(self, img: ByteArray) -> ByteArray:
        """Return an image in the look of the target.

        Args:
            img: (H, W, 3) uint8 RGB; it is not changed.

        Returns:
            (H, W, 3) uint8, a new array. Without ``slide_look`` an image without tissue is returned
            unchanged, because its look cannot be measured.

        Raises:
            SettingsError: not such an image, or ``fit`` was not called before.
            StainError: the target's stains are not those of ``stains``.
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
                _LOG.info("the image is returned unchanged: %s", error.message)
                return img.copy()
            transfer = self._between(own, self._target)
        out = np.array(img, order="C")
        for top, left, part in windows(out):
            grid = PixelGrid((top, left), (part.shape[0], part.shape[1]), (1, 1))
            transfer.recolour(part, grid)
        return out

    def _between(self, own: Reference, target: Reference) -> FieldTransfer:
        return make_transfer(constant_fields(own), own, target, tile=1.0, **self._options)

    def _measured(self, image: ByteArray) -> Reference:
        """Measure the look of one image."""
        found = deconvolve_image(image, self._stains, preset="fast", mpp=self._mpp).look
        return cast(Reference, found)  # None only where the benchmarks ask for no look
