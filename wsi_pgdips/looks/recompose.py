"""RGB from concentrations: all stains with what they leave unexplained, or one stain alone.

The model explains OD = B + q S up to a residual of three signed channels, which is taken from the
slide's pixels under the concentrations as they are stored. Added back under the same S and B it
returns the slide; under a reference's S, M and B it keeps the slide's texture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsi_pgdips.errors import StainError
from wsi_pgdips.looks.pixels import PixelGrid, planes_od, write_rgb
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import (
    FieldTransfer,
    Transfer,
    check_method,
    make_transfer,
)
from wsi_pgdips.optics.physics import compose_od, od_to_rgb
from wsi_pgdips.records import ByteArray, Fields, FloatArray

_WHITE = (0.0, 0.0, 0.0)  # OD of a background


def model_od(q: FloatArray, stain_matrix: FloatArray, background: FloatArray) -> FloatArray:
    """Compute B + q S of stored concentrations.

    Args:
        q: (N, h, w) OD along the unit vectors; NaN (not measured) counts as 0.
        stain_matrix: (N, 3), or (N, 3, h, w) where it varies per pixel.
        background: (3,), or (3, h, w).

    Returns:
        (3, h, w) float32 OD.
    """
    known = np.nan_to_num(np.asarray(q, np.float32), nan=0.0)
    return compose_od(known, stain_matrix, background)


def residual_od(
    od: FloatArray, q: FloatArray, stain_matrix: FloatArray, background: FloatArray
) -> FloatArray:
    """Compute OD - B - q S, the signed part of OD that the model leaves unexplained.

    Args:
        od: (3, h, w) OD of the slide's pixels (``optics.physics.rgb_to_od``).
        q: (N, h, w), as stored and so after quantisation; NaN (not measured) counts as 0.
        stain_matrix: (N, 3), or (N, 3, h, w). background: (3,), or (3, h, w).

    Returns:
        (3, h, w) float32 OD.
    """
    return np.asarray(od - model_od(q, stain_matrix, background), np.float32)


def recompose(
    q: FloatArray,
    stain_matrix: FloatArray,
    background: FloatArray,
    residual: FloatArray | None = None,
) -> ByteArray:
    """Compute I = 255 10**-(B + q S + residual).

    With the arguments given to :func:`residual_od` and its result, this returns the slide's own
    pixels, byte for byte. A residual stored in steps of 1e-3 OD is exact enough for that too.

    Args:
        q: (N, h, w); NaN (not measured) counts as 0. stain_matrix: (N, 3), or (N, 3, h, w).
        background: (3,), or (3, h, w).
        residual: (3, h, w) OD, or None for the model alone, without what the stains cannot explain.

    Returns:
        (h, w, 3) uint8.
    """
    od = model_od(q, stain_matrix, background)
    if residual is not None:
        od = od + residual
    return np.ascontiguousarray(od_to_rgb(od).transpose(1, 2, 0))


@dataclass(frozen=True)
class SingleStain(Transfer):
    """Shows one stain by itself: OD' = B + q_n S_n in the new look, without residual.

    Attributes:
        look: the transfer whose colours are used. index: of the stain.
    """

    look: FieldTransfer
    index: int

    def recolour(self, rgba: ByteArray, grid: PixelGrid, foreign: FloatArray | None = None) -> None:
        """Unmix the slide's own pixels, and overwrite them; see :meth:`Transfer.recolour`."""
        q = self.look.amounts(planes_od(rgba), grid)
        if foreign is not None:
            q *= 1 - foreign  # no stain is there
        write_rgb(np.array(self.render(q, grid), np.float32), rgba)

    def render(self, q: FloatArray, grid: PixelGrid) -> FloatArray:
        """See :meth:`Transfer.render`."""
        alone = np.zeros_like(q)
        alone[self.index] = q[self.index]
        return self.look.render(alone, grid)


def single_stain(
    fields: Fields, own: Reference, reference: Reference | None, label: str, **options: Any
) -> SingleStain:
    """Make the transfer that shows one stain by itself.

    Args:
        reference: its colours, amounts and glass are used; None for the slide's own vector and
            amounts on white.
        label: of the stain, in any case. options, others: see ``make_transfer``.

    Raises:
        StainError: no such stain, or the reference is of other stains.
        SettingsError: an unknown method.
    """
    labels = [name.casefold() for name in own.labels]
    if label.casefold() not in labels:
        raise StainError(
            "the slide has no such stain",
            expected=" or ".join(own.labels),
            found=label,
            where="--only",
        )
    check_method(options.get("method", "matched"))  # even where it is not used
    if reference is None:
        # q S_n in the slide's own unit vector, and B' = B + (0 - B)
        reference = replace(own, background=_WHITE, members=())
        options |= {"method": "augmented", "keep_amounts": True, "group": None}
    look = make_transfer(fields, own, reference, **options)
    return SingleStain(look, labels.index(label.casefold()))
