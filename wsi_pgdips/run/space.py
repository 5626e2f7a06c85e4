"""Whether there is room for what a run will write, before it is begun."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers.disk import writing

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
