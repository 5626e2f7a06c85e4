"""Check that finished layers are still what was written: every byte, every block, the format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from wsi_pgdips.disk import PARTIAL, sha256
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.layers.schema import ARTIFACT, RESIDUAL, RESIDUAL_RMS, TISSUE
from wsi_pgdips.layers.tables import TILE_TABLE
from wsi_pgdips.pipeline.output import CHECKSUMS
from wsi_pgdips.records import TileFlag

_VALIDATORS = ("yaozarrs", "ome_zarr_models")


def verify_layers(path: Path, on_file: Callable[[], None] = lambda: None) -> list[str]:
    """Return the faults of layers, one line each; nothing where they are whole.

    The format is checked by those validators that are installed, see ``missing_validators``.

    Args:
        on_file: called after each file is checked.

    Raises:
        OutputError: these are not finished layers.
    """
    layers = open_layers(path)
    faults = _readable_faults(CHECKSUMS, _file_faults(layers, on_file))
    faults += _readable_faults(TILE_TABLE, _missing_blocks(layers))
    partial = sorted(p.relative_to(path).as_posix() for p in path.rglob(f"*{PARTIAL}"))
    faults += [f"{name}: unfinished file" for name in partial]
    if (path / "work").exists():
        faults.append("work: files of a run that has ended")
    for group in ("", TISSUE, ARTIFACT, RESIDUAL_RMS, RESIDUAL):
        if group != RESIDUAL or (path / group).exists():  # stored only where asked for
            faults += _format_faults(path / group, path)
    return faults


def missing_validators() -> list[str]:
    """Return the names of the validators that are not installed."""
    from importlib.util import find_spec

    return [name for name in _VALIDATORS if find_spec(name) is None]


def _readable_faults(name: str, faults: Iterator[str]) -> list[str]:
    """Return the faults of a file's content; an error while it is read is one more."""
    found = []
    try:
        for fault in faults:
            found.append(fault)
    except Exception as error:  # damaged files break the libraries that read them in many ways
        found.append(f"{name}: cannot be read: {_one_line(error) or type(error).__name__}")
    return found


def _file_faults(layers: Layers, on_file: Callable[[], None]) -> Iterator[str]:
    """Yield files whose bytes are not those that were written, and shards of other runs."""
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
        for array in layers.path.rglob("zarr.json")
        for file in (array.parent / "c").rglob("*")
        if file.is_file()
    }
    for name in sorted(there - recorded.keys()):
        yield f"{name}: not of this run"


def _missing_blocks(layers: Layers) -> Iterator[str]:
    """Yield blocks whose tiles were measured, but whose shard of level 0 is missing."""
    table = layers.tiles.to_pydict()
    per_block, unread = layers.grid.tiles_per_block, int(TileFlag.READ_FAILED)
    rows = zip(table["tile_y"], table["tile_x"], table["flags"], strict=True)
    blocks = {(ty // per_block, tx // per_block) for ty, tx, flags in rows if not flags & unread}
    for by, bx in sorted(blocks):
        name = f"0/c/0/{by}/{bx}"
        if not (layers.path / name).is_file():
            yield f"{name}: the block is missing"


def _format_faults(group: Path, path: Path) -> Iterator[str]:
    missing = missing_validators()
    for package in (name for name in ("yaozarrs", "ome_zarr_models") if name not in missing):
        try:
            _validate(package, group)
        except Exception as error:  # validators raise exceptions of many kinds
            name = group.relative_to(path).as_posix()
            yield f"{name}: {package} refuses it: {_one_line(error)}"


def _validate(package: str, group: Path) -> None:
    if package == "yaozarrs":
        import yaozarrs

        yaozarrs.validate_zarr_store(str(group))
    else:
        import ome_zarr_models
        import zarr

        ome_zarr_models.open_ome_zarr(zarr.open_group(group, mode="r"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
