"""Root attributes and the done marker. Written by the coordinator of a run only."""

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
    """Attributes of the root group; empty where there is no Zarr v3 group.

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
        OutputError: no layers there, or not writable.
    """
    root = _read_json(path / "zarr.json")
    if not root:
        raise OutputError(
            "there are no layers to describe", expected="a zarr.json", found="none", where=path
        )
    merged = dict(root.get("attributes", {}))
    for key, value in to_json(attributes).items():
        old = merged.get(key)
        merged[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    write_json(path / "zarr.json", {**root, "attributes": merged})


def is_created(path: Path) -> bool:
    """Whether ``create_layers`` came to its end here; False for an interrupted one."""
    # create_layers starts with our own key alone and ends with both
    return {OWN_KEY, "ome"} <= read_attributes(path).keys()


def mark_done(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``provenance/run.json``, the last write of all.

    Args:
        record: what differs from run to run (host, device, times); the status is added.

    Raises:
        OutputError: not writable.
    """
    write_json(path / RUN_RECORD, {**to_json(record), "status": DONE})


def is_done(path: Path) -> bool:
    """Whether the layers are finished."""
    return read_run_record(path).get("status") == DONE


def read_run_record(path: Path) -> Json:
    """What ``mark_done`` wrote, empty before that."""
    return _read_json(path / RUN_RECORD)


def software_versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the packages here that the result depends on."""
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
