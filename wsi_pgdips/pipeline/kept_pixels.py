"""Pixels that ``fit`` has decoded, kept for ``render``, so that a slide is decoded once.

Decoding takes longer than everything that ``fit`` and ``render`` do to a tile in the closed form.
The pixels of a block's fitted tiles lie in one file of ``work``, as they were read. A region is put
together from them, and the rest is read from the slide. A pixel has the same bytes in any window,
so the result is the same.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from wsi_pgdips.disk import PARTIAL, make_folder, share, writing
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.records import ByteArray, TileSource

if TYPE_CHECKING:
    from wsi_pgdips.stages.context import Context

TileIndex = tuple[int, int]
CHANNELS = 3
SPARE = 2.0  # times what is kept must be free on the disk: the layers go there too


def pixels_bytes(grid: OutputGrid, tiles: int) -> int:
    """Return how many bytes the kept pixels of so many tiles take on the disk."""
    return tiles * grid.tile**2 * CHANNELS


def room_for_pixels(output: Path, grid: OutputGrid, tiles: int) -> bool:
    """Return whether the disk of the output has enough room to keep them."""
    return shutil.disk_usage(output).free > SPARE * pixels_bytes(grid, tiles)


@contextlib.contextmanager
def keeping_pixels(
    path: Path, grid: OutputGrid, tiles: Sequence[TileIndex]
) -> Iterator[Callable[[TileIndex, ByteArray], None]]:
    """Give a function that keeps the (h, w, 3) pixels of a tile; the file appears whole or not.

    Args:
        path: of the file. grid: of the slide. tiles: of the block, in the order of the file; those
            that are not given are marked as missing.

    Raises:
        OutputError: the file cannot be written.
    """
    rows, size = {tile: i for i, tile in enumerate(tiles)}, pixels_bytes(grid, 1)
    present, partial = np.zeros(len(tiles), np.uint8), path.with_name(path.name + PARTIAL)

    def keep(tile: TileIndex, rgb: ByteArray) -> None:
        with writing(path):
            handle.seek(rows[tile] * size)
            handle.write(np.ascontiguousarray(rgb).data)
        present[rows[tile]] = 1

    with writing(path):
        make_folder(path.parent)
        handle = partial.open("wb")
        share(partial)
    try:
        yield keep
        with writing(path):
            handle.seek(len(rows) * size)
            handle.write(present.data)
            handle.close()
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk
            handle.close()
        partial.unlink(missing_ok=True)
        raise


class KeptPixels:
    """The pixels of a slide: kept ones from their files, the others from the slide. Thread-safe.

    Args:
        source: the slide. ledger: of the run. tiles: block -> its tiles in the order of its file.
    """

    def __init__(
        self,
        source: TileSource,
        ledger: Ledger,
        tiles: dict[Block, tuple[TileIndex, ...]],
    ) -> None:
        self._source, self._ledger, self._tiles = source, ledger, tiles
        self._rows = functools.cache(self._load)

    @classmethod
    def of_run(cls, context: Context, ledger: Ledger) -> Self:
        """Return the pixels of a run, whose files are ordered as its blocks are planned."""
        return cls(context.source, ledger, {(p.by, p.bx): p.render for p in context.plans})

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        """Return (h, w, 3) uint8, as ``source.read`` does.

        Raises:
            SlideError: pixels that are not kept cannot be read.
        """
        grid = self._source.grid
        region = Region(y, x, h, w)
        centre = ((y + h // 2) // grid.tile, (x + w // 2) // grid.tile)
        whole = self._kept(centre)
        if whole is None:  # its neighbours alone would save little
            return self._source.read(y, x, h, w)
        if region == grid.tile_region(*centre):
            return whole
        out = np.full((h, w, CHANNELS), 255, np.uint8)
        inside = region.clipped(grid.shape)
        for ty in range(inside.y // grid.tile, (inside.stop_y - 1) // grid.tile + 1):
            for tx in range(inside.x // grid.tile, (inside.stop_x - 1) // grid.tile + 1):
                own = grid.tile_region(ty, tx)
                part = Region(
                    max(own.y, y),
                    max(own.x, x),
                    min(own.stop_y, region.stop_y) - max(own.y, y),
                    min(own.stop_x, region.stop_x) - max(own.x, x),
                )
                kept = self._kept((ty, tx))
                pixels = (
                    self._source.read(part.y, part.x, part.h, part.w)
                    if kept is None
                    else kept[
                        part.y - own.y : part.stop_y - own.y, part.x - own.x : part.stop_x - own.x
                    ]
                )
                out[part.y - y : part.stop_y - y, part.x - x : part.stop_x - x] = pixels
        return out

    def _kept(self, tile: TileIndex) -> ByteArray | None:
        """(h, w, 3) of a tile, mapped from its block's file; None where it is not kept."""
        grid = self._source.grid
        per = grid.tiles_per_block
        block = (tile[0] // per, tile[1] // per)
        found = self._rows(block)
        if found is None or tile not in found:
            return None
        region = grid.tile_region(*tile)
        # mapped for as long as it is used: pages that stay mapped count as memory of the process
        return np.memmap(
            self._ledger.pixels(block),
            np.uint8,
            mode="r",
            offset=found[tile] * pixels_bytes(grid, 1),
            shape=(region.h, region.w, CHANNELS),
        )

    def _load(self, block: Block) -> dict[TileIndex, int] | None:
        """The row of each tile in the file of a block; None where there is no file."""
        path, tiles = self._ledger.pixels(block), self._tiles.get(block, ())
        if not tiles or not path.exists():
            return None
        present = np.fromfile(path, np.uint8, offset=pixels_bytes(self._source.grid, len(tiles)))
        return {tile: i for i, tile in enumerate(tiles) if present[i]}
