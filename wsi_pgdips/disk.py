"""Writing to disk: whole files or none, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import OutputGrid

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer
    from zarr.storage import LocalStore

PARTIAL = ".partial"  # also the suffix of zarr's own unfinished files

_GROUPS = stat.S_IWGRP | stat.S_ISGID
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn operating-system errors inside into ``OutputError`` about ``path``."""
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


# chunks of a shard are handed over in batches: one by one, zarr itself takes longer than zstd
_WRITING = {
    "async.concurrency": 16,
    "codec_pipeline.batch_size": 16,
    "array.write_empty_chunks": False,
}


@contextlib.contextmanager
def zarr_session(path: Path) -> Iterator[None]:
    """Settings under which shards are written: the same bytes on every machine.

    Raises:
        OutputError: the operating system refused a write inside.
    """
    import zarr
    from numcodecs import blosc  # type: ignore[import-untyped]

    # one thread a chunk: zarr already encodes several chunks at once, and so do our workers
    blosc.set_nthreads(1)
    with (
        zarr.config.set(_WRITING),
        writing(path),
    ):
        yield


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


def shared_store(path: Path) -> LocalStore:
    """Return a Zarr store whose files and folders are shared; see :func:`share`."""
    from zarr.storage import LocalStore

    class SharedStore(LocalStore):
        async def set(self, key: str, value: Buffer) -> None:
            make_folder((self.root / key).parent)
            await super().set(key, value)
            share(self.root / key)

        async def set_if_not_exists(self, key: str, value: Buffer) -> None:
            make_folder((self.root / key).parent)
            await super().set_if_not_exists(key, value)
            share(self.root / key)

    return SharedStore(path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside ``path``, moved there at the end: it is seen whole or not at all.

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
    """Write a file by :func:`replacing`.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as handle:
        handle.write(data)


def remove_partials(path: Path) -> int:
    """Delete the unfinished files a killed process left under ``path``; return how many.

    Call it only when no worker is writing.
    """
    with writing(path):
        partials = list(path.rglob(f"*{PARTIAL}"))
        for partial in partials:
            partial.unlink(missing_ok=True)
    return len(partials)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


PYRAMID = 4 / 3
CODE_BYTES = 2
# of its codes a tile leaves so much on the disk; `estimate` measures it on the slide itself
COMPRESSED = 0.4
_MIB = 2**20


def layers_bytes(grid: OutputGrid, tiles: int, stains: int) -> int:
    """About what finished layers take."""
    return round(tiles * grid.tile**2 * stains * CODE_BYTES * PYRAMID * COMPRESSED)


def size_of(output: Path) -> int:
    """Bytes of what lies in an output that is replaced; 0 where nothing does."""
    with writing(output):
        return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def check_room(output: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Args:
        output: that is about to be written. needed: bytes.

    Raises:
        OutputError: the disk has less.
    """
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    with writing(output):
        free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            "the disk has too little room for the layers",
            expected=f"about {-(-needed // _MIB)} MiB free",
            found=f"{free // _MIB} MiB free",
            where=output,
            hint="free some space or choose another output folder; "
            "`wsi-pgdips estimate` says more exactly what a slide takes",
        )
