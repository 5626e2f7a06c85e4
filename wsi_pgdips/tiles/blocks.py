"""Blocks of tiles: the tiles that are rendered and fitted, and reading them ahead of the solver."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.machine import thread_pool
from wsi_pgdips.records import ByteArray, Pixels
from wsi_pgdips.tiles.tissue_map import TissueMap


@dataclass(frozen=True)
class BlockPlan:
    """The work in one block, with tiles in raster order.

    Attributes:
        by, bx: index of the block.
        render: (ty, tx) of the tiles that touch the dilated mask; each is rendered as a whole.
        fit: the tiles of ``render`` with enough tissue to be fitted.
        fraction: share of undilated tissue of each tile of ``render``, in its order.
    """

    by: int
    bx: int
    render: tuple[tuple[int, int], ...]
    fit: tuple[tuple[int, int], ...]
    fraction: tuple[float, ...]


def plan_blocks(grid: OutputGrid, tissue: TissueMap, min_tissue: float) -> tuple[BlockPlan, ...]:
    """Plan the blocks that hold tissue, in raster order; other blocks are never scheduled.

    Args:
        grid: output grid of the slide.
        tissue: its tissue map.
        min_tissue: least share of tissue in a tile that is fitted, 0 to 1. A tile without tissue of
            its own (only the dilation reaches it) is never fitted.
    """
    plans = []
    for by, bx in grid.blocks():
        if not tissue.touches(grid.block_region(by, bx)):
            continue
        render = tuple(
            t for t in grid.tiles_of_block(by, bx) if tissue.touches(grid.tile_region(*t))
        )
        fraction = tuple(tissue.fraction(grid.tile_region(*t)) for t in render)
        fit = tuple(t for t, f in zip(render, fraction, strict=True) if f > 0 and f >= min_tissue)
        plans.append(BlockPlan(by, bx, render, fit, fraction))
    return tuple(plans)


def stream_tiles(
    source: Pixels, regions: Iterable[Region], *, threads: int, depth: int
) -> Generator[tuple[Region, ByteArray | Exception]]:
    """Read the pixels of many regions ahead, with a pool of threads.

    At most ``depth`` tiles are in progress or waiting at any time, beside the yielded one;
    ``regions`` is consumed only that far. For a tile that cannot be read, its exception is yielded,
    and the stream continues. Closing the iterator early cancels waiting reads and waits for running
    ones, so that the source may be closed right after.

    Args:
        source: thread-safe pixels of the output grid.
        regions: any number of regions to read.
        threads: reading threads, >= 1.
        depth: tiles in progress or waiting, >= 1.

    Yields:
        (region, (h, w, 3) uint8 or the exception), in the order of ``regions``.

    Raises:
        SettingsError: ``threads`` or ``depth`` is below 1.
    """
    for name, value in (("threads", threads), ("depth", depth)):
        if value < 1:
            raise SettingsError(
                f"the tile stream has too few {name}", expected="at least 1", found=value
            )
    return _stream(source, regions, threads, depth)


def _stream(
    source: Pixels, regions: Iterable[Region], threads: int, depth: int
) -> Generator[tuple[Region, ByteArray | Exception]]:
    def read(region: Region) -> ByteArray | Exception:
        try:
            return source.read(region.y, region.x, region.h, region.w)
        except Exception as error:  # the caller decides: one bad tile must not end a slide
            return error

    waiting: deque[tuple[Region, Future[ByteArray | Exception]]] = deque()
    todo = iter(regions)
    with thread_pool(min(threads, depth), "tile-read") as pool:

        def fill() -> None:
            for region in islice(todo, depth - len(waiting)):
                waiting.append((region, pool.submit(read, region)))

        fill()
        while waiting:
            region, future = waiting.popleft()
            pixels = future.result()
            del future  # it would keep the tile alive beyond its use
            fill()  # before the caller works on this tile, not after
            yield region, pixels
            del pixels
