"""From a slide's look to a reference's, pixel by pixel, continuous over the slide.

With y = OD - B(x), the light that glass takes away undone, on tissue

    typical:    OD' = B_ref + A(x) y + d(x) A takes typical colours to the reference's, d palest,
                                            and black stays black (``frame.keep_black``)
    augmented:  OD' = B_ref + y + sum_n q_n (M_ref,n / M_n(x) S_ref,n - S_n(x))
    percentile: the same with the 99th percentiles of q over tissue for M
    stains:     OD' = B(x)  + y + sum_n q_n (S_ref,n - S_n(x))

(augmented and stains as published, with q in closed form; what q S does not explain is carried
over), and off tissue OD' = B_ref + y, for `stains` OD' = OD; between the two the weights of
``TissueWeight``, of which the second is d's.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.frame import (
    MAX_STAINS,
    colour_maps,
    keep_black,
    lift,
    linear_map,
    mixture,
    off_plane_gain,
    typical_pair,
)
from wsi_pgdips.looks.pixels import planes_od, write_rgb
from wsi_pgdips.looks.place import Place
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.interpolate import Interpolation
from wsi_pgdips.records import ByteArray, Fields, FloatArray

Method = Literal["typical", "augmented", "percentile", "stains"]
METHODS: tuple[Method, ...] = get_args(Method)
_IMPORTED_BY = os.getpid()
_PERCENTILE = 99.0


class Transfer(Protocol):
    """Optical densities of a slide to those of its new look."""

    def slide(self, rgba: ByteArray, place: Place, weight: Interpolation) -> None:
        """Change the slide's own pixels in place.

        Args:
            rgba: (h, w, >= 3) uint8. place: where they lie. weight: of tissue, and of solid
                tissue, at them: two channels, see ``TissueWeight``.
        """
        ...

    def layers(self, q: FloatArray, place: Place, weight: Interpolation) -> FloatArray:
        """(N, h, w) stored q alone, 0 where not measured -> (3, h, w), without residual."""
        ...


@dataclass(frozen=True)
class FieldTransfer(ABC):
    """Under fields on cells of side ``cell``: S (CY, CX, N, 3), B (CY, CX, 3), and B_ref - B."""

    cell: float
    stain_matrix: FloatArray
    background: FloatArray
    shift: FloatArray

    @property
    def lifts(self) -> bool:
        """Whether solid tissue is treated otherwise than tissue."""
        return False

    @abstractmethod
    def slide(self, rgba: ByteArray, place: Place, weight: Interpolation) -> None:
        """As of ``Transfer``."""

    @abstractmethod
    def layers(self, q: FloatArray, place: Place, weight: Interpolation) -> FloatArray:
        """As of ``Transfer``."""

    def at(self, field: FloatArray, place: Place) -> FloatArray:
        return place.field(field, self.cell)

    def glass(self, place: Place) -> FloatArray:
        """(3, h, w) OD of glass in the new look."""
        return self.at(self.background, place) + self.at(self.shift, place)

    def matrix_at(self, place: Place) -> FloatArray:
        """(N, 3, h, w) S, rows renormalised after interpolation."""
        s = self.at(self.stain_matrix, place)
        norm = np.sqrt((s * s).sum(1, keepdims=True))
        return _float(s / np.maximum(norm, 1e-6))

    def amounts(self, od: FloatArray, place: Place) -> FloatArray:
        """(N, h, w) q of the slide's own pixels, in closed form."""
        return self.unmixed(od, self.matrix_at(place), place)

    def unmixed(self, od: FloatArray, s: FloatArray, place: Place) -> FloatArray:
        """The same with S at hand."""
        import torch

        from wsi_pgdips.optics.unmix import unmix

        if os.getpid() != _IMPORTED_BY:  # OpenMP's threads do not survive a fork
            torch.set_num_threads(1)
        b = self.at(self.background, place)
        with torch.no_grad():
            q = unmix(
                *(torch.from_numpy(np.array(a)) for a in (od, _spread(s, od), _spread(b, od)))
            )
        return _float(q.numpy())

    def model(self, q: FloatArray, place: Place) -> FloatArray:
        """(3, h, w) OD over glass that q is under the slide's S."""
        return _float(np.einsum("nhw,nchw->chw", q, _spread(self.matrix_at(place), q)))


@dataclass(frozen=True)
class TypicalTransfer(FieldTransfer):
    """``typical``: ``change`` is A - 1, (CY, CX, 3, 3); ``rows`` (N, 3) what A is to q; d (3,)."""

    change: FloatArray
    rows: FloatArray
    lift: FloatArray

    @property
    def lifts(self) -> bool:
        return bool(self.lift.any())

    def slide(self, rgba: ByteArray, place: Place, weight: Interpolation) -> None:
        from wsi_pgdips.looks.kernel import change_pixels  # numba takes half a second

        change_pixels(rgba, place.around(self.kernel_fields, self.cell), weight, self.lift)

    @cached_property
    def kernel_fields(self) -> FloatArray:
        """(CY, CX, 15) all that the kernel interpolates."""
        cells = self.background.shape[:2]
        parts = (self.change.reshape(*cells, 9), self.background, self.shift)
        return np.concatenate(parts, -1, dtype=np.float32)

    def layers(self, q: FloatArray, place: Place, weight: Interpolation) -> FloatArray:
        tissue, solid = weight.pixels()
        mapped = _float(np.einsum("nhw,nc->chw", q, self.rows))
        y = keep_black(self.model(q, place), mapped) * tissue
        return _float(y + self.lift[:, None, None] * solid + self.glass(place))


