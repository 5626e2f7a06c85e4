"""References as files: our JSON, shipped ones, and the matrices of others."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.looks import qupath
from wsi_pgdips.looks.reference import HASHED, Reference, triple
from wsi_pgdips.optics.stains import load_stains, make_stain_set, refuse_unknown
from wsi_pgdips.records import StainSet

FORMAT, VERSION = "wsi-pgdips reference", 1
_KEYS = {"format", "version", "name", "sources", "sha256", *HASHED}
_STAIN_KEYS = {"label", "color", "od", "spectral_correction", "typical_od", "percentiles"}


def reference_names() -> tuple[str, ...]:
    """Names of the references that come with the package."""
    folder = resources.files("wsi_pgdips.looks").joinpath("references")
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir()))


def load_reference(name_or_path: str | os.PathLike[str]) -> Reference:
    """A reference by name (``he``, ``hdab``) or from a file.

    Files: ours (``reference fit``); a stain set as TOML; JSON ``{label: [r, g, b], ...}`` of OD
    vectors; and what QuPath's ``setColorDeconvolutionStains`` takes, as JSON or as the line of a
    Groovy script. All but the first know colours only, so amounts are kept.

    Raises:
        StainError: unknown name, unreadable file, unknown or missing keys, numbers that cannot be
            those of stains, or a hash that does not fit the numbers.
    """
    text = os.fspath(name_or_path)
    if text in reference_names():
        folder = resources.files("wsi_pgdips.looks").joinpath("references")
        return _parse(json.loads(folder.joinpath(f"{text}.json").read_text("utf-8")), text)
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
        return of_stains(load_stains(path))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or error
        raise StainError("the reference cannot be read", where=path, found=found) from None
    if qupath.looks_like(content):
        return qupath.parse(content, path)
    try:
        table = json.loads(content)
    except ValueError as error:
        raise StainError("the reference is not valid JSON", where=path, found=error) from None
    if not isinstance(table, dict):
        raise StainError("a reference is a JSON object", where=path, found=type(table).__name__)
    if table.get("format") == FORMAT:
        return _parse(table, path)
    if "stains" in table or "format" in table:
        raise StainError(
            "not a reference of wsi-pgdips", expected=f'"format": "{FORMAT}"', where=path
        )
    return of_stains(make_stain_set(path.stem, list(table), list(table.values()), where=path))


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference; :func:`load_reference` gives the equal one back. Replaces the file.

    ``.json`` is ours. ``.groovy`` is a line for QuPath, and ``.toml`` a stain set: both keep the
    vectors only (QuPath the background too).

    Raises:
        OutputError: it cannot be written, or under no such name. StainError: QuPath has no place
            for that many stains.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        text = reference_text(reference)
    elif kind == ".groovy":
        text = qupath.script(reference)
    elif kind == ".toml":
        from wsi_pgdips.optics.stains import save_stains

        save_stains(
            StainSet(reference.name, reference.labels, reference.colors, reference.matrix), path
        )
        return
    else:
        raise OutputError(
            "a reference cannot be written under this name",
            expected="a name that ends in .json, .groovy (QuPath) or .toml (vectors only)",
            found=path.name,
        )
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            "the reference cannot be written", where=path, found=error.strerror
        ) from None


def reference_text(reference: Reference) -> str:
    """The text of a reference file."""
    table = {"format": FORMAT, "version": VERSION, **reference.to_json()}
    return json.dumps({**table, "sha256": reference.digest}, indent=2) + "\n"


def of_stains(stains: StainSet) -> Reference:
    """A reference that knows stain vectors only."""
    source = {"name": stains.source} if stains.source else {}
    matrix = tuple(triple(row) for row in stains.matrix)
    return Reference(
        stains.name, stains.labels, stains.colors, matrix, sources=(source,) if source else ()
    )


def _parse(table: dict[str, Any], where: object) -> Reference:
    refuse_unknown(table, _KEYS, where, "reference")
    if table.get("version") != VERSION:
        raise StainError(
            "the reference has another version",
            expected=VERSION,
            found=table.get("version"),
            where=where,
            hint="read it with the version of wsi-pgdips that wrote it, or fit it again",
        )
    try:
        stains = table["stains"]
        for stain in stains:
            refuse_unknown(stain, _STAIN_KEYS, where, "reference")
        checked = make_stain_set(
            table["name"],
            [s["label"] for s in stains],
            [s["od"] for s in stains],
            colors=[s.get("color") for s in stains],
            where=where,
        )
        known_m = all(s.get("spectral_correction") is not None for s in stains)
        shared = set.intersection(*(set(dict(s.get("percentiles") or {})) for s in stains))
        background, palest = table.get("background"), table.get("palest_od")
        off_plane = table.get("off_plane_od")
        reference = Reference(
            checked.name,
            checked.labels,
            checked.colors,
            tuple(triple(row) for row in checked.matrix),
            None if background is None else triple(background),
            tuple(float(s["spectral_correction"]) for s in stains) if known_m else None,
            tuple(None if s.get("typical_od") is None else triple(s["typical_od"]) for s in stains),
            None if palest is None else triple(palest),
            None if off_plane is None else float(off_plane),
            {
                float(p): tuple(float(s["percentiles"][p]) for s in stains)
                for p in sorted(shared, key=float)
            },
            tuple(dict(source) for source in table.get("sources") or ()),
        )
        digest = reference.digest
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise StainError(
            "the reference is incomplete or damaged", where=where, found=repr(error)
        ) from None
    if "sha256" in table and table["sha256"] != digest:
        raise StainError(
            "the reference's numbers are not those it was written with",
            expected=f"sha256 {table['sha256']}",
            found=digest,
            where=where,
            hint="fit it again; if the change was meant, remove the line sha256",
        )
    return reference
