"""A few tiles that stand for a whole slide."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wsi_pgdips.records import BlockFit, ByteArray, Pixels
    from wsi_pgdips.stages.context import Context
    from wsi_pgdips.tiles.blocks import BlockPlan

RUNS, LEAST_RUN = 4, 6  # of neighbouring tiles, since what is decoded for one serves the next
ALIKE = 3  # tiles of the sample that stand for one outside it, in turn
GLASS_SHARE = 0.1  # bytes of a pixel of glass, in those of one of tissue

TileIndex = tuple[int, int]


def sample_tiles(plans: Sequence[BlockPlan], run: int) -> list[TileIndex]:
    """``RUNS`` runs of so many tiles each, in the order of work, spread evenly over it."""
    tiles = [t for p in plans for t in p.render]
    if len(tiles) <= RUNS * run:
        return tiles
    stops = np.cumsum([len(p.render) for p in plans])
    chosen = set[int]()
    for k in range(RUNS):
        middle = int((k + 0.5) / RUNS * len(tiles))
        block = int(np.searchsorted(stops, middle, side="right"))
        stop = int(stops[block])
        first = stop - len(plans[block].render)
        start = max(min(middle - run // 2, stop - run), first)
        chosen.update(range(start, min(start + run, stop)))
    return [tiles[i] for i in sorted(chosen)]


def pixel_inside(context: Context, tile: TileIndex) -> tuple[int, int]:
    """A pixel of the overview for which a tile is planned: of those, the nearest to its middle."""
    r, scale = context.grid.tile_region(*tile), context.tissue.scale
    rows = slice(int(r.y / scale), math.ceil(r.stop_y / scale))
    columns = slice(int(r.x / scale), math.ceil(r.stop_x / scale))
    ys, xs = np.nonzero(context.planned[rows, columns])
    off_y = ys + rows.start + 0.5 - (r.y + r.h / 2) / scale
    off_x = xs + columns.start + 0.5 - (r.x + r.w / 2) / scale
    best = int(np.argmin(off_y**2 + off_x**2))
    return rows.start + int(ys[best]), columns.start + int(xs[best])


class StandIns:
    """Pixels of any tile: those of one of the sample, in turn."""

    def __init__(self, pixels: Pixels, sampled: Context) -> None:
        self._pixels, self._grid = pixels, sampled.grid
        self._tiles = [t for p in sampled.plans for t in p.render]

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        """(h, w, 3) uint8 of a window within a tile."""
        side = self._grid.tile
        (ty, y), (tx, x) = divmod(y, side), divmod(x, side)
        own = self._tiles[(ty * self._grid.tile_grid[1] + tx) % len(self._tiles)]
        return self._pixels.read(own[0] * side + y, own[1] * side + x, h, w)


def rich_tiles(context: Context, count: int) -> BlockPlan:
    """The tiles with most tissue, that first, of the block with most tiles."""
    plan = max(context.plans, key=lambda p: len(p.fit))
    shares = dict(zip(plan.render, plan.fraction, strict=True))
    tiles = tuple(sorted(plan.render, key=lambda t: -shares[t])[:count])
    fit = tuple(t for t in tiles if t in plan.fit)
    return replace(plan, render=tiles, fit=fit, fraction=tuple(shares[t] for t in tiles))


def block_keys(context: Context) -> list[tuple[int, int]]:
    return [(p.by, p.bx) for p in context.plans]


def rounds_of(context: Context, kind: str, once: int) -> list[int]:
    """Of each block, how often so many of its tiles are begun at once."""
    return [-(-len(getattr(p, kind)) // once) for p in context.plans]


def tiles_to_fit(context: Context) -> int:
    return sum(len(p.fit) for p in context.plans)


def block_area(context: Context, plan: BlockPlan) -> int:
    """Pixels of a block."""
    region = context.grid.block_region(plan.by, plan.bx)
    return region.h * region.w


def tissue_mass(context: Context, *plans: BlockPlan) -> float:
    """What the bytes of planned tiles go with: tissue, and a little of every pixel."""
    total = 0.0
    for plan in plans or context.plans:
        for tile, share in zip(plan.render, plan.fraction, strict=True):
            region = context.grid.tile_region(*tile)
            total += region.h * region.w * (share + GLASS_SHARE)
    return total


def spread_fits(fits: Sequence[BlockFit], context: Context) -> BlockFit:
    """Fits of all planned tiles: one outside the sample has those of one with as much tissue."""
    own = {(int(y), int(x)): i for i, (y, x) in enumerate(t for f in fits for t in f.index)}
    seen = np.concatenate([f.tissue for f in fits])
    planned = [pair for p in context.plans for pair in zip(p.render, p.fraction, strict=True)]
    rows = []
    for k, (tile, share) in enumerate(planned):
        like = np.argsort(np.abs(seen - share), kind="stable")[:ALIKE]
        rows.append(own.get(tile, int(like[k % len(like)])))

    def joined(parts: Iterable[Any]) -> Any:
        return np.concatenate(list(parts))[rows]

    apart = ("index", "statistics", "concentration")
    names = [f.name for f in dataclasses.fields(fits[0]) if f.name not in apart]
    statistics = {k: joined(f.statistics[k] for f in fits) for k in fits[0].statistics}
    plain = {name: joined(getattr(f, name) for f in fits) for name in names}
    return replace(
        fits[0],
        index=np.array([tile for tile, _ in planned], np.int32),
        statistics=statistics,
        **plain,
    )
