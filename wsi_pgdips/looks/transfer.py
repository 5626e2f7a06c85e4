"""Transfers from a slide's look to a reference's, pixel by pixel, with no step on the slide.

With y = OD - B(x), the density over the slide's own glass,

    matched:   OD' = B_ref + y + C(x) [y],  C(x) = A D(x) - 1
    augmented: OD' = B_ref + y + sum_n q_n (M_ref,n / M_n(x) S_ref,n - S_n(x))

In `matched`, D(x) takes the drift of the stains over the slide off (``slide_look.drift_map``), and
A is the map that the looks support (``match``); both are the identity without evidence. [y] is the
nearest colour inside of what A was estimated on, so that nothing is extrapolated. `augmented` is as
published, with q in closed form; the residual OD - B - q S is carried over. Foreign pixels take the
change of glass alone, OD' = B_ref + y. Where neither the slide nor its group shows glass, B_ref is
B.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.colour_map import ColourMap
from wsi_pgdips.looks.match import ColourChange, Inside, match_looks
from wsi_pgdips.looks.pixels import PixelGrid, planes_od, unmixed, write_rgb
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.slide_look import drift_map
from wsi_pgdips.records import ByteArray, Fields, FloatArray

Method = Literal["matched", "augmented"]
METHODS: tuple[Method, ...] = get_args(Method)
_BOUNDED_OD, _MEASURED_OD = 0.02, 0.001  # errors of B that was bounded, and measured
_EVERYWHERE = Inside(1e6, (-1e6, -1e6), (1e6, 1e6))


class Transfer(ABC):
    """Changes optical densities of a slide to those of another look."""

    @abstractmethod
    def recolour(self, rgba: ByteArray, grid: PixelGrid, foreign: FloatArray | None = None) -> None:
        """Change the slide's own pixels in place.

        Args:
            rgba: (h, w, >= 3) uint8; the first three channels are changed.
            grid: where the pixels lie.
            foreign: (h, w) in [0, 1], how far pixels are foreign; None where none is.
        """

    @abstractmethod
    def render(self, q: FloatArray, grid: PixelGrid) -> FloatArray:
        """Compute the new look of stored concentrations alone, without residual.

        Args:
            q: (N, h, w) OD, 0 where not measured. grid: see :meth:`recolour`.

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
class MatchedTransfer(FieldTransfer):
    """The method ``matched``.

    Attributes:
        change: (CY, CX, 3, 3) C. found: the map A and what it rests on.
    """

    change: FloatArray
    found: ColourChange

    def recolour(self, rgba: ByteArray, grid: PixelGrid, foreign: FloatArray | None = None) -> None:
        """See :meth:`Transfer.recolour`."""
        from wsi_pgdips.looks.kernel import change_pixels  # numba takes half a second

        change_pixels(rgba, grid.around(self._kernel_fields, self.cell), self._inside, foreign)

    @cached_property
    def _kernel_fields(self) -> FloatArray:
        """(CY, CX, 15): all fields that the kernel interpolates."""
        cells = self.background.shape[:2]
        parts = (self.change.reshape(*cells, 9), self.background, self.shift)
        return np.concatenate(parts, -1, dtype=np.float32)

    @property
    def _inside(self) -> Inside:
        return self.found.inside or _EVERYWHERE

    def render(self, q: FloatArray, grid: PixelGrid) -> FloatArray:
        """See :meth:`Transfer.render`."""
        y = self.model(q, grid)
        change = _spread(self.at(self.change, grid), y)
        moved = np.einsum("ijhw,jhw->ihw", change, self._inside.nearest(y))
        return _float(y + moved + self.glass(grid))


@dataclass(frozen=True)
class PublishedTransfer(FieldTransfer):
    """The method ``augmented``.

    Attributes:
        rows: (N, 3) S_ref. gain: (GY, GX, N) factor on q. tile: side of a tile, output pixels.
    """

    rows: FloatArray
    gain: FloatArray
    tile: float

    def recolour(self, rgba: ByteArray, grid: PixelGrid, foreign: FloatArray | None = None) -> None:
        """See :meth:`Transfer.recolour`."""
        od, s = planes_od(rgba), self.matrix_at(grid)
        change = _spread(self._rows_at(grid) - s, od)
        moved = np.einsum("nhw,nchw->chw", self.amounts(od, grid, s), change)
        if foreign is not None:
            moved *= 1 - foreign
        write_rgb(_float(moved + od + self.at(self.shift, grid)), rgba)

    def render(self, q: FloatArray, grid: PixelGrid) -> FloatArray:
        """See :meth:`Transfer.render`."""
        y = np.einsum("nhw,nchw->chw", q, _spread(self._rows_at(grid), q))
        return _float(y + self.glass(grid))

    def _rows_at(self, grid: PixelGrid) -> FloatArray:
        """Return the (N, 3, h, w) rows of the reference, times the gain at the pixels."""
        gain = grid.field(self.gain, self.tile)
        return _float(self.rows[:, :, None, None] * gain[:, None])