@dataclass(frozen=True)
class PublishedTransfer(FieldTransfer):
    """``augmented`` and ``stains``: ``rows`` of the reference, ``gain`` on q, (GY, GX, N)."""

    rows: FloatArray
    gain: FloatArray
    tile: float

    def slide(self, rgba: ByteArray, place: Place, weight: Interpolation) -> None:
        od, s = planes_od(rgba), self.matrix_at(place)
        change = _spread(self._rows(place) - s, od)
        moved = np.einsum("nhw,nchw->chw", self.unmixed(od, s, place), change)
        write_rgb(_float(moved * weight.pixels()[0] + od + self.at(self.shift, place)), rgba)

    def layers(self, q: FloatArray, place: Place, weight: Interpolation) -> FloatArray:
        y = np.einsum("nhw,nchw->chw", q, _spread(self._rows(place), q))
        return _float(y * weight.pixels()[0] + self.glass(place))

    def _rows(self, place: Place) -> FloatArray:
        """(N, 3, h, w) rows of the reference, times the gain at the pixels."""
        gain = place.field(self.gain, self.tile)
        return _float(self.rows[:, :, None, None] * gain[:, None])


@dataclass(frozen=True)
class IdentityTransfer(FieldTransfer):
    """The slide as it is; from its layers alone, what the model says of it."""

    def slide(self, rgba: ByteArray, place: Place, weight: Interpolation) -> None:
        """Nothing to change."""

    def layers(self, q: FloatArray, place: Place, weight: Interpolation) -> FloatArray:
        return _float(self.model(q, place) * weight.pixels()[0] + self.glass(place))


def check_method(method: str) -> None:
    """Refuse an unknown way to normalise.

    Raises:
        SettingsError: it is none of ``METHODS``.
    """
    if method not in METHODS:
        raise SettingsError(
            "unknown way to normalise", expected=", ".join(METHODS), found=method, where="--method"
        )


def make_transfer(
    fields: Fields,
    own: Reference,
    reference: Reference | None,
    *,
    tile: float,
    method: Method = "typical",
    keep_amounts: bool = False,
) -> FieldTransfer:
    """The way from a slide's look to a reference's.

    Args:
        fields: of the slide. own: the slide's look. tile: side of a tile, output pixels.
        reference: None for the slide itself (``self``).
        method: see the module; ``typical`` falls back to ``augmented`` for more than three stains.
        keep_amounts: change colours only: a typical colour keeps its length, and q is not scaled.

    Raises:
        SettingsError: an unknown method. StainError: the reference is of other stains.
    """
    check_method(method)
    cell = tile * fields.inherited.shape[0] / len(fields.background)
    base = (cell, fields.stain_matrix, fields.background)
    still = np.zeros_like(fields.background)
    if reference is None:
        return IdentityTransfer(*base, still)
    reference = reference.ordered(own.labels)
    shift = still
    known = reference.background is not None and own.background is not None
    if method != "stains" and known:
        shift = _float(np.asarray(reference.background) - fields.background)
    if method == "typical" and own.n <= MAX_STAINS:
        found = _typical(fields, own, reference, keep_amounts)
        if found is not None:
            return TypicalTransfer(*base, shift, *found)
    gain = np.ones_like(fields.spectral_correction)
    if not keep_amounts:
        gain = gain * _gain(fields, own, reference, method)
    return PublishedTransfer(*base, shift, reference.stain_matrix, gain, tile)


def _typical(
    fields: Fields, own: Reference, reference: Reference, keep_amounts: bool
) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """``change``, ``rows`` and ``lift`` of ``TypicalTransfer``; None where colours tell no map."""
    source, target = typical_pair(own, reference)
    raised, spread = np.zeros(3), None
    if keep_amounts:
        lengths = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (source, target))
        target = target * np.divide(*lengths)
    else:
        spread = off_plane_gain(own, reference, source, target)
        raised = lift(own, reference, source, target, spread)
    target = _float(target - raised)
    maps = colour_maps(fields, own, source, target, spread)
    constant = linear_map(source, target, spread)
    if maps is None or constant is None:
        return None
    rows = np.linalg.pinv(mixture(own, source)) @ source @ constant.T
    return _float(maps - np.eye(3)), _float(rows), _float(raised)


def _gain(fields: Fields, own: Reference, reference: Reference, method: Method) -> FloatArray:
    """(GY, GX, N) or (N,) factor on q; 1 where one side does not know its amounts."""
    if method == "percentile":
        there, here = (look.percentiles.get(_PERCENTILE) for look in (reference, own))
    else:
        there, here = reference.spectral_correction, None
    unknown = here is None if method == "percentile" else own.spectral_correction is None
    if method == "stains" or there is None or unknown:
        return np.ones(own.n, np.float32)
    below = fields.spectral_correction if here is None else np.asarray(here)
    return _float(np.asarray(there) / np.maximum(below, 1e-3))


def constant_fields(look: Reference) -> Fields:
    """Fields of an image that is one look all over, on a single tile."""
    s = look.stain_matrix[None, None]
    m = np.asarray(look.spectral_correction or (1.0,) * look.n, np.float32)[None, None]
    b = np.asarray(look.background or (0.0,) * 3, np.float32)[None, None]
    return Fields(s, m, b, s, m, b, np.ones_like(m), np.zeros((1, 1), bool))


def _float(values: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(values, np.float32)


def _spread(field: FloatArray, like: FloatArray) -> FloatArray:
    return np.broadcast_to(field, (*field.shape[:-2], *like.shape[-2:]))
