"""Transfers from a slide's look to a reference's, pixel by pixel, with no step on the slide.

With y = OD - B(x), the density over the slide's own glass, on tissue

    typical:    OD' = B_ref + A(x) y + d(x)
    augmented:  OD' = B_ref + y + sum_n q_n (M_ref,n / M_n(x) S_ref,n - S_n(x))
    percentile: as augmented, with the 99th percentiles of q over tissue in place of M
    stains:     OD' = B(x)  + y + sum_n q_n (S_ref,n - S_n(x))

In `typical`, A takes the typical colours to the reference's, d takes the palest tissue to the
reference's, and black stays black (``frame.keep_black``). `augmented` and `stains` are as
published, with q in closed form; the residual OD - B - q S is carried over. Off tissue
OD' = B_ref + y, and OD' = OD for `stains`. ``TissueWeight`` gives the weights between tissue and
glass; d has a weight of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

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
from wsi_pgdips.looks.pixels import PixelGrid, planes_od, unmixed, write_rgb
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.interpolate import Interpolation
from wsi_pgdips.records import ByteArray, Fields, FloatArray

Method = Literal["typical", "augmented", "percentile", "stains"]
METHODS: tuple[Method, ...] = get_args(Method)
_PERCENTILE = 99.0


class Transfer(ABC):
    """Changes optical densities of a slide to those of another look."""

    @abstractmethod
    def recolour(self, rgba: ByteArray, grid: PixelGrid, weight: Interpolation) -> None:
        """Change the slide's own pixels in place.

        Args:
            rgba: (h, w, >= 3) uint8; the first three channels are changed.
            grid: where the pixels lie.
            weight: of two channels at the pixels, tissue and solid tissue; see ``TissueWeight``.
        """

    @abstractmethod
    def render(self, q: FloatArray, grid: PixelGrid, weight: Interpolation) -> FloatArray:
        """Compute the new look of stored concentrations alone, without residual.

        Args:
            q: (N, h, w) OD, 0 where not measured. grid, weight: see :meth:`recolour`.

        Returns:
            (3, h, w) float32 OD.
        """


@dataclass(frozen=True)
class FieldTransfer(Transfer):
    """A transfer under fields of a slide.

    Attributes:
        cell: side of a field's cell, output pixels.
        stain_matrix: (CY, CX, N, 3) S. background: (CY, CX, 3) B. shift: (CY, CX, 3) B_ref - B.
    """

    cell: float
    stain_matrix: FloatArray
    background: FloatArray
    shift: FloatArray

    @property
    def lifts(self) -> bool:
        """True if solid tissue is treated differently from other tissue."""
        return False

    def at(self, field: FloatArray, grid: PixelGrid) -> FloatArray:
        """Evaluate a (CY, CX, ...) field at pixels, see ``PixelGrid.field``."""
        return grid.field(field, self.cell)

    def glass(self, grid: PixelGrid) -> FloatArray:
        """Return the (3, h, w) OD of glass in the new look."""
        return self.at(self.background, grid) + self.at(self.shift, grid)

    def matrix_at(self, grid: PixelGrid) -> FloatArray:
        """Return the (N, 3, h, w) unit rows S at pixels."""
        s = self.at(self.stain_matrix, grid)
        norm = np.sqrt((s * s).sum(1, keepdims=True))
        return _float(s / np.maximum(norm, 1e-6))

    def amounts(
        self, od: FloatArray, grid: PixelGrid, stain_matrix: FloatArray | None = None
    ) -> FloatArray:
        """Return the (N, h, w) q of the slide's own pixels, in closed form.

        Args:
            od: (3, h, w). stain_matrix: :meth:`matrix_at` of the grid, if it is at hand.
        """
        s = self.matrix_at(grid) if stain_matrix is None else stain_matrix
        return unmixed(od, _spread(s, od), _spread(self.at(self.background, grid), od))

    def model(self, q: FloatArray, grid: PixelGrid) -> FloatArray:
        """Return the (3, h, w) OD over glass of q under the slide's S."""
        return _float(np.einsum("nhw,nchw->chw", q, _spread(self.matrix_at(grid), q)))


@dataclass(frozen=True)
class TypicalTransfer(FieldTransfer):
    """The method ``typical``.

    Attributes:
        change: (CY, CX, 3, 3) A - 1. rows: (N, 3) OD' over glass per unit of q. lift: (3,) d.
    """

    change: FloatArray
    rows: FloatArray
    lift: FloatArray

    @property
    def lifts(self) -> bool:
        """True if solid tissue is treated differently from other tissue."""
        return bool(self.lift.any())

    def recolour(self, rgba: ByteArray, grid: PixelGrid, weight: Interpolation) -> None:
        """See :meth:`Transfer.recolour`."""
        from wsi_pgdips.looks.kernel import change_pixels  # numba takes half a second

        change_pixels(rgba, grid.around(self.kernel_fields, self.cell), weight, self.lift)

    @cached_property
    def kernel_fields(self) -> FloatArray:
        """(CY, CX, 15): all fields that the kernel interpolates."""
        cells = self.background.shape[:2]
        parts = (self.change.reshape(*cells, 9), self.background, self.shift)
        return np.concatenate(parts, -1, dtype=np.float32)

    def render(self, q: FloatArray, grid: PixelGrid, weight: Interpolation) -> FloatArray:
        """See :meth:`Transfer.render`."""
        tissue, solid = weight.pixels()
        mapped = _float(np.einsum("nhw,nc->chw", q, self.rows))
        y = keep_black(self.model(q, grid), mapped) * tissue
        return _float(y + self.lift[:, None, None] * solid + self.glass(grid))


