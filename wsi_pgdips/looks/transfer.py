"""From a slide's look to a reference's, pixel by pixel, continuous over the slide.

With y = OD - B(x), the light that glass takes away undone, on tissue

    typical:    OD' = B_ref + A(x) y        A takes the stains' typical colours to the reference's
    augmented:  OD' = B_ref + y + sum_n q_n (M_ref,n / M_n(x) S_ref,n - S_n(x))
    stains:     OD' = B(x)  + y + sum_n q_n (S_ref,n - S_n(x))

(the last two as published, with q in closed form, and what q S does not explain carried over), and
off tissue OD' = B_ref + y, for `stains` OD' = OD; between the two the weight of ``TissueWeight``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.frame import MAX_STAINS, colour_maps, mixture, typical_pair
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.interpolate import interpolation_at
from wsi_pgdips.records import Fields, FloatArray

Method = Literal["typical", "augmented", "stains"]
METHODS: tuple[Method, ...] = get_args(Method)
_SAME = 1e-7  # a field that varies less over a window is taken as constant there


@dataclass(frozen=True)
class Place:
    """Pixels on the slide, of any size.

    Attributes:
        start: (y, x) edge of the first pixel, in these pixels, from the slide's top left corner.
        shape: (h, w). size: (down, across) output pixels per pixel.
    """

    start: tuple[float, float]
    shape: tuple[int, int]
    size: tuple[float, float]

    def field(self, field: npt.NDArray[np.floating], cell: float) -> FloatArray:
        """A (CY, CX, ...) field at these pixels: (..., h, w), or (..., 1, 1) where it is constant.

        Args:
            cell: side of a cell of the field, output pixels.
        """
        side = (cell / self.size[0], cell / self.size[1])
        found = interpolation_at(field, side, self.start, self.shape)
        flat = found.local.reshape(len(found.local), -1)
        lead = field.shape[2:]
        if np.ptp(flat, axis=1).max() <= _SAME:
            return flat[:, 0].reshape(*lead, 1, 1)
        return found.pixels().reshape(*lead, *self.shape)


class Transfer(Protocol):
    """Optical densities of a slide to those of its new look."""

    def slide(self, od: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        """(3, h, w) OD of the slide's own pixels, and (h, w) weight of tissue -> (3, h, w)."""
        ...

    def layers(self, q: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        """(N, h, w) stored q alone, 0 where not measured -> (3, h, w), without residual."""
        ...


@dataclass(frozen=True)
class _Base:
    """Fields on cells: S (CY, CX, N, 3), B (CY, CX, 3), B_ref - B; ``cell`` in output pixels."""

    cell: float
    stain_matrix: FloatArray
    background: FloatArray
    shift: FloatArray

    def at(self, field: FloatArray, place: Place) -> FloatArray:
        return place.field(field, self.cell)

    def matrix_at(self, place: Place) -> FloatArray:
        """(N, 3, h, w) S, rows renormalised after interpolation."""
        s = self.at(self.stain_matrix, place)
        norm = np.sqrt((s * s).sum(1, keepdims=True))
        return _float(s / np.maximum(norm, 1e-6))


@dataclass(frozen=True)
class TypicalTransfer(_Base):
    """``typical``: ``change`` is A - 1, (CY, CX, 3, 3); ``rows`` (N, 3) what A is to q."""

    change: FloatArray
    rows: FloatArray

    def slide(self, od: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        background = self.at(self.background, place)
        moved = _product(self.at(self.change, place), od - background)
        moved *= weight
        moved += od
        moved += self.at(self.shift, place)
        return moved

    def layers(self, q: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        y = np.einsum("nhw,nc->chw", q, self.rows)
        return _float(y * weight + self.at(self.background, place) + self.at(self.shift, place))


@dataclass(frozen=True)
class PublishedTransfer(_Base):
    """``augmented`` and ``stains``: ``rows`` of the reference, ``gain`` on q, (GY, GX, N)."""

    rows: FloatArray
    gain: FloatArray
    tile: float

    def slide(self, od: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        import torch

        from wsi_pgdips.optics.unmix import unmix

        s, b = _spread(self.matrix_at(place), od), _spread(self.at(self.background, place), od)
        with torch.no_grad():
            q = unmix(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (od, s, b))).numpy()
        change = self._rows(place) - s
        moved = np.einsum("nhw,nchw->chw", q, change)
        return _float(moved * weight + od + self.at(self.shift, place))

    def layers(self, q: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        y = np.einsum("nhw,nchw->chw", q, _spread(self._rows(place), q))
        return _float(y * weight + self.at(self.background, place) + self.at(self.shift, place))

    def _rows(self, place: Place) -> FloatArray:
        """(N, 3, h, w) rows of the reference, times the gain at the pixels."""
        gain = place.field(self.gain, self.tile)
        return _float(self.rows[:, :, None, None] * gain[:, None])


@dataclass(frozen=True)
class IdentityTransfer(_Base):
    """The slide as it is; from its layers alone, what the model says of it."""

    def slide(self, od: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        return od

    def layers(self, q: FloatArray, place: Place, weight: FloatArray | float) -> FloatArray:
        y = np.einsum("nhw,nchw->chw", q, _spread(self.matrix_at(place), q))
        return _float(y * weight + self.at(self.background, place))


def make_transfer(
    fields: Fields,
    own: Reference,
    reference: Reference | None,
    *,
    tile: float,
    method: Method = "typical",
    keep_amounts: bool = False,
) -> Transfer:
    """The way from a slide's look to a reference's.

    Args:
        fields: of the slide. own: the slide's look. tile: side of a tile, output pixels.
        reference: None for the slide itself (``self``).
        method: see the module; ``typical`` falls back to ``augmented`` for more than three stains.
        keep_amounts: change colours only: a typical colour keeps its length, and q is not scaled.

    Raises:
        SettingsError: an unknown method. StainError: the reference is of other stains.
    """
    if method not in METHODS:
        raise SettingsError(
            "unknown way to normalise", expected=", ".join(METHODS), found=method, where="--method"
        )
    cell = tile * fields.inherited.shape[0] / len(fields.background)
    base = (cell, fields.stain_matrix, fields.background)
    still = np.zeros_like(fields.background)
    if reference is None:
        return IdentityTransfer(*base, still)
    reference = reference.ordered(own.labels)
    shift = still
    if method != "stains" and reference.background is not None:
        shift = _float(np.asarray(reference.background) - fields.background)
    if method == "typical" and own.n <= MAX_STAINS:
        source, target = typical_pair(own, reference)
        if keep_amounts:
            lengths = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (source, target))
            target = target * np.divide(*lengths)
        maps = colour_maps(fields, own, source, target)
        if maps is not None:
            rows = np.linalg.pinv(mixture(own, source)) @ target
            return TypicalTransfer(*base, shift, _float(maps - np.eye(3)), _float(rows))
    gain = np.ones_like(fields.spectral_correction)
    if method != "stains" and not keep_amounts and reference.spectral_correction is not None:
        own_m = np.maximum(fields.spectral_correction, 1e-3)
        gain = _float(np.asarray(reference.spectral_correction) / own_m)
    return PublishedTransfer(*base, shift, reference.stain_matrix, gain, tile)


def constant_fields(look: Reference) -> Fields:
    """Fields of an image that is one look all over, on a single tile."""
    s = look.stain_matrix[None, None]
    m = np.asarray(look.spectral_correction or (1.0,) * look.n, np.float32)[None, None]
    b = np.asarray(look.background or (0.0,) * 3, np.float32)[None, None]
    return Fields(s, m, b, s, m, b, np.ones_like(m), np.zeros((1, 1), bool))


def _product(a: FloatArray, y: FloatArray) -> FloatArray:
    """A y over pixels: A (3, 3, 1, 1) or (3, 3, h, w), y (3, h, w)."""
    if a.shape[2:] == (1, 1):
        return (a[..., 0, 0] @ y.reshape(3, -1)).reshape(y.shape)
    out = np.empty_like(y)
    for row, plane in zip(a, out, strict=True):
        np.multiply(row[0], y[0], out=plane)
        plane += row[1] * y[1]
        plane += row[2] * y[2]
    return out


def _float(values: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(values, np.float32)


def _spread(field: FloatArray, like: FloatArray) -> FloatArray:
    return np.broadcast_to(field, (*field.shape[:-2], *like.shape[-2:]))
