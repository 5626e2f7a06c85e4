"""Stain sets by name and as TOML files: reading, checking and writing."""

from __future__ import annotations

import difflib
import functools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.optics.stains import make_stain_set
from wsi_pgdips.records import StainSet

_SET_KEYS = {"name", "source", "stain"}
_STAIN_KEYS = {"label", "color", "od", "vectors", "uncertainty_deg", "also", "saturates"}
_ALSO_KEYS = {"od", "source"}
# how far a slide's own vector may lie from the set's, where the set does not say more, degrees
FREEDOM_DEG = {"estimate": math.inf, "refine": 5.0, "fixed": 0.0}


def stain_names() -> tuple[str, ...]:
    """The names of the stain sets in the package, in the library's order."""
    return tuple(_library())


def load_stains(name_or_path: str | Path, vectors: str | None = None) -> StainSet:
    """Load a stain set by its library name, or from a TOML file (a path that ends in ``.toml``).

    The file holds ``name``, ``source`` and one ``[[stain]]`` table per stain, with ``label``,
    ``od = [r, g, b]`` (any length, scaled to unit) and optionally ``color`` (six hex digits),
    ``vectors`` (``estimate``, ``refine`` or ``fixed``), ``uncertainty_deg``, and ``also``, a list
    of alternatives with ``od`` and ``source``. Without ``vectors``, a stain of a file is refined
    within its uncertainty, or fixed if it states none; a stain of the library is estimated.

    Args:
        vectors: for all stains of the set, in place of what it says.

    Raises:
        StainError: the name is unknown (the message lists the known ones), the file is unreadable,
            or the set cannot be used (see :func:`make_stain_set`).
    """
    text = str(name_or_path)
    library, key = _library(), text.strip().lower().replace("-", "_")
    if text.lower().endswith(".toml") or key in library:
        found = library[key] if key in library else _load_file(Path(name_or_path))
        return found if vectors is None else _with_freedom(found, vectors)
    near = difflib.get_close_matches(key, library, n=3)
    raise StainError(
        "unknown stain set",
        expected=f"one of {', '.join(library)}, or the path of a .toml file",
        found=text,
        where="--stains",
        hint=f"did you mean {' or '.join(near)}?" if near else "see `wsi-pgdips stains`",
    )


def known_stains() -> list[tuple[str, str, tuple[float, float, float]]]:
    """All stains of the library as (set, label, unit vector)."""
    return [
        (name, label, row)
        for name, found in _library().items()
        for label, row in zip(found.labels, found.matrix, strict=True)
    ]


