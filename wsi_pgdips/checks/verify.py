"""Whether finished layers are still what was written: every byte, every block, the format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wsi_pgdips.disk import PARTIAL, sha256
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.layers.schema import RESIDUAL, RESIDUAL_RMS, TISSUE
from wsi_pgdips.layers.tables import TILE_TABLE
from wsi_pgdips.pipeline.output import CHECKSUMS
from wsi_pgdips.records import TileFlag

_VALIDATORS = ("yaozarrs", "ome_zarr_models")


def verify_layers(path: Path, on_file: Callable[[], None] = lambda: None) -> list[str]:
    """What is wrong with layers, in words; nothing where they are whole.

    The format is checked by those validators that are installed, see ``missing_validators``.

    Args:
        on_file: called for each file that was looked at.

    Raises:
        OutputError: these are not finished layers.
    """
    layers = open_layers(path)
    found = _told(CHECKSUMS, _files(layers, on_file))
    found += _told(TILE_TABLE, _blocks(layers))
    found += [f"{name}: unfinished file" for name in _names(path, f"*{PARTIAL}")]
    if (path / "work").exists():
        found.append("work: files of a run that has ended")
    for group in ("", TISSUE, RESIDUAL_RMS, RESIDUAL):
        if group != RESIDUAL or (path / group).exists():  # stored where asked for
            found += _format(path / group, path)
    return found


def _told(name: str, faults: Iterator[str]) -> list[str]:
    """The faults; what breaks the search for them is one too."""
    found = []
    try:
        for fault in faults:
            found.append(fault)
    except Exception as error:  # damaged files break the libraries that read them in many ways
        text = " ".join(str(error).split())
        found.append(f"{name}: cannot be read: {text[:300] or type(error).__name__}")
    return found


def missing_validators() -> list[str]:
    """Those that are not installed."""
    from importlib.util import find_spec

    return [name for name in _VALIDATORS if find_spec(name) is None]


def _files(layers: Layers, on_file: Callable[[], None]) -> Iterator[str]:
    """Each file has the bytes it was written with, and there are no other shards."""
    recorded: dict[str, str] = json.loads((layers.path / CHECKSUMS).read_bytes())
    for name, digest in recorded.items():
        file = layers.path / name
        if not file.is_file():
            yield f"{name}: missing"
        elif sha256(file) != digest:
            yield f"{name}: other bytes than were written"
        on_file()
    there = {
        file.relative_to(layers.path).as_posix()
        for array in _arrays(layers.path)
        for file in (array / "c").rglob("*")
        if file.is_file()
    }
    for name in sorted(there - recorded.keys()):
        yield f"{name}: not of this run"


def _arrays(path: Path) -> Iterator[Path]:
    for node in path.rglob("zarr.json"):
        if (node.parent / "c").is_dir():
            yield node.parent


def _blocks(layers: Layers) -> Iterator[str]:
    """No block is missing: each tile that was measured lies in a shard of level 0."""
    table = layers.tiles.to_pydict()
    per = layers.grid.tiles_per_block
    lost = int(TileFlag.READ_FAILED)
    rows = zip(table["tile_y"], table["tile_x"], table["flags"], strict=True)
    blocks = {(ty // per, tx // per) for ty, tx, flags in rows if not flags & lost}
    for by, bx in sorted(blocks):
        name = f"0/c/0/{by}/{bx}"
        if not (layers.path / name).is_file():
            yield f"{name}: the block is missing"


def _format(root: Path, path: Path) -> Iterator[str]:
    name = root.relative_to(path).as_posix()
    for package, validate in (("yaozarrs", _by_yaozarrs), ("ome_zarr_models", _by_models)):
        if package in missing_validators():
            continue
        try:
            validate(root)
        except Exception as error:  # validators raise what they like
            text = " ".join(str(error).split())
            yield f"{name}: {package} refuses it: {text[:300]}"


def _by_yaozarrs(root: Path) -> None:
    import yaozarrs

    yaozarrs.validate_zarr_store(str(root))


def _by_models(root: Path) -> None:
    import ome_zarr_models
    import zarr

    group: Any = zarr.open_group(root, mode="r")
    ome_zarr_models.open_ome_zarr(group)


def _names(path: Path, pattern: str) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob(pattern))
