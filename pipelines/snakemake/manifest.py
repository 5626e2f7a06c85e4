"""The manifest of a cohort, as the Snakefile reads it.

A CSV with a header. ``slide`` must be there; ``stains``, ``mpp``, ``mpp_source``, ``mask``,
``output`` and ``reference`` may be. An empty cell is the default. Relative paths are relative to
the manifest. Standard library only: Snakemake's environment need not be that of wsi-pgdips.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("slide", "stains", "mpp", "mpp_source", "mask", "output", "reference")


class ManifestError(ValueError):
    """What is wrong with the manifest, and in which line."""


@dataclass(frozen=True)
class Job:
    """One slide of a cohort.

    Attributes:
        name: of its layers, without ``.ome.zarr``. key: the same, safe in a file name and a shell.
        layers: the folder that ``run`` writes. options: of ``run``.
        files: what it reads besides the slide. reference: of ``normalize``; None without.
        picture: what ``normalize`` writes.
    """

    name: str
    key: str
    slide: Path
    layers: Path
    options: tuple[str, ...]
    files: tuple[Path, ...]
    reference: str | None
    picture: Path


def read_manifest(manifest: Path, outdir: Path, reference: str | None = None) -> dict[str, Job]:
    """Jobs by key, in the order of the manifest.

    Args:
        manifest: the CSV. outdir: for layers without a cell ``output``, and for pictures.
        reference: for slides without a cell ``reference``; a path is taken as it is.

    Raises:
        ManifestError: unreadable, a column or cell that cannot be used, or two slides of one name.
    """
    base = manifest.absolute().parent
    jobs: dict[str, Job] = {}
    lines: dict[str, int] = {}
    for line, row in _rows(manifest):
        if not row.get("slide"):
            raise ManifestError(f"{manifest}, line {line}: there is no slide")
        job = _job(row, base, outdir.absolute(), reference)
        if job.key in jobs:
            raise ManifestError(
                f"{manifest}, lines {lines[job.key]} and {line}: two slides are called "
                f"{job.name!r}, so that one would be written over the other. Tell them apart in "
                "the column output."
            )
        jobs[job.key], lines[job.key] = job, line
    if not jobs:
        raise ManifestError(f"{manifest}: there are no slides in it")
    return jobs


def is_done(layers: Path) -> bool:
    """Whether ``run`` finished these layers."""
    try:
        record = json.loads((layers / "provenance" / "run.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("status") == "done"


def _rows(manifest: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        # utf-8-sig: spreadsheets put a mark at the beginning
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{manifest}: cannot be read: {error}") from None
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or "slide" not in header or len(set(header)) < len(header):
        raise ManifestError(
            f"{manifest}, line 1: expected slide and any of {', '.join(COLUMNS[1:])}, each once; "
            f"found {', '.join(header) or 'nothing'}"
        )
    rows = []
    for cells in reader:
        if len(cells) > len(header):
            raise ManifestError(
                f"{manifest}, line {reader.line_num}: expected {len(header)} cells, "
                f"found {len(cells)} (a path with a comma needs quotes)"
            )
        if any(cell.strip() for cell in cells):
            row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
            rows.append((reader.line_num, row))
    return rows


def _job(row: dict[str, str], base: Path, outdir: Path, reference: str | None) -> Job:
    slide = base / row["slide"]
    if row.get("output"):
        layers = base / row["output"]
    else:
        layers = outdir / f"{slide.stem.removesuffix('.ome')}.ome.zarr"
    name = layers.name.removesuffix(".zarr").removesuffix(".ome")
    options: list[str] = []
    files: list[Path] = []
    for column in ("stains", "mpp", "mpp_source", "mask"):
        value = row.get(column)
        if not value:
            continue
        # stains are a name of the library or a file
        if column == "mask" or value.lower().endswith(".toml"):
            files.append(base / value)
            value = str(files[-1])
        options += [f"--{column.replace('_', '-')}", value]
    look = row.get("reference")
    if look and Path(look).suffix:  # a name has none, which is how normalize tells them apart
        look = str(base / look)
    look = look or reference
    picture = outdir / f"{name}.{Path(look or 'none').stem}.tiff"
    return Job(name, _key(name), slide, layers, tuple(options), tuple(files), look, picture)


def _key(name: str) -> str:
    """The name where it is safe, else one that is, and differs where the names do."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
