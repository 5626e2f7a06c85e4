"""A temporary copy of the slide on a local disk: made before a run, removed after it.

A run reads small parts of its slide many times, and network shares answer such reads slowly, while
they deliver a whole file fast. The copy looks to OpenSlide like the slide's own folder: it has the
same names, and every file that belongs to the slide.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsi_pgdips.disk import PARTIAL, writing
from wsi_pgdips.errors import OutputError, SlideError
from wsi_pgdips.progress import Progress

PIECE = 8 * 2**20  # bytes copied between two reports of progress, which notice ctrl-C
_MIB = 2**20
_KEY_FILE = 2**20  # bytes read of a .vms file, which is a text of some KiB

Pieces = dict[Path, os.stat_result]


@contextlib.contextmanager
def staged(
    slide: Path, cache: Path | None, output: Path, progress: Progress, part: str = ""
) -> Iterator[Path]:
    """Yield the path to read the slide from: a copy under ``cache``, or the slide itself if None.

    The copy has its own folder, named after the slide in its present state and the output. It is
    complete or absent, and removed when the context ends, even after an error. If a killed run left
    a copy behind, the next run of the same slide and output uses it. ``cache`` is created if
    missing, and stays.

    Args:
        slide: file to read. If it is missing, a folder, or not readable in all its pieces, its own
            path is yielded, so that the reader reports the reason.
        cache: folder on a local disk.
        output, part: identify the run; no other run shares its copy.
        progress: gets its own stage while bytes are copied.

    Raises:
        OutputError: there is too little space, or the operating system refused to copy.
        SlideError: the slide changed while it was copied.
    """
    pieces = _pieces(slide.absolute()) if cache is not None else {}
    if cache is None or not pieces:
        yield slide
        return
    home = cache.absolute() / _name(pieces, output, part)
    partial = home.with_name(home.name + PARTIAL)
    try:
        with writing(cache):
            _stage(pieces, home, partial, progress)
        yield home / slide.name
    finally:
        for folder in (partial, home):
            try:
                _remove(folder)
            except OSError as error:  # the run is done and must not fail for this
                progress.note(f"the copy of the slide could not be removed: {error}")


def _stage(pieces: Pieces, home: Path, partial: Path, progress: Progress) -> None:
    """Copy the pieces into ``partial`` and rename it ``home``, unless they are there already."""
    root = next(iter(pieces)).parent
    sizes = {path.relative_to(root): stat.st_size for path, stat in pieces.items()}
    home.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    # sizes are compared, because scratch disks are purged of old files and removals may break off
    if all((home / n).is_file() and (home / n).stat().st_size == s for n, s in sizes.items()):
        return
    _remove(home)
    needed = sum(sizes.values())
    if (free := shutil.disk_usage(home.parent).free) < needed:
        raise OutputError(
            "there is too little space to copy the slide",
            expected=f"{_mib(needed)} MiB free",
            found=f"{free // _MIB} MiB free",
            where=home.parent,
            hint="give another --cache, or omit it to read the slide from its own folder",
        )
    progress.stage("stage slide", _mib(needed), "MiB")
    partial.mkdir(mode=0o700)  # scratch disks are shared, slides are private
    done = 0
    for name, size in sizes.items():
        begun, target = done, partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for data in _read(root / name):
                file.write(data)
                step = _mib(done + len(data)) - _mib(done)
                done += len(data)
                if step:
                    progress.advance(step)
        if done - begun != size:
            raise SlideError(
                "the slide changed while it was copied",
                expected=f"{size} bytes",
                found=f"{done - begun} bytes",
                where=root / name,
                hint="run again when no program writes to it any more",
            )
    partial.rename(home)


def _read(path: Path) -> Iterator[bytes]:
    with writing(path), path.open("rb") as file:  # the error of a failed read names no file
        while data := file.read(PIECE):
            yield data


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(folder)


def _mib(size: int) -> int:
    """Convert bytes to MiB, rounded up."""
    return -(-size // _MIB)


def _name(pieces: Pieces, output: Path, part: str) -> str:
    facts = [f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in pieces.items()]
    text = "\0".join([str(output.absolute()), part, *facts])
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def _pieces(slide: Path) -> Pieces:
    """The slide, then the other files that belong to it; empty if one of them is unreadable."""
    if not os.access(slide, os.R_OK) or not slide.is_file():
        return {}
    with writing(slide):
        paths = [slide, *sorted(set(_others(slide)) - {slide})]
        readable = all(os.access(path, os.R_OK) for path in paths)
        return {path: path.stat() for path in paths} if readable else {}


def _others(slide: Path) -> Iterable[Path]:
    """The files that OpenSlide opens together with a slide."""
    kind = slide.suffix.lower()
    if kind == ".mrxs":
        return [path for path in slide.with_suffix("").rglob("*") if path.is_file()]
    if kind in (".vms", ".vmu"):
        with slide.open("rb") as file:
            lines = os.fsdecode(file.read(_KEY_FILE)).splitlines()
        names = {line.partition("=")[2].strip() for line in lines}
        return [p for p in slide.parent.iterdir() if p.name in names and p.is_file()]
    # the other levels; all series of the folder, because only a DICOM parser can tell them apart
    return filter(_is_dicom, slide.parent.iterdir()) if _is_dicom(slide) else ()


def _is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its name or content.

    OpenSlide accepts any name, and skips files that it cannot open.
    """
    if not os.access(path, os.R_OK) or not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".dcm" or file.read(132)[128:] == b"DICM"