@dataclass(frozen=True)
class IdentityTransfer(FieldTransfer):
    """Leaves the slide's pixels as they are, and renders layers as the model describes them."""

    def recolour(self, rgba: ByteArray, grid: PixelGrid, foreign: FloatArray | None = None) -> None:
        """Change nothing."""

    def render(self, q: FloatArray, grid: PixelGrid) -> FloatArray:
        """See :meth:`Transfer.render`."""
        return _float(self.model(q, grid) + self.glass(grid))


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
    method: Method = "matched",
    group: Reference | None = None,
    colour_map: ColourMap | None = None,
    keep_amounts: bool = False,
) -> FieldTransfer:
    """Make the transfer from a slide's look to a reference's.

    Args:
        fields: of the slide. own: the slide's look. tile: side of a tile, output pixels.
        reference: None for the slide itself (``self``). method: see the module.
        group: the look of the slide's scanner, laboratory or staining day.
        colour_map: from registered scans; it stands in place of looks.
        keep_amounts: change colours only, not how dark the stains are.

    Raises:
        SettingsError: an unknown method. StainError: the reference or the group is of other stains.
    """
    check_method(method)
    if colour_map is not None:
        return _mapped(own, colour_map)
    cell = tile * fields.inherited.shape[0] / len(fields.background)
    if group is not None:
        group = group.ordered(own.labels)
    known = fields.background
    if not own.glass_measured and own.background is not None:  # without the floor of the run's B
        known = np.broadcast_to(np.asarray(own.background, np.float32), known.shape)
    background = _float(known + glass_step(own, group))
    base = (cell, fields.stain_matrix, background)
    if reference is None:
        return IdentityTransfer(
            cell, fields.stain_matrix, fields.background, np.zeros_like(background)
        )
    reference = reference.ordered(own.labels)
    shift = np.zeros_like(background)
    sure = own.glass_measured or (group is not None and group.glass_measured)
    if reference.background is not None and own.background is not None and sure:
        shift = _float(np.asarray(reference.background) - background)
    if method == "matched":
        found = match_looks(own, reference, group)
        a = found.matrix
        if keep_amounts:
            a = a / np.exp(np.log(np.linalg.norm(own.stain_matrix @ a.T, axis=1)).mean())
        drift = drift_map(fields.stain_matrix, own.stain_matrix) - np.eye(3)
        change = a @ (np.eye(3) + found.evidence * drift) - np.eye(3)
        return MatchedTransfer(*base, shift, _float(change), found)
    gain = np.ones_like(fields.spectral_correction)
    both = own.spectral_correction is not None and reference.spectral_correction is not None
    if both and not keep_amounts:
        there = np.asarray(reference.spectral_correction)
        gain = _float(there / np.maximum(fields.spectral_correction, 1e-3))
    return PublishedTransfer(*base, shift, reference.stain_matrix, gain, tile)


def _mapped(own: Reference, colour_map: ColourMap) -> MatchedTransfer:
    """The transfer by a map of two scanners, the same everywhere on a slide."""
    m = colour_map
    inside = Inside(m.top, (m.share_low[0], m.share_low[1]), (m.share_high[0], m.share_high[1]))
    matrix = np.asarray(m.matrix, np.float64)
    before, after = (
        _float(np.asarray(b)[None, None]) for b in (m.background_from, m.background_to)
    )
    change = _float((matrix - np.eye(3))[None, None])
    found = ColourChange(matrix, inside, 1.0, m.pairs)
    return MatchedTransfer(1.0, own.stain_matrix[None, None], before, after - before, change, found)


def glass_step(own: Reference, group: Reference | None) -> FloatArray:
    """Return the (3,) OD to add to B: from the slide's own, towards its group's, by evidence.

    B_used - B = (B_group - B) v / (v + v_group), with v the variance of the slide's own B, which is
    large if it shows no glass, and v_group that of B between slides of the group.
    """
    if group is None or group.background is None or own.background is None:
        return np.zeros(3, np.float32)
    apart = np.asarray(group.background) - np.asarray(own.background)
    mine = (_MEASURED_OD if own.glass_measured else _BOUNDED_OD) ** 2
    between = np.square(group.spread.get("background", (0.0, 0.0, 0.0)))
    least = _MEASURED_OD if group.glass_measured else _BOUNDED_OD
    return _float(apart * mine / (mine + between + least**2))


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
