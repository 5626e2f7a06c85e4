"""One stain by itself, in its own colour on clean glass: OD' = B + q_n S_n, all else left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wsi_pgdips.errors import StainError
from wsi_pgdips.looks.pixels import planes_od, write_rgb
from wsi_pgdips.looks.place import Place
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import FieldTransfer, Method, check_method, make_transfer
from wsi_pgdips.optics.interpolate import Interpolation
from wsi_pgdips.records import ByteArray, Fields, FloatArray

_WHITE = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SingleStain:
    """What ``look`` makes of the amounts of one stain alone, without residual.

    Attributes:
        look: the transfer whose colours are used. index: of the stain.
    """

    look: FieldTransfer
    index: int

    def slide(self, rgba: ByteArray, place: Place, weight: Interpolation) -> None:
        """Change the slide's own pixels, (h, w, >= 3) uint8, in place: they are unmixed first."""
        q = self.look.amounts(planes_od(rgba), place)
        write_rgb(np.array(self.layers(q, place, weight), np.float32), rgba)

    def layers(self, q: FloatArray, place: Place, weight: Interpolation) -> FloatArray:
        """(N, h, w) stored q, 0 where not measured -> (3, h, w)."""
        alone = np.zeros_like(q)
        alone[self.index] = q[self.index]
        return self.look.layers(alone, place, weight)


def single_stain(
    fields: Fields,
    own: Reference,
    reference: Reference | None,
    label: str,
    *,
    tile: float,
    method: Method = "typical",
    keep_amounts: bool = False,
) -> SingleStain:
    """The view of one stain, in the colours, amounts and glass of a reference.

    Args:
        reference: None: the slide's own vector and amounts, on white.
        label: of the stain, in any case. Others: as ``make_transfer``.

    Raises:
        StainError: no such stain, or the reference is of others. SettingsError: unknown method.
    """
    labels = [name.casefold() for name in own.labels]
    if label.casefold() not in labels:
        raise StainError(
            "the slide has no such stain",
            expected=" or ".join(own.labels),
            found=label,
            where="--only",
        )
    check_method(method)  # which `self` would not use
    if reference is None:
        # q S_n in the slide's own unit vector, and B' = B + (0 - B)
        reference, method, keep_amounts = replace(own, background=_WHITE), "augmented", True
    # by itself a stain has nothing under it
    reference = replace(reference, palest=None)
    look = make_transfer(
        fields, own, reference, tile=tile, method=method, keep_amounts=keep_amounts
    )
    return SingleStain(look, labels.index(label.casefold()))
