"""Pixels that ``fit`` has decoded, kept for ``render``: a slide is decoded once.

Decoding takes longer than everything ``fit`` and ``render`` do to a tile in the closed form. The
pixels of a block's fitted tiles lie in one file of ``work``, as they were read; a region is put
together from them, and what they lack is read from the slide. Since a pixel has the same bytes in
whatever window it is read, nobody can tell the difference.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

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
    """What the kept pixels of so many tiles take on the disk."""
    return tiles * grid.tile**2 * CHANNELS


def room_for_pixels(output: Path, grid: OutputGrid, tiles: int) -> bool:
    """Whether the disk of the output has room enough to keep them."""
    return shutil.disk_usage(output).free > SPARE * pixels_bytes(grid, tiles)


class PixelWriter:
    """Keeps the pixels of a block's tiles, in the order of their index; seen whole or not at all.

    Args:
        path: where. grid: of the slide. tiles: that will be given, or said to be missing, in turn.
    """

    def __init__(self, path: Path, grid: OutputGrid, tiles: Sequence[TileIndex]) -> None:
        self._path, self._partial = path, path.with_name(path.name + PARTIAL)
        self._grid, self._rows = grid, {tile: i for i, tile in enumerate(tiles)}
        self._bytes = pixels_bytes(grid, 1)
        self._present = np.zeros(len(tiles), np.uint8)
        self._handle: BinaryIO | None = None

    def __enter__(self) -> Self:
        with writing(self._path):
            make_folder(self._path.parent)
            self._handle = self._partial.open("wb")
            share(self._partial)
        return self

    def put(self, tile: TileIndex, rgb: ByteArray) -> None:
        """Keep (h, w, 3) of a tile's own pixels; at the slide's end it is less than a square."""
        row, handle = self._rows[tile], self._handle
        if handle is None:
            raise ValueError("the writer is not open")
        with writing(self._path):
            handle.seek(row * self._bytes)
            handle.write(np.ascontiguousarray(rgb).data)
        self._present[row] = 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is None:
            return
        with writing(self._path):
            if kind is None:
                self._handle.seek(len(self._rows) * self._bytes)
                self._handle.write(self._present.data)
            self._handle.close()
            if kind is None:
                self._partial.replace(self._path)
            else:
                self._partial.unlink(missing_ok=True)


class KeptPixels:
    """A source of pixels: those that are kept, the rest from the slide. Thread-safe.

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
        """Of the blocks as they are planned, which is how ``fit`` keeps them."""
        return cls(context.source, ledger, {(p.by, p.bx): p.render for p in context.plans})

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        """(h, w, 3) uint8, as ``source.read`` would give it.

        Raises:
            SlideError: pixels that are not kept cannot be read.
        """
        grid = self._source.grid
        region = Region(y, x, h, w)
        centre = ((y + h // 2) // grid.tile, (x + w // 2) // grid.tile)
        whole = self._kept(centre)
        if whole is None:  # its neighbours' would save little
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
        """(h, w, 3) of a tile, mapped from its block's file."""
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
        """Row of each tile that is there in the file of a block."""
        path, tiles = self._ledger.pixels(block), self._tiles.get(block, ())
        if not tiles or not path.exists():
            return None
        present = np.fromfile(path, np.uint8, offset=pixels_bytes(self._source.grid, len(tiles)))
        return {tile: i for i, tile in enumerate(tiles) if present[i]}
