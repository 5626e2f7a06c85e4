"""Which tiles of which blocks are rendered, and which of those are fitted."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.records import ByteArray, Pixels
from wsi_pgdips.tiles.tissue import TissueMap


@dataclass(frozen=True)
class BlockPlan:
    """The work in one block, tiles in raster order.

    Attributes:
        by, bx: index of the block.
        render: (ty, tx) of the tiles that touch the dilated mask; each is rendered whole.
        fit: those of ``render`` with enough tissue to be fitted.
        fraction: share of undilated tissue per tile of ``render``, in its order.
    """

    by: int
    bx: int
    render: tuple[tuple[int, int], ...]
    fit: tuple[tuple[int, int], ...]
    fraction: tuple[float, ...]


def plan_blocks(grid: OutputGrid, tissue: TissueMap, min_tissue: float) -> tuple[BlockPlan, ...]:
    """The blocks that hold tissue, in raster order; the others are never scheduled.

    Args:
        grid: output grid of the slide.
        tissue: its tissue map.
        min_tissue: least share of tissue in a tile that is fitted, 0 to 1; a tile without any
            tissue of its own (reached by the dilation alone) is never fitted.
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


def empty_blocks(grid: OutputGrid, plans: tuple[BlockPlan, ...]) -> tuple[tuple[int, int], ...]:
    """(by, bx) of the blocks without tissue, in raster order, for the ledger."""
    planned = {(plan.by, plan.bx) for plan in plans}
    return tuple(block for block in grid.blocks() if block not in planned)


def stream_tiles(
    source: Pixels, regions: Iterable[Region], *, threads: int, depth: int
) -> Generator[tuple[Region, ByteArray | Exception]]:
    """Pixels of many regions, read ahead by a pool of threads.

    At most ``depth`` tiles are being read or waiting at any time, beside the one handed out;
    ``regions`` is consumed as far. A tile that cannot be read comes as the exception it raised,
    and the stream goes on. Closing the iterator early cancels what has not begun and waits for the
    reads that have, so that the source may be closed right after.

    Args:
        source: thread-safe pixels of the output grid.
        regions: what to read, any number of them.
        threads: reading threads, >= 1.
        depth: tiles in flight or waiting, >= 1.

    Yields:
        (region, (h, w, 3) uint8 or the exception), in the order of ``regions``.

    Raises:
        SettingsError: ``threads`` or ``depth`` below 1.
    """
    for name, value in (("threads", threads), ("depth", depth)):
        if value < 1:
            raise SettingsError(f"{name} of the tile stream", expected="at least 1", found=value)
    return _stream(source, regions, threads, depth)


def _stream(
    source: Pixels, regions: Iterable[Region], threads: int, depth: int
) -> Generator[tuple[Region, ByteArray | Exception]]:
    def read(region: Region) -> ByteArray | Exception:
        try:
            return source.read(region.y, region.x, region.h, region.w)
        except Exception as error:  # the consumer decides: one bad tile must not end a slide
            return error

    waiting: deque[tuple[Region, Future[ByteArray | Exception]]] = deque()
    todo = iter(regions)
    pool = ThreadPoolExecutor(min(threads, depth), thread_name_prefix="tile-read")

    def fill() -> None:
        for region in islice(todo, depth - len(waiting)):
            waiting.append((region, pool.submit(read, region)))

    try:
        fill()
        while waiting:
            region, future = waiting.popleft()
            pixels = future.result()
            del future  # it would keep the tile alive beyond its use
            fill()  # before the consumer works on this tile, not after
            yield region, pixels
            del pixels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
