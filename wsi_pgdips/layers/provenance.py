"""Root attributes and the done marker. Only the coordinator of a run writes them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from wsi_pgdips import __version__
from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.schema import OWN_KEY, Json, to_json

RUN_RECORD = "provenance/run.json"
DONE = "done"

_PACKAGES = ("numpy", "scipy", "torch", "zarr", "numcodecs", "openslide-python", "tiatoolbox")


def read_attributes(path: Path) -> Json:
    """Read the attributes of the root group; they are empty if there is no Zarr v3 group.

    Raises:
        OutputError: there is a ``zarr.json``, but it cannot be read.
    """
    root = _read_json(path / "zarr.json")
    attributes = root.get("attributes", {})
    return attributes if isinstance(attributes, dict) else {}


def write_metadata(path: Path, attributes: Mapping[str, Any]) -> None:
    """Merge attributes into the root's ``zarr.json``, atomically.

    Two levels are merged (``{"wsi_pgdips": {"slide": ...}}`` keeps the other keys of
    ``wsi_pgdips``); deeper values are replaced. Arrays become lists, NaN becomes null.

    Raises:
        OutputError: the folder holds no layers, or is not writable.
    """
    root = _read_json(path / "zarr.json")
    if not root:
        raise OutputError(
            "there are no layers in this folder",
            expected="a zarr.json",
            found="none",
            where=path,
        )
    merged = dict(root.get("attributes", {}))
    for key, value in to_json(attributes).items():
        old = merged.get(key)
        merged[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    write_json(path / "zarr.json", {**root, "attributes": merged})


def is_created(path: Path) -> bool:
    """Return whether ``create_layers`` has completed here; False after an interruption."""
    # create_layers writes our own key first and the ome key last
    return {OWN_KEY, "ome"} <= read_attributes(path).keys()


def mark_done(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``provenance/run.json``, the very last write of a run.

    Args:
        record: all that differs from run to run (host, device, times); the status is added.

    Raises:
        OutputError: the file is not writable.
    """
    write_json(path / RUN_RECORD, {**to_json(record), "status": DONE})


def is_done(path: Path) -> bool:
    """Return whether the layers are finished."""
    return read_run_record(path).get("status") == DONE


def read_run_record(path: Path) -> Json:
    """Read the record that ``mark_done`` wrote; it is empty before that."""
    return _read_json(path / RUN_RECORD)


def software_versions() -> dict[str, str]:
    """The versions of this package, of Python, and of the installed packages that matter."""
    versions = {"wsi-pgdips": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise OutputError(
            "a file of the layers cannot be read", where=path, found=error.strerror
        ) from error
    except ValueError as error:
        raise OutputError(
            "a file of the layers is damaged", expected="JSON", found=error, where=path
        ) from error
    return value if isinstance(value, dict) else {}