def save_stains(stain_set: StainSet, path: str | Path) -> None:
    """Write a set as TOML, replacing the file; :func:`load_stains` reads an equal set back.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    lines = [f"name = {_quoted(stain_set.name)}", f"source = {_quoted(stain_set.source)}"]
    for k, (label, color) in enumerate(zip(stain_set.labels, stain_set.colors, strict=True)):
        lines += ["", "[[stain]]", f"label = {_quoted(label)}", f'color = "{color}"']
        lines.append(f"od = {_od_text(stain_set.matrix[k])}")
        freedom = float(stain_set.freedom[k])
        if math.isinf(freedom):
            lines.append('vectors = "estimate"')
        elif freedom > 0:
            lines.append(f"uncertainty_deg = {freedom:.6g}")
        if (k == stain_set.saturating) != (label.strip().lower() == "dab"):
            lines.append(f"saturates = {str(k == stain_set.saturating).lower()}")
        also = stain_set.alternatives[k] if stain_set.alternatives else ()
        if also:
            lines.append(f"also = [{', '.join(f'{{ od = {_od_text(row)} }}' for row in also)}]")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise OutputError(
            "the stain file cannot be written", where=target, found=error.strerror
        ) from None


def refuse_unknown(
    table: Mapping[str, Any], allowed: set[str], where: object, kind: str = "stain file"
) -> None:
    """Refuse a table with unknown keys.

    Raises:
        StainError: a key is unknown; the message lists the known ones.
    """
    unknown = sorted(set(table) - allowed)
    if unknown:
        raise StainError(
            f"unknown key in a {kind}",
            expected=", ".join(sorted(allowed)),
            found=", ".join(unknown),
            where=where,
        )


@functools.cache
def _library() -> dict[str, StainSet]:
    text = resources.files("wsi_pgdips.optics").joinpath("stains.toml").read_text("utf-8")
    sets = [_parse(table, "stain library", "", "estimate") for table in tomllib.loads(text)["set"]]
    return {s.name: s for s in sets}


def _load_file(path: Path) -> StainSet:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StainError(
            "the stain file cannot be read", where=path, found=error.strerror
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StainError("the stain file is not valid TOML", where=path, found=error) from None
    return _parse(table, path, path.stem, "fixed")


def _parse(
    table: Mapping[str, Any], where: object, default_name: str, default_vectors: str
) -> StainSet:
    refuse_unknown(table, _SET_KEYS, where)
    name, source = table.get("name", default_name), table.get("source", "")
    stains = table.get("stain", [])
    if not isinstance(stains, list) or not all(isinstance(s, dict) for s in stains):
        raise StainError(
            "a stain file lists its stains as [[stain]] tables", found=stains, where=where
        )
    for stain in stains:
        refuse_unknown(stain, _STAIN_KEYS, where)
    labels = [stain.get("label") for stain in stains]
    colors = [stain.get("color") for stain in stains]
    texts = [name, source, *labels, *(color for color in colors if color is not None)]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise StainError(
            "a stain file needs a label for each stain, and text where text belongs",
            expected='strings for name, source, label and color, such as label = "DAB"',
            found=wrong[0],
            where=where,
        )
    return make_stain_set(
        name,
        labels,
        [_numbers(stain.get("od"), where) for stain in stains],
        colors=colors,
        source=source,
        freedom_deg=[_freedom(stain, default_vectors, where) for stain in stains],
        alternatives=[_alternatives(stain, where) for stain in stains],
        saturating=_saturating(stains, where),
        where=where,
    )


def _saturating(stains: Sequence[Mapping[str, Any]], where: object) -> int:
    """The index of the stain that runs to black with its amount: DAB, where the file is silent."""
    found = [bool(s.get("saturates", str(s.get("label")).strip().lower() == "dab")) for s in stains]
    if sum(found) > 1:
        raise StainError(
            "only one stain of a set can saturate", expected="saturates = true once", where=where
        )
    return found.index(True) if any(found) else -1


def _freedom(stain: Mapping[str, Any], default: str, where: object) -> float:
    """The degrees of freedom of a stain's vector, from its table."""
    stated = stain.get("uncertainty_deg")
    if stated is not None and not (isinstance(stated, int | float) and 0 < stated <= 90):
        raise StainError(
            "the uncertainty of a stain's vector cannot be used",
            expected="uncertainty_deg = degrees, above 0 and up to 90",
            found=stated,
            where=where,
        )
    how = stain.get("vectors", "refine" if stated else default)
    if how not in FREEDOM_DEG:
        raise StainError(
            "a stain's vector is estimated, refined or fixed",
            expected=f"vectors = {' or '.join(map(_quoted, FREEDOM_DEG))}",
            found=how,
            where=where,
        )
    return float(stated) if how == "refine" and stated else FREEDOM_DEG[how]


def _alternatives(stain: Mapping[str, Any], where: object) -> list[list[float]]:
    """The further vectors of a stain, from its table."""
    also = stain.get("also", [])
    if not isinstance(also, list) or not all(isinstance(a, dict) for a in also):
        raise StainError(
            "further vectors of a stain are a list of tables",
            expected='also = [{ od = [r, g, b], source = "..." }]',
            found=also,
            where=where,
        )
    for one in also:
        refuse_unknown(one, _ALSO_KEYS, where)
    return [_numbers(one.get("od"), where) for one in also]


def _numbers(od: object, where: object) -> list[float]:
    if (
        not isinstance(od, list)
        or len(od) != 3
        or any(isinstance(v, bool) or not isinstance(v, int | float) for v in od)
    ):
        raise StainError(
            "an OD vector has three numbers", expected="od = [r, g, b]", found=od, where=where
        )
    return [float(v) for v in od]


def _od_text(row: Sequence[float]) -> str:
    return f"[{', '.join(repr(float(v)) for v in row)}]"


def _quoted(text: str) -> str:
    # TOML has JSON's escapes, except that JSON does not escape DEL
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _with_freedom(stains: StainSet, vectors: str) -> StainSet:
    """The set with another freedom; one that is refined keeps the uncertainty that it states."""
    usual = FREEDOM_DEG[vectors]
    stated = [f if vectors == "refine" and 0 < f < math.inf else usual for f in stains.freedom]
    return replace(stains, freedom_deg=tuple(float(f) for f in stated))
