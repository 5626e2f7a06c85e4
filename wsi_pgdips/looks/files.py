"""References as files: our JSON, the shipped ones, stain sets, and QuPath's stain vectors."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.looks.foreign_pixels import unpacked
from wsi_pgdips.looks.hashed import checked
from wsi_pgdips.looks.reference import HASHED, Reference, rows_of, triple
from wsi_pgdips.looks.slide_look import MEASURES
from wsi_pgdips.optics.physics import I0
from wsi_pgdips.optics.stain_files import load_stains, refuse_unknown, save_stains
from wsi_pgdips.optics.stains import make_stain_set
from wsi_pgdips.records import StainSet

FORMAT, VERSION = "wsi-pgdips look", 2
_MEMBER_KEYS = {"name", "sources", *HASHED}
_KEYS = {"format", "version", "sha256", "foreign", "slides", "spread", "members", *_MEMBER_KEYS}
_STAIN_KEYS = {"label", "color", "od", "spectral_correction"}
_SHIPPED = resources.files("wsi_pgdips.looks").joinpath("references")
# the argument of QuPath's setColorDeconvolutionStains('{"Name" : ...}')
_QUPATH = re.compile(r"\{[^{}]*\"Stain 1\"[^{}]*\}")
_QUPATH_RESIDUAL = "residual"  # QuPath's name for a third vector that is not a stain


def reference_names() -> tuple[str, ...]:
    """Return the names of the references that come with the package."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _SHIPPED.iterdir()))


def load_reference(name_or_path: str | os.PathLike[str]) -> Reference:
    """Load a reference by its name (``he``, ``hdab``) or from a file.

    A file may be ours (``reference fit``); a stain set as TOML; JSON ``{label: [r, g, b], ...}`` of
    OD vectors; or the argument of QuPath's ``setColorDeconvolutionStains``, as JSON or in a Groovy
    script. All but the first hold colours only, so that amounts are kept.

    Args:
        name_or_path: a text without an ending is a name.

    Raises:
        StainError: unknown name, unreadable file, unknown or missing keys, impossible numbers, or a
            hash that does not match the numbers.
    """
    text = os.fspath(name_or_path)
    if text in reference_names():
        return _parse(json.loads(_SHIPPED.joinpath(f"{text}.json").read_text("utf-8")), text)
    path = Path(text)
    if not path.suffix:
        raise StainError(
            "unknown reference",
            expected=f"{', '.join(reference_names())}, self, or the path of a file",
            found=text,
            where="--reference",
            hint="see `wsi-pgdips reference`; make one by `wsi-pgdips reference fit`",
        )
    if path.suffix.lower() == ".toml":
        return _of_stains(load_stains(path))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or error
        raise StainError("the reference cannot be read", where=path, found=found) from None
    if _QUPATH.search(content):
        return parse_qupath(content, path)
    try:
        table = json.loads(content)
    except ValueError as error:
        raise StainError("the reference is not valid JSON", where=path, found=error) from None
    if not isinstance(table, dict):
        raise StainError("a reference is a JSON object", where=path, found=type(table).__name__)
    if str(table.get("format")).startswith("wsi-pgdips"):
        return _parse(table, path)
    if "stains" in table or "format" in table:
        raise StainError("not a look of wsi-pgdips", expected=f'"format": "{FORMAT}"', where=path)
    return _of_stains(make_stain_set(path.stem, list(table), list(table.values()), where=path))


