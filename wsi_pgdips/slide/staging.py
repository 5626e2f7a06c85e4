"""The slide on a disk near the run: copied there before, removed after.

A run reads its slide in small pieces many times, which a network share answers slowly; it reads a
file once from end to end as fast as it can. Whoever opens the copy sees what OpenSlide would see
in the slide's own folder: the same names, and every file the slide consists of.
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

PIECE = 8 * 2**20  # bytes between two looks at ctrl-C
_MIB = 2**20
_KEY_FILE = 2**20  # of a .vms this much is read: it is text of some KiB

Pieces = dict[Path, os.stat_result]


@contextlib.contextmanager
def staged(
    slide: Path, cache: Path | None, output: Path, progress: Progress, part: str = ""
) -> Iterator[Path]:
    """The path to read the slide from: a copy under ``cache``, or the slide itself for None.

    The copy has a folder of its own there, of this slide as it is now and this output. It is
    whole or absent, goes when the context ends, well or not, and where a killed run left one, the
    next run of the same slide and output takes it over. ``cache`` is made where missing, and stays.

    Args:
        slide: file to read; one that is missing, a folder or not readable in all its pieces comes
            back as it is, so that its reader says why.
        cache: folder on a local disk.
        output, part: of the run, which shares its copy with no other.
        progress: gets a stage of its own while bytes are copied.

    Raises:
        OutputError: too little space, or the operating system refused to copy.
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
            except OSError as error:  # no reason to fail a run that is done
                progress.note(f"the copy of the slide could not be removed: {error}")


def _stage(pieces: Pieces, home: Path, partial: Path, progress: Progress) -> None:
    """Copy the pieces into ``partial`` and call it ``home``, unless they are there already."""
    root = next(iter(pieces)).parent
    sizes = {path.relative_to(root): stat.st_size for path, stat in pieces.items()}
    home.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    # sizes are looked at: scratch disks are swept of old files, and a removal may break off
    if all((home / n).is_file() and (home / n).stat().st_size == s for n, s in sizes.items()):
        return
    _remove(home)
    needed = sum(sizes.values())
    if (free := shutil.disk_usage(home.parent).free) < needed:
        raise OutputError(
            "too little space to copy the slide",
            expected=f"{_mib(needed)} MiB free",
            found=f"{free // _MIB} MiB free",
            where=home.parent,
            hint="give another --cache, or leave it out to read the slide where it is",
        )
    progress.stage("stage slide", _mib(needed), "MiB")
    partial.mkdir(mode=0o700)  # scratch is shared, slides are not
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
                hint="run again when nothing writes to it any more",
            )
    partial.rename(home)


def _read(path: Path) -> Iterator[bytes]:
    with writing(path), path.open("rb") as file:  # an error of a read names no file itself
        while data := file.read(PIECE):
            yield data


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(folder)


def _mib(size: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-size // _MIB)


def _name(pieces: Pieces, output: Path, part: str) -> str:
    facts = [f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in pieces.items()]
    text = "\0".join([str(output.absolute()), part, *facts])
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def _pieces(slide: Path) -> Pieces:
    """The slide, then the other files it consists of; none where one of them cannot be read."""
    if not os.access(slide, os.R_OK) or not slide.is_file():
        return {}
    with writing(slide):
        paths = [slide, *sorted(set(_others(slide)) - {slide})]
        readable = all(os.access(path, os.R_OK) for path in paths)
        return {path: path.stat() for path in paths} if readable else {}


def _others(slide: Path) -> Iterable[Path]:
    """Files that OpenSlide opens with a slide."""
    kind = slide.suffix.lower()
    if kind == ".mrxs":
        return [path for path in slide.with_suffix("").rglob("*") if path.is_file()]
    if kind in (".vms", ".vmu"):
        with slide.open("rb") as file:
            lines = os.fsdecode(file.read(_KEY_FILE)).splitlines()
        names = {line.partition("=")[2].strip() for line in lines}
        return [p for p in slide.parent.iterdir() if p.name in names and p.is_file()]
    # the other levels; all series of the folder, as which is which takes a DICOM parser
    return filter(_is_dicom, slide.parent.iterdir()) if _is_dicom(slide) else ()


def _is_dicom(path: Path) -> bool:
    """By name or content: OpenSlide takes any name, and leaves out what it cannot open."""
    if not os.access(path, os.R_OK) or not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".dcm" or file.read(132)[128:] == b"DICM"
