"""Writing to disk: files appear complete or not at all, and errors say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import OutputGrid

PARTIAL = ".partial"  # zarr uses this suffix for its unfinished files, too

_GROUPS = stat.S_IWGRP | stat.S_ISGID
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
PYRAMID = 4 / 3
CODE_BYTES = 2
# compressed size of a tile's codes, as a share; `estimate` measures it on the slide itself
COMPRESSED = 0.4
_MIB = 2**20


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert operating-system errors inside the context to ``OutputError`` about ``path``."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            raise OutputError(
                "the disk is full",
                found=error.strerror,
                where=where,
                hint="free some space or choose another output folder, then run again: "
                "finished blocks are kept",
            ) from error
        if error.errno in _REFUSED:
            raise OutputError(
                "the output cannot be written",
                expected="a folder with permission to write",
                found=error.strerror,
                where=where,
                hint="check the permissions of the folder, or choose another one",
            ) from error
        raise OutputError(
            "writing the output failed",
            found=error.strerror or error,
            where=where,
            hint="check the disk or the network share, then run again: finished blocks are kept",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it; see :func:`share`.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        share(path)


def share(path: Path) -> None:
    """Let the group use a new file or folder as its owner may, if it lies in a group's folder.

    A folder is a group's if the group may write to it and new files get its group, as after
    ``chmod g+ws``. The umask is left alone: it is one for all threads of a process.

    Raises:
        OSError: the file is gone, or the disk is away.
    """
    folder, mode = path.parent.stat().st_mode, path.stat().st_mode
    shared = mode | (mode & stat.S_IRWXU) >> 3
    if folder & _GROUPS == _GROUPS and mode != shared:
        with contextlib.suppress(PermissionError):  # the owner, another process, is about to do it
            path.chmod(stat.S_IMODE(shared))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` and move it there at the end, complete or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with writing(path):
        make_folder(path.parent)
        try:
            with partial.open("wb") as handle:
                share(partial)
                yield handle
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file with :func:`replacing`.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as handle:
        handle.write(data)


def save_arrays(path: Path, **arrays: npt.ArrayLike) -> None:
    """Write an ``.npz`` by :func:`replacing`.

    Raises:
        OutputError: the disk is full or the folder not writable.
    """
    with replacing(path) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an ``.npy`` by :func:`replacing`.

    Raises:
        OutputError: the disk is full or the folder not writable.
    """
    with replacing(path) as handle:
        np.save(handle, array)


def load_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an ``.npz``, or those of ``names`` alone."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in names or data.files}


def remove_partials(path: Path) -> int:
    """Delete the unfinished files of killed processes under ``path``; return their number.

    Call it only when no worker is writing.
    """
    with writing(path):
        partials = list(path.rglob(f"*{PARTIAL}"))
        for partial in partials:
            partial.unlink(missing_ok=True)
    return len(partials)


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def layers_bytes(grid: OutputGrid, tiles: int, stains: int) -> int:
    """The approximate size of finished layers, in bytes."""
    return round(tiles * grid.tile**2 * stains * CODE_BYTES * PYRAMID * COMPRESSED)


def size_of(output: Path) -> int:
    """The size in bytes of all files in an output that will be replaced; 0 if there are none."""
    with writing(output):
        return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def check_room(output: Path, needed: int) -> None:
    """Check the free space before an output is written.

    Args:
        output: folder that will be written. needed: bytes.

    Raises:
        OutputError: the disk has less free space.
    """
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    with writing(output):
        free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            "the disk has too little free space for the layers",
            expected=f"about {-(-needed // _MIB)} MiB free",
            found=f"{free // _MIB} MiB free",
            where=output,
            hint="free some space or choose another output folder; "
            "`wsi-pgdips estimate` gives a better figure for a slide",
        )
