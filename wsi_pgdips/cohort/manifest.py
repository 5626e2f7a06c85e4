"""The slides of a cohort, from a CSV with a row for each slide or from a folder of slides."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import SettingsError

# what OpenSlide opens by one file; a DICOM slide is many, and is named in a manifest
ENDINGS = tuple(
    f".{e}"
    for e in ("svs", "tif", "tiff", "ndpi", "vms", "vmu", "scn", "mrxs", "svslide", "bif", "czi")
)
LAYERS = "layers"  # folder in that of the job
OWN = (
    "state",
    "logs",
    "slurm",
    "looks",
    "groups",
    "cohort.json",
    "summary.json",
    "failures.csv",
)  # of the job
SETTINGS = tuple(ScientificSettings.model_fields)
COLUMNS = ("slide", "output", "reference", "group", "tissue", *SETTINGS)
_PATHS = ("mask", "roi", "cache")


@dataclass(frozen=True)
class Entry:
    """One slide of a cohort.

    Attributes:
        name: of its files in the job folder, unique; may hold "/". slide: absolute path.
        output: absolute, or relative to the job folder. reference: look of a normalised copy.
        settings: of this slide alone, over those of the cohort.
        group: its scanner, laboratory or staining day. tissue: what it shows.
    """

    name: str
    slide: str
    output: str
    reference: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    tissue: str | None = None


def read_cohort(source: Path, job: Path) -> tuple[Entry, ...]:
    """Return the slides of a manifest or a folder.

    Args:
        job: folder of the cohort's files; what lies in it is no slide of the cohort.

    Raises:
        SettingsError: nothing there, an unknown column, a row that cannot be used, two slides whose
            outputs would have the same name.
    """
    if os.path.isdir(source):  # noqa: PTH112 - it never raises
        entries = tuple(_of_folder(source, job))
        if not entries:
            raise SettingsError(
                "there is no slide in the folder",
                expected=f"files that end in {' '.join(ENDINGS)}",
                where=source,
                hint="give a manifest (CSV with a column slide) for files of other names",
            )
    else:
        entries = tuple(_of_table(source))
    _refuse_clashes(entries, source, job)
    return entries


def _of_folder(folder: Path, job: Path) -> Iterator[Entry]:
    root, own = folder.absolute(), job.resolve()
    try:
        found = sorted(_files(root, {own, own / LAYERS}))
    except OSError as error:
        raise SettingsError(
            "the folder of slides cannot be read", found=error.strerror, where=error.filename
        ) from None
    for path in found:
        name = path.relative_to(root).with_suffix("").as_posix()
        # a name that is not UTF-8 can be opened, but not written down
        name = name.encode(errors="backslashreplace").decode()
        yield Entry(name, str(path), _output(name))


def _files(folder: Path, passed: Set[Path]) -> Iterator[Path]:
    """Return the slides under a folder that are neither hidden nor inside layers.

    Args:
        passed: folders that are not searched: those of the job, and those above this folder, as a
            link may lead back to them.
    """
    passed = {*passed, folder.resolve()}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.suffix.lower() != ".zarr" and path.resolve() not in passed:
                yield from _files(path, passed)
        elif path.suffix.lower() in ENDINGS:
            yield path


def _of_table(manifest: Path) -> Iterator[Entry]:
    rows = _rows(manifest)
    header = next(rows, (0, []))[1]
    columns = [name.strip().lower() for name in header]
    unknown = [name for name in columns if name not in COLUMNS]
    if "slide" not in columns or unknown or len(set(columns)) < len(columns):
        raise SettingsError(
            "the manifest has other columns than a cohort's",
            expected=f"slide, and of {', '.join(COLUMNS[1:])} what is needed, each once",
            found=", ".join(columns) or "nothing",
            where=manifest,
        )
    found = False
    for line, cells in rows:
        if len(cells) > len(columns):
            raise SettingsError(
                "a row has more cells than the manifest has columns",
                expected=len(columns),
                found=len(cells),
                where=f"{manifest}, line {line}",
                hint='put a path that holds a comma in quotes: "a,b.svs"',
            )
        given = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
        found = True
        yield _entry({k: v for k, v in given.items() if v}, manifest, line)
    if not found:
        raise SettingsError("the manifest names no slide", where=manifest)


def _rows(manifest: Path) -> Iterator[tuple[int, list[str]]]:
    """Return (line, cells) of each line that holds anything."""
    try:
        text = manifest.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("a character NUL, as in UTF-16")
    except FileNotFoundError:
        raise SettingsError(
            "there is no such manifest",
            expected="a CSV with a column slide, or a folder of slides",
            found="nothing",
            where=manifest,
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(
            "the manifest cannot be read",
            expected="a CSV in UTF-8",
            found=error,
            where=manifest,
        ) from None
    # spreadsheets of other languages write semicolons
    first = text.strip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    # strict: a quote that is never closed would swallow the slides after it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise SettingsError(
            "the manifest is not a valid CSV",
            expected="quotes that are closed, around whole cells",
            found=error,
            where=f"{manifest}, line {reader.line_num}",
        ) from None


def _entry(given: dict[str, str], manifest: Path, line: int) -> Entry:
    where, folder = f"{manifest}, line {line}", manifest.absolute().parent
    if "slide" not in given:
        raise SettingsError("a row names no slide", where=where)
    slide = folder / given.pop("slide")
    output, reference = given.pop("output", None), given.pop("reference", None)
    if reference is not None and is_file_of(reference):
        reference = str(folder / reference)
    group, tissue = given.pop("group", None), given.pop("tissue", None)
    if group is not None and not re.fullmatch(r"[\w][\w .+-]*", group):
        raise SettingsError(
            "a group has a name that no file can have",
            expected="letters, digits, spaces, and . _ + -",
            found=group,
            where=where,
        )
    settings = {k: str(folder / v) if is_path(k, v) else v for k, v in given.items()}
    name = slide.stem if output is None else _name_of(output)
    return Entry(name, str(slide), output or _output(name), reference, settings, group, tissue)


def is_file_of(text: str) -> bool:
    """Return whether stains or a reference are a file: names of the library have no ending."""
    return bool(Path(text).suffix)


def is_path(name: str, text: str) -> bool:
    """Return whether the value of a setting is the path of a file or folder."""
    return name in _PATHS or (name == "stains" and is_file_of(text))


def _output(name: str) -> str:
    return f"{LAYERS}/{name}.ome.zarr"


def _name_of(output: str) -> str:
    """Return the name of an entry whose output is given, also by an absolute path."""
    path = Path(output)
    if path.is_absolute():
        path = Path(os.path.normpath(path)).relative_to(path.anchor)
    return (path.parent / re.sub(r"(\.ome)?\.zarr$", "", path.name)).as_posix()


def _refuse_clashes(entries: Iterable[Entry], source: Path, job: Path) -> None:
    """Refuse outputs in one another: each is replaced as a whole, so nothing else may lie in it.

    Raises:
        SettingsError: there are some.
    """
    root = Path(os.path.normpath(job.absolute()))
    own = {root / name: f"{name} of the job folder" for name in OWN}
    seen: dict[str | Path, Entry] = {}
    for entry in entries:
        # the same folder may be spelt in several ways
        for key in (entry.name, Path(os.path.normpath(root / entry.output))):
            other = seen.setdefault(key, entry)
            if other is not entry:
                raise SettingsError(
                    "two slides would be written to the same place",
                    found=f"{other.slide} and {entry.slide}, both {key}",
                    where=source,
                    hint="give each an output of its own: a manifest with a column output",
                )
        if ".." in Path(entry.name).parts:
            raise SettingsError(
                "an output leads out of the job folder by ..",
                expected="a path inside the job folder, or an absolute one",
                found=entry.output,
                where=source,
            )
    places = {key: f"the layers of {e.slide}" for key, e in seen.items() if isinstance(key, Path)}
    for place, what in [*places.items(), *own.items()]:
        inside = [p for p in place.parents if p in places or p in own]
        if inside or (place in places and place in own):
            raise SettingsError(
                "an output holds what is not its own",
                expected="outputs apart from one another and from the files of the cohort",
                found=f"{what} would be in {(inside or [place])[0]}",
                where=source,
                hint="give each an output of its own",
            )
