"""A look: the colours of a slide's stains and of its glass, as numbers that a file can hold.

Every finished run measures the look of its slide. A reference is the look that other slides are
given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wsi_pgdips.errors import StainError
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import FloatArray

Json = dict[str, Any]
Rows = tuple[tuple[float, float, float], ...]

HASHED = ("stains", "background", "palest_od", "off_plane_od")  # keys that the hash covers
MIN_TYPICAL_OD = 1e-3
_NOT_NEGATIVE = ("spectral_correction", "off_plane_od", "percentiles")
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Reference:
    """The look of a slide, or of several.

    Attributes:
        name: short name. labels, colors: N stains, as in a ``StainSet``.
        matrix: N unit rows S, the stain vectors.
        background: B, the OD of glass, or None if it is not known.
        spectral_correction: N factors M (99.9th percentile of q, OD), or None.
        typical: for each stain the median OD - B of the pixels that it dominates, with their
            residual; None for a stain that is almost absent. Empty if only vectors are known.
        palest: OD - B of the palest tissue, or None. It holds a scanner's glare and whatever else
            lies under all tissue.
        off_plane: spread of OD - B perpendicular to the two typical colours, OD, or None. It comes
            from noise and from colours of the camera that the stains do not have.
        percentiles: percentile -> N values of q over tissue, OD.
        sources: one mapping for each slide: checksum, mpp, preset, version. A slide's name is not
            in it, because it may be that of a patient's case.
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    matrix: Rows
    background: tuple[float, float, float] | None = None
    spectral_correction: tuple[float, ...] | None = None
    typical: tuple[tuple[float, float, float] | None, ...] = ()
    palest: tuple[float, float, float] | None = None
    off_plane: float | None = None
    percentiles: dict[float, tuple[float, ...]] = field(default_factory=dict)
    sources: tuple[Json, ...] = ()

    def __post_init__(self) -> None:
        known_typical = [row for row in self.typical if row is not None]
        numbers: dict[str, Any] = {
            "od": self.matrix,
            "background": self.background,
            "palest_od": self.palest,
            "typical_od": known_typical,
            "spectral_correction": self.spectral_correction,
            "off_plane_od": self.off_plane,
            "percentiles": list(self.percentiles.values()),
        }
        for key, value in numbers.items():
            values = np.ravel([] if value is None else value)
            least = 0.0 if key in _NOT_NEGATIVE else -np.inf
            if not (np.isfinite(values).all() and (values >= least).all()):
                raise StainError(
                    f"the reference's {key} cannot be that of stains",
                    expected="finite numbers" + (", none below 0" if least == 0 else ""),
                    found=", ".join(f"{v:g}" for v in values),
                    where=self.name,
                )
        for row in known_typical:
            if _is_nothing(row):
                raise StainError(
                    "the reference's typical_od is not that of a stain",
                    expected=f"a colour that absorbs at least {MIN_TYPICAL_OD:g} OD",
                    found=row,
                    where=self.name,
                )

    @property
    def n(self) -> int:
        """Number of stains."""
        return len(self.labels)

    @property
    def stain_matrix(self) -> FloatArray:
        """(N, 3) float32 unit rows."""
        return np.asarray(self.matrix, np.float32)

    @property
    def typical_od(self) -> FloatArray:
        """(N, 3) float32 OD over glass; a row is NaN if the stain's typical colour is not known."""
        rows = self.typical or (None,) * self.n
        return np.asarray([(np.nan,) * 3 if row is None else row for row in rows], np.float32)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the numbers and labels, without the name, colours and sources."""
        numbers = {key: value for key, value in self.to_json().items() if key in HASHED}
        for stain in numbers["stains"]:
            del stain["color"]
        text = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> Json:
        """Return the content of a reference file without its format, version and hash."""
        typical = self.typical or (None,) * self.n
        stains = []
        for k, label in enumerate(self.labels):
            stain: Json = {"label": label, "color": self.colors[k], "od": list(self.matrix[k])}
            if self.spectral_correction is not None:
                stain["spectral_correction"] = self.spectral_correction[k]
            row = typical[k]
            stain["typical_od"] = None if row is None else list(row)
            stain["percentiles"] = {f"{p:g}": v[k] for p, v in sorted(self.percentiles.items())}
            stains.append(stain)
        return {
            "name": self.name,
            "stains": stains,
            "background": None if self.background is None else list(self.background),
            "palest_od": None if self.palest is None else list(self.palest),
            "off_plane_od": self.off_plane,
            "sources": [dict(source) for source in self.sources],
        }

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
            typical=picked(self.typical) if self.typical else (),
            percentiles={p: picked(v) for p, v in self.percentiles.items()},
        )


def combine(references: Sequence[Reference], name: str) -> Reference:
    """Return the mean look of several slides; a value is averaged over the slides that have it.

    Args:
        references: at least one. name: of the result.

    Raises:
        StainError: they are of different stains.
    """
    first = references[0]
    all_ = [first, *(r.ordered(first.labels) for r in references[1:])]
    if len(all_) == 1:
        return replace(first, name=name)
    typical = _mean_rows([r.typical_od for r in all_])
    known_m = [r.spectral_correction for r in all_ if r.spectral_correction is not None]
    known_b = [r.background for r in all_ if r.background is not None]
    known_p = [r.palest for r in all_ if r.palest is not None]
    known_o = [r.off_plane for r in all_ if r.off_plane is not None]
    shared = set.intersection(*(set(r.percentiles) for r in all_))
    mean = unit_rows(np.mean([r.stain_matrix for r in all_], 0))
    return Reference(
        name,
        first.labels,
        first.colors,
        rows_of(mean),
        triple(np.mean(known_b, 0)) if known_b else None,
        _numbers(np.mean(known_m, 0)) if known_m else None,
        tuple(None if np.isnan(row).any() else triple(row) for row in typical),
        triple(np.mean(known_p, 0)) if known_p else None,
        round(float(np.mean(known_o)), 6) if known_o else None,
        {p: _numbers(np.mean([r.percentiles[p] for r in all_], 0)) for p in sorted(shared)},
        tuple(source for r in all_ for source in r.sources),
    )


def look_of(
    name: str,
    labels: Sequence[str],
    colors: Sequence[str],
    stain_matrix: FloatArray,
    background: FloatArray,
    spectral_correction: FloatArray,
    measured: Mapping[str, Any],
    source: Json,
) -> Reference:
    """Return the look of one slide, from its parameters and measurements of its pixels.

    Args:
        stain_matrix: (N, 3). background: (3,) OD. spectral_correction: (N,) M, OD.
        measured: result of ``slide_look.measure_look``; empty if nothing was measured.
        source: the entry of ``Reference.sources``.
    """
    typical = measured.get("typical_od") or [None] * len(labels)
    palest = measured.get("palest_od")
    percentiles: Mapping[str, Sequence[float]] = measured.get("percentiles") or {}
    return Reference(
        name,
        tuple(labels),
        tuple(colors),
        rows_of(unit_rows(stain_matrix)),
        triple(background),
        _numbers(spectral_correction),
        tuple(None if row is None or _is_nothing(row) else triple(row) for row in typical),
        None if palest is None else triple(palest),
        measured.get("off_plane_od"),
        {float(p): _numbers(v) for p, v in percentiles.items()},
        (source,),
    )


def _is_nothing(typical: Sequence[float]) -> bool:
    """Return whether a colour absorbs too little to be a stain's."""
    return sum(typical) < MIN_TYPICAL_OD


def rows_of(matrix: Iterable[Iterable[float]]) -> Rows:
    """Convert an (N, 3) array to tuples of numbers with six decimals."""
    return tuple(triple(row) for row in matrix)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in values)


def triple(values: Iterable[float]) -> tuple[float, float, float]:
    """Convert three numbers to a tuple of numbers with six decimals."""
    r, g, b = (round(float(v), 6) for v in values)
    return r, g, b


def _mean_rows(stack: Sequence[FloatArray]) -> FloatArray:
    """Average (N, 3) rows over the slides that know them; NaN where none does."""
    values = np.stack(stack)
    known = ~np.isnan(values).any(2, keepdims=True)
    count = known.sum(0)
    total = np.where(known, values, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
