"""A look: the colours of a slide's stains, of its tissue and of its glass, as numbers.

Every finished run measures the look of its slide. A group is the look of several slides, and keeps
theirs; a reference is the look, of one slide or of a group, that other slides are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from wsi_pgdips.errors import StainError
from wsi_pgdips.looks.hashed import Json, digest_of
from wsi_pgdips.records import FloatArray

Row = tuple[float, float, float]
Rows = tuple[Row, ...]

HASHED = ("stains", "background", "glass_measured", "tissue_od", "texture", "tissue")


@dataclass(frozen=True)
class Reference:
    """The look of a slide, or of a group of slides.

    Attributes:
        name: short name. labels, colors: N stains, as in a ``StainSet``.
        matrix: N unit rows S, the stain vectors.
        background: B, the OD of glass, or None if it is not known.
        glass_measured: False if the slide shows no glass, so that B was only bounded.
        spectral_correction: N factors M (99.9th percentile of q, OD), or None.
        tissue_od: K rows of OD - B, the mean colours of parts of the tissue that are told apart by
            rank alone (see ``slide_look.measure_sample``); empty if only vectors are known.
        texture: how coarse the tissue is at several scales, which no scanner changes; or empty.
        tissue: what the slide shows, in the user's words, e.g. ``liver``; or None.
        members: the looks that a group was made of; empty for a slide.
        spread: of a group, how much its slides differ in each number.
        sources: one mapping for each slide: checksum, mpp, preset, version. A slide's name is not
            in it, because it may be that of a patient's case.
        foreign: of a slide that was not run, its foreign pixels (``foreign_pixels.packed``).
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    matrix: Rows
    background: Row | None = None
    glass_measured: bool = True
    spectral_correction: tuple[float, ...] | None = None
    tissue_od: Rows = ()
    texture: tuple[float, ...] = ()
    tissue: str | None = None
    members: tuple[Reference, ...] = ()
    spread: Json = field(default_factory=dict)
    sources: tuple[Json, ...] = ()
    foreign: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {
            "od": self.matrix,
            "background": self.background,
            "spectral_correction": self.spectral_correction,
            "tissue_od": self.tissue_od,
            "texture": self.texture,
        }
        for key, value in numbers.items():
            values = np.ravel([] if value is None else value)
            least = 0.0 if key in ("spectral_correction", "texture") else -np.inf
            if not (np.isfinite(values).all() and (values >= least).all()):
                raise StainError(
                    f"the look's {key} cannot be that of stains",
                    expected="finite numbers" + (", none below 0" if least == 0 else ""),
                    found=", ".join(f"{v:g}" for v in values),
                    where=self.name,
                )

    @property
    def n(self) -> int:
        """Number of stains."""
        return len(self.labels)

    @property
    def slides(self) -> tuple[Reference, ...]:
        """The looks of single slides: the members of a group, or the look itself."""
        return self.members or (self,)

    @property
    def stain_matrix(self) -> FloatArray:
        """(N, 3) float32 unit rows."""
        return np.asarray(self.matrix, np.float32)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the numbers and labels, without names, colours and sources."""
        return digest_of(self._hashed())

    def _hashed(self) -> Json:
        numbers = {key: value for key, value in self.to_json().items() if key in HASHED}
        for stain in numbers["stains"]:
            del stain["color"]
        return {**numbers, "members": [member._hashed() for member in self.members]}

    def to_json(self) -> Json:
        """Return the content of a look's file without its format, version and hash."""
        stains = []
        for k, label in enumerate(self.labels):
            stain: Json = {"label": label, "color": self.colors[k], "od": list(self.matrix[k])}
            if self.spectral_correction is not None:
                stain["spectral_correction"] = self.spectral_correction[k]
            stains.append(stain)
        content: Json = {
            "name": self.name,
            "tissue": self.tissue,
            "stains": stains,
            "background": None if self.background is None else list(self.background),
            "glass_measured": self.glass_measured,
            "tissue_od": [list(row) for row in self.tissue_od],
            "texture": list(self.texture),
            "sources": [dict(source) for source in self.sources],
        }
        if self.foreign:
            content["foreign"] = dict(self.foreign)
        if self.members:
            content["slides"] = len(self.members)
            content["spread"] = self.spread
            content["members"] = [member.to_json() for member in self.members]
        return content

    def ordered(self, labels: Sequence[str]) -> Reference:
        """Return the same look with its stains in the order of ``labels``, in any case.

        Raises:
            StainError: the labels are not those of this look's stains.
        """
        own = {label.casefold(): k for k, label in enumerate(self.labels)}
        wanted = [label.casefold() for label in labels]
        if sorted(own) != sorted(wanted):
            raise StainError(
                "the reference is of other stains",
                expected=", ".join(labels),
                found=", ".join(self.labels),
                where=self.name,
                hint="choose or fit a reference of the same stains (`wsi-pgdips reference fit`)",
            )
        order = [own[label] for label in wanted]

        def picked(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[k] for k in order)

        correction = self.spectral_correction
        return replace(
            self,
            labels=picked(self.labels),
            colors=picked(self.colors),
            matrix=picked(self.matrix),
            spectral_correction=None if correction is None else picked(correction),
            members=tuple(member.ordered(labels) for member in self.members),
        )


def rows_of(matrix: Iterable[Iterable[float]]) -> Rows:
    """Convert an (N, 3) array to tuples of numbers with six decimals."""
    return tuple(triple(row) for row in matrix)


def numbers(values: Iterable[float]) -> tuple[float, ...]:
    """Convert numbers to a tuple of numbers with six decimals."""
    return tuple(round(float(v), 6) for v in values)


def triple(values: Iterable[float]) -> Row:
    """Convert three numbers to a tuple of numbers with six decimals."""
    r, g, b = numbers(values)
    return r, g, b