def save_reference(reference: Reference, path: Path) -> None:
    """Write a look to a file, which is replaced if it exists.

    From ``.json`` :func:`load_reference` returns the same reference. ``.groovy`` is a line for
    QuPath with the vectors and the background, ``.toml`` a stain set with the vectors only.

    Args:
        reference: the look of a slide or a group. path: its ending decides what is written.

    Raises:
        OutputError: the file cannot be written, or its name has another ending.
        StainError: QuPath cannot hold this number of stains.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        write_atomic(path, reference_text(reference).encode())
    elif kind == ".groovy":
        write_atomic(path, qupath_script(reference).encode())
    elif kind == ".toml":
        stains = (reference.name, reference.labels, reference.colors, reference.matrix)
        save_stains(StainSet(*stains), path)
    else:
        raise OutputError(
            "a reference cannot be written under this name",
            expected="a name that ends in .json, .groovy (QuPath) or .toml (vectors only)",
            found=path.name,
        )


def reference_text(reference: Reference) -> str:
    """Return the text of a reference file."""
    table = {"format": FORMAT, "version": VERSION, **reference.to_json()}
    return json.dumps({**table, "sha256": reference.digest}, indent=2) + "\n"


def _of_stains(stains: StainSet) -> Reference:
    """Return a reference that knows stain vectors only."""
    sources = ({"name": stains.source},) if stains.source else ()
    matrix = rows_of(stains.matrix)
    return Reference(stains.name, stains.labels, stains.colors, matrix, sources=sources)


def _parse(table: dict[str, Any], where: object) -> Reference:
    """Check the table of one of our files, and return its reference."""
    return checked(
        table,
        lambda found: _look(found, where, _KEYS),
        version=VERSION,
        what="look",
        again="measure it again",
        where=where,
    )


def _look(table: dict[str, Any], where: object, known: set[str] = _MEMBER_KEYS) -> Reference:
    """Return the look in a table, or that of a member in it."""
    refuse_unknown(table, known, where, "look")
    stains = table["stains"]
    for stain in stains:
        refuse_unknown(stain, _STAIN_KEYS, where, "look")
    checked = make_stain_set(
        table["name"],
        [s["label"] for s in stains],
        [s["od"] for s in stains],
        colors=[s.get("color") for s in stains],
        where=where,
    )
    known_m = all(s.get("spectral_correction") is not None for s in stains)
    background, tissue = table.get("background"), table.get("tissue")
    colours = rows_of(table.get("tissue_od") or ())
    texture = tuple(float(v) for v in table.get("texture") or ())
    if (len(colours), len(texture)) not in ((0, 0), MEASURES):
        raise ValueError(f"{len(colours)} colours and {len(texture)} textures")
    foreign = dict(table.get("foreign") or {})
    unpacked(foreign)
    return Reference(
        checked.name,
        checked.labels,
        checked.colors,
        rows_of(checked.matrix),
        None if background is None else triple(background),
        bool(table.get("glass_measured", True)),
        tuple(float(s["spectral_correction"]) for s in stains) if known_m else None,
        colours,
        texture,
        None if tissue is None else str(tissue),
        tuple(_look(member, where) for member in table.get("members") or ()),
        dict(table.get("spread") or {}),
        tuple(dict(source) for source in table.get("sources") or ()),
        foreign,
    )


def parse_qupath(text: str, where: object) -> Reference:
    """Read QuPath's stain vectors and background from a text, e.g. a Groovy script.

    QuPath's background is an intensity: 255 255 255 is no background.

    Args:
        where: named in errors.

    Raises:
        StainError: not two or three stains with three numbers each.
    """
    found = _QUPATH.search(text)
    try:
        table = json.loads(found.group() if found else "")
        pairs = [
            (table[f"Stain {k}"], _three_numbers(table[f"Values {k}"]))
            for k in (1, 2, 3)
            if f"Stain {k}" in table and _QUPATH_RESIDUAL not in table[f"Stain {k}"].casefold()
        ]
        background = _three_numbers(table.get("Background", "255 255 255"))
        name = str(table.get("Name", "qupath"))
    except (ValueError, KeyError, AttributeError) as error:
        raise StainError(
            "QuPath's stain vectors cannot be read",
            expected='setColorDeconvolutionStains(\'{"Name" : ..., "Stain 1" : ..., '
            '"Values 1" : "r g b", ..., "Background" : "r g b"}\')',
            found=repr(error),
            where=where,
        ) from None
    stains = make_stain_set(
        name, [label for label, _ in pairs], [v for _, v in pairs], source="QuPath", where=where
    )
    if not all(0 < v <= I0 for v in background):
        raise StainError(
            "QuPath's background is an intensity",
            expected="three numbers above 0, up to 255",
            found=background,
            where=where,
        )
    return Reference(
        name,
        stains.labels,
        stains.colors,
        rows_of(stains.matrix),
        triple(-np.log10(np.asarray(background) / I0)),
        sources=({"name": "QuPath"},),
    )


def qupath_script(reference: Reference) -> str:
    """Return the line of a Groovy script that gives an image in QuPath these vectors.

    Raises:
        StainError: the reference has one stain or more than three.
    """
    if not 2 <= reference.n <= 3:
        raise StainError(
            "QuPath deconvolves two or three stains",
            expected="2 or 3",
            found=reference.n,
            where=reference.name,
        )
    entries = [("Name", reference.name)]
    for k, (label, row) in enumerate(zip(reference.labels, reference.matrix, strict=True), 1):
        entries += [(f"Stain {k}", label), (f"Values {k}", " ".join(f"{v:.5f}" for v in row))]
    light = I0 * 10.0 ** -np.asarray(reference.background or (0.0, 0.0, 0.0))
    entries.append(("Background", " ".join(f"{v:.0f}" for v in light)))
    body = ", ".join(f"{json.dumps(key)} : {json.dumps(value)}" for key, value in entries)
    return f"setColorDeconvolutionStains('{{{body}}}');\n"


def _three_numbers(text: str) -> list[float]:
    values = [float(v) for v in text.split()]
    if len(values) != 3:
        raise ValueError(f"three numbers expected, found {text!r}")
    return values
