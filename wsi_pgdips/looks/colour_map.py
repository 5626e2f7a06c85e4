"""The map from one scanner's colours to another's, measured on a pair, as numbers in a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.looks.hashed import Json, checked, digest_of
from wsi_pgdips.looks.reference import Rows, rows_of, triple
from wsi_pgdips.optics.stain_files import refuse_unknown
from wsi_pgdips.records import FloatArray, Vector

FORMAT, VERSION = "wsi-pgdips map", 1
FREEDOMS = ("glass", "gain", "gains", "full")  # from the simplest on: 0, 1, 3, 9 numbers
MIN_SCALE = 0.05  # of the matrix: less would take a colour away
_TYPES: dict[Any, Any] = {"float": float, "int": int, "str": str, "bool": bool}


@dataclass(frozen=True)
class ColourMap:
    """OD of scanner B = background_to + matrix @ (OD of scanner A - background_from).

    Attributes:
        name: short name.
        matrix: three rows R, G, B of B in terms of R, G, B of A.
        background_from, background_to: OD of glass on A and on B.
        freedom: the form of the matrix: ``glass`` (identity), ``gain`` (one number), ``gains`` (one
            for each channel) or ``full``. ridge: its pull towards the identity.
        top: 99.5th percentile of t, the sum of OD - background_from over the channels, over the
            tissue that the map was fitted on.
        share_low, share_high: 1st and 99th percentile there of the shares (R / t, B / t) of OD -
            background_from.
        error_od: median distance in OD, and error_lab: median CIELAB dE 1976, of mapped pixels of
            regions that the map was not fitted on; the median over regions. before_lab: the same
            without the map.
        worst_lab, worst_before_lab: the same for the region with the largest error.
        pixels, pairs, regions: how many it was fitted on.
        glass_seen: whether the backgrounds were measured on glass. Without any, background_from is
            the OD of the palest pixels, and background_to follows from the fit.
        sources: one mapping for each pair: checksums, and figures of the registration. It has no
            names of slides, because they may be those of patients' cases.
    """

    name: str
    matrix: Rows
    background_from: Vector
    background_to: Vector
    freedom: str
    ridge: float
    top: float
    share_low: tuple[float, float]
    share_high: tuple[float, float]
    error_od: float
    error_lab: float
    before_lab: float
    worst_lab: float
    worst_before_lab: float
    pixels: int
    pairs: int
    regions: int
    glass_seen: bool
    sources: tuple[Json, ...] = ()

    def __post_init__(self) -> None:
        numbers = {
            f.name: np.ravel(getattr(self, f.name))
            for f in fields(self)
            if f.name not in ("name", "freedom", "sources")
        }
        for key, values in numbers.items():
            signed = key == "matrix" or key.startswith(("background", "share"))
            if not (np.isfinite(values).all() and (signed or (values >= 0).all())):
                raise StainError(
                    f"the map's {key} cannot be that of two scanners",
                    expected="finite numbers" + ("" if signed else ", none below 0"),
                    found=", ".join(f"{v:g}" for v in values),
                    where=self.name,
                )
        smallest = np.linalg.svd(np.asarray(self.matrix), compute_uv=False)[-1]
        if not (smallest >= MIN_SCALE and np.linalg.det(np.asarray(self.matrix)) > 0):
            raise StainError(
                "the map's matrix takes different colours to the same one, or mirrors them",
                expected=f"a positive determinant, and no scale below {MIN_SCALE:g}",
                found=f"a scale of {smallest:.3g}",
                where=self.name,
            )
        if self.freedom not in FREEDOMS:
            raise StainError(
                "the map has an unknown freedom",
                expected=", ".join(FREEDOMS),
                found=self.freedom,
                where=self.name,
            )
        if not (np.asarray(self.share_low) <= np.asarray(self.share_high)).all():
            raise StainError(
                "the map's range of colours is empty",
                expected="share_low <= share_high",
                found=f"{self.share_low}, {self.share_high}",
                where=self.name,
            )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all but the name and the sources."""
        numbers = {k: v for k, v in self.to_json().items() if k not in ("name", "sources")}
        return digest_of(numbers)

    def to_json(self) -> Json:
        """Return the content of a file without its format, version and hash."""
        return {
            f.name: _plain(float(value) if f.type == "float" else value)
            for f in fields(self)
            for value in (getattr(self, f.name),)
        }

    def apply(self, od: FloatArray) -> FloatArray:
        """Map (3, ...) OD of scanner A to that of scanner B; float32."""
        away = (3,) + (1,) * (od.ndim - 1)
        start = np.asarray(self.background_from, np.float32).reshape(away)
        end = np.asarray(self.background_to, np.float32).reshape(away)
        matrix = np.asarray(self.matrix, np.float32)
        return np.asarray(end + np.tensordot(matrix, od - start, 1), np.float32)


def load_map(path: str | os.PathLike[str]) -> ColourMap:
    """Load a map from a file of :func:`save_map`.

    Raises:
        StainError: the file is unreadable, has unknown or missing keys or impossible numbers, or
            its hash does not match its numbers.
    """
    file = Path(path)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StainError("the map cannot be read", where=file, found=error.strerror) from None
    except ValueError as error:
        raise StainError("the map is not valid JSON", where=file, found=error) from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise StainError(
            "not a map of wsi-pgdips",
            expected=f'"format": "{FORMAT}"',
            where=file,
            hint="make one by `wsi-pgdips reference pair`",
        )
    refuse_unknown(
        table, {"format", "version", "sha256", *(f.name for f in fields(ColourMap))}, file, "map"
    )
    return checked(
        table, _from_json, version=VERSION, what="map", again="make it again", where=file
    )


def save_map(colour_map: ColourMap, path: Path) -> None:
    """Write a map to a ``.json`` file, which is replaced if it exists.

    Raises:
        OutputError: the file cannot be written, or its name has another ending.
    """
    if path.suffix.lower() != ".json":
        raise OutputError(
            "a map cannot be written under this name",
            expected="a name that ends in .json",
            found=path.name,
        )
    write_atomic(path, map_text(colour_map).encode())


def map_text(colour_map: ColourMap) -> str:
    """Return the text of a map file."""
    table = {"format": FORMAT, "version": VERSION, **colour_map.to_json()}
    return json.dumps({**table, "sha256": colour_map.digest}, indent=2) + "\n"


def _from_json(table: Json) -> ColourMap:
    """Return the map of a table whose keys are known."""
    matrix = rows_of(table["matrix"])
    if len(matrix) != 3:
        raise ValueError("the matrix has other than three rows")
    plain = {f.name: f.type for f in fields(ColourMap) if f.type in _TYPES}
    return ColourMap(
        **{
            **{key: _TYPES[str(kind)](table[key]) for key, kind in plain.items()},
            "matrix": matrix,
            "background_from": triple(table["background_from"]),
            "background_to": triple(table["background_to"]),
            "share_low": two(table["share_low"]),
            "share_high": two(table["share_high"]),
            "sources": tuple(dict(source) for source in table.get("sources") or ()),
        }
    )


def two(values: Any) -> tuple[float, float]:
    """Convert two numbers to a tuple of numbers with six decimals."""
    first, second = (round(float(v), 6) for v in values)
    return first, second


def _plain(value: Any) -> Any:
    """Return tuples as lists, and numbers with six decimals."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
