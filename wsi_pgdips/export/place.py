"""The place of an export: free, or an older export to replace; seen whole or not at all."""

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

EXPORT = "export"  # under our own key of a Zarr root: what it is an export of


@contextlib.contextmanager
def exporting(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Where to write what becomes ``path`` at the end; nothing is left if that is not reached.

    Each export writes at a place of its own; of two that want the same ``path`` the later one is
    refused at its end, unless it may replace the other.

    Args:
        overwrite: replace a file, or a Zarr folder that is an export of ours. Layers of a run, and
            folders of others, are never replaced.

    Raises:
        OutputError: something is there that may not be replaced, or it is not writable.
    """
    check_place(path, overwrite=overwrite)
    own = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    partial = path.with_name(f"{path.name}.{own}{PARTIAL}")
    with writing(path):
        make_folder(path.parent)
        _remove_dead(path)
        try:
            yield partial
            check_place(path, overwrite=overwrite)  # another export may have come first
            if path.is_dir():
                _remove(path)
            share(partial)
            partial.replace(path)
        except BaseException:
            _remove(partial)
            raise


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken; see :func:`exporting`."""
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(
            "the output exists", where=path, hint="give --overwrite, or another output"
        )
    if path.is_dir() and not is_export(path):
        raise OutputError(
            "something that is no export of ours is in the way of the output",
            expected="a free path, or an export of wsi-pgdips",
            found="a folder with other content",
            where=path,
            hint="give another output, or move it away",
        )


def is_export(path: Path) -> bool:
    """Whether a TIFF, or a Zarr folder of either version, says that it is an export of ours."""
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
    """What a TIFF of ours says of where it comes from; empty for others."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            said = json.loads(tiff.pages.first.description)
    except (OSError, ValueError, tifffile.TiffFileError):
        return {}
    return dict(said.get(OWN_KEY) or {}) if isinstance(said, dict) else {}


def _remove_dead(path: Path) -> None:
    """Delete what exports to ``path`` left that were killed on this host."""
    start = re.escape(f"{path.name}.{_host()}.")
    name = re.compile(start + r"(\d+)\.[0-9a-f]{8}" + re.escape(PARTIAL))
    for node in list(path.parent.iterdir()):
        found = name.fullmatch(node.name)
        if found and not _alive(int(found[1])):
            _remove(node)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node()) or "host"


def _alive(pid: int) -> bool:
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
