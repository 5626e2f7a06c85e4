"""The place of an export: it is checked before, and taken only by a finished export."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_pgdips.disk import PARTIAL, make_folder, share, writing
from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.schema import OWN_KEY

EXPORT = "export"  # key under our own key of a Zarr root, which marks an export


@contextlib.contextmanager
def exporting(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, and move it to ``path`` at the end.

    If the work inside fails, nothing is left. Of two exports to one ``path`` at once, the second to
    finish is refused, unless it may overwrite.

    Args:
        path: file or folder to write.
        overwrite: replace a file, or a Zarr folder that is an export of ours. Layers of a run and
            other folders are never replaced.

    Raises:
        OutputError: ``path`` is taken by something that may not be replaced, or is not writable.
    """
    check_place(path, overwrite=overwrite)
    own = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    partial = path.with_name(f"{path.name}.{own}{PARTIAL}")
    with writing(path):
        make_folder(path.parent)
        _remove_dead(path)
        try:
            yield partial
            check_place(path, overwrite=overwrite)  # another export may have finished first
            if path.is_dir():
                _remove(path)
            share(partial)
            partial.replace(path)
        except BaseException:
            _remove(partial)
            raise


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that is taken.

    Raises:
        OutputError: see :func:`exporting`.
    """
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(
            "the output exists", where=path, hint="give --overwrite, or another output"
        )
    if path.is_dir() and not is_export(path):
        raise OutputError(
            "the output is a folder that is not an export of wsi-pgdips",
            expected="a free path, or an export of wsi-pgdips",
            found="a folder with other content",
            where=path,
            hint="give another output, or move it away",
        )


def is_export(path: Path) -> bool:
    """Return whether a path is an export of ours: a TIFF, a Zarr folder, or an empty folder."""
    if path.is_file():
        return bool(tiff_record(path))
    for name in (".zattrs", "zarr.json"):
        try:
            root = json.loads((path / name).read_bytes())
        except (OSError, ValueError):
            continue
        attributes = root.get("attributes", {}) if name == "zarr.json" else root
        return EXPORT in (attributes.get(OWN_KEY) or {})
    return path.is_dir() and not any(path.iterdir())


def tiff_record(path: Path) -> dict[str, Any]:
    """Read the provenance in the description of a TIFF of ours; empty for other files."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            description = json.loads(tiff.pages.first.description)
    except (OSError, ValueError, tifffile.TiffFileError):
        return {}
    return dict(description.get(OWN_KEY) or {}) if isinstance(description, dict) else {}


def _remove_dead(path: Path) -> None:
    """Delete the unfinished outputs of exports to ``path`` that were killed on this host."""
    start = re.escape(f"{path.name}.{_host()}.")
    name = re.compile(start + r"(\d+)\.[0-9a-f]{8}" + re.escape(PARTIAL))
    for node in list(path.parent.iterdir()):
        found = name.fullmatch(node.name)
        if found and not _alive(int(found[1])):
            _remove(node)


def _host() -> str:
    """Return the host's name in letters that are safe in a file name."""
    return re.sub(r"[^\w-]", "-", platform.node()) or "host"


def _alive(pid: int) -> bool:
    """Return whether a process of this host is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