@dataclass(frozen=True)
class PublishedTransfer(FieldTransfer):
    """The methods ``augmented``, ``percentile`` and ``stains``.

    Attributes:
        rows: (N, 3) S_ref. gain: (GY, GX, N) factor on q. tile: side of a tile, output pixels.
    """

    rows: FloatArray
    gain: FloatArray
    tile: float

    def recolour(self, rgba: ByteArray, grid: PixelGrid, weight: Interpolation) -> None:
        """See :meth:`Transfer.recolour`."""
        od, s = planes_od(rgba), self.matrix_at(grid)
        change = _spread(self._rows_at(grid) - s, od)
        moved = np.einsum("nhw,nchw->chw", self.amounts(od, grid, s), change)
        write_rgb(_float(moved * weight.pixels()[0] + od + self.at(self.shift, grid)), rgba)

    def render(self, q: FloatArray, grid: PixelGrid, weight: Interpolation) -> FloatArray:
        """See :meth:`Transfer.render`."""
        y = np.einsum("nhw,nchw->chw", q, _spread(self._rows_at(grid), q))
        return _float(y * weight.pixels()[0] + self.glass(grid))

    def _rows_at(self, grid: PixelGrid) -> FloatArray:
        """Return the (N, 3, h, w) rows of the reference, times the gain at the pixels."""
        gain = grid.field(self.gain, self.tile)
        return _float(self.rows[:, :, None, None] * gain[:, None])


@dataclass(frozen=True)
class IdentityTransfer(FieldTransfer):
    """Leaves the slide's pixels as they are, and renders layers as the model describes them."""

    def recolour(self, rgba: ByteArray, grid: PixelGrid, weight: Interpolation) -> None:
        """Change nothing."""

    def render(self, q: FloatArray, grid: PixelGrid, weight: Interpolation) -> FloatArray:
        """See :meth:`Transfer.render`."""
        return _float(self.model(q, grid) * weight.pixels()[0] + self.glass(grid))


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises:
        SettingsError: it is none of ``METHODS``.
    """
    if method not in METHODS:
        raise SettingsError(
            "unknown method of normalisation",
            expected=", ".join(METHODS),
            found=method,
            where="--method",
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
    """Make the transfer from a slide's look to a reference's.

    Args:
        fields: of the slide. own: the slide's look. tile: side of a tile, output pixels.
        reference: None for the slide itself (``self``).
        method: see the module; ``typical`` falls back to ``augmented`` for more than three stains
            and for typical colours that define no map.
        keep_amounts: change colours only: a typical colour keeps its length, and q is not scaled.

    Raises:
        SettingsError: an unknown method. StainError: the reference is of other stains.
    """
    check_method(method)
    cell = tile * fields.inherited.shape[0] / len(fields.background)
    base = (cell, fields.stain_matrix, fields.background)
    shift = np.zeros_like(fields.background)
    if reference is None:
        return IdentityTransfer(*base, shift)
    reference = reference.ordered(own.labels)
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
    """Return ``change``, ``rows`` and ``lift`` of ``TypicalTransfer``; None if there is no map."""
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
    """Return the (GY, GX, N) or (N,) factor on q; 1 if the amounts of one look are not known."""
    here: npt.ArrayLike | None = None
    there: npt.ArrayLike | None = None
    if method == "percentile":
        here, there = (look.percentiles.get(_PERCENTILE) for look in (own, reference))
    elif method != "stains" and own.spectral_correction is not None:
        here, there = fields.spectral_correction, reference.spectral_correction
    if here is None or there is None:
        return np.ones(own.n, np.float32)
    return _float(np.asarray(there) / np.maximum(here, 1e-3))


def constant_fields(look: Reference) -> Fields:
    """Return the fields of an image with one look everywhere, on a single tile."""
    s = look.stain_matrix[None, None]
    m = np.asarray(look.spectral_correction or (1.0,) * look.n, np.float32)[None, None]
    b = np.asarray(look.background or (0.0,) * 3, np.float32)[None, None]
    return Fields(s, m, b, s, m, b, np.ones_like(m), np.zeros((1, 1), bool))


def _float(values: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(values, np.float32)


def _spread(field: FloatArray, like: FloatArray) -> FloatArray:
    """Broadcast the last two axes of a field to those of another array."""
    return np.broadcast_to(field, (*field.shape[:-2], *like.shape[-2:]))
