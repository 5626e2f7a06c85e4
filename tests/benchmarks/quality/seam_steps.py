"""The seam steps of a map in memory, border by border."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.stages.seams import MIN_PIXELS, Steps, border_step


@dataclass(frozen=True)
class Segment:
    """The border between two neighbouring tiles.

    Attributes:
        region: the two pixels on each side of it, over the length of the tiles.
        vertical: whether the border is a vertical line, so that ``region`` is (L, 4), not (4, L).
        between_blocks: whether the tiles belong to different blocks.
    """

    region: Region
    vertical: bool
    between_blocks: bool


def border_segments(grid: OutputGrid) -> Iterator[Segment]:
    """Yield all borders between tiles, row by row of tiles."""
    gy, gx = grid.tile_grid
    per_block, (height, width) = grid.tiles_per_block, grid.shape
    for ty in range(gy):
        for tx in range(gx):
            tile = grid.tile_region(ty, tx)
            # two pixels on the far side must exist
            if tx > 0 and tile.x + 2 <= width:
                yield Segment(Region(tile.y, tile.x - 2, tile.h, 4), True, tx % per_block == 0)
            if ty > 0 and tile.y + 2 <= height:
                yield Segment(Region(tile.y - 2, tile.x, 4, tile.w), False, ty % per_block == 0)


def seam_steps(
    grid: OutputGrid,
    difference: Callable[[Region], FloatArray],
    tissue: Callable[[Region], BoolArray],
) -> tuple[Steps, BoolArray]:
    """Return the steps of all segments of a map; four pixels of a border are in memory at a time.

    Args:
        difference: returns (N, h, w) d of a region, NaN where not measured.
        tissue: returns (h, w) of a region; called first, so that a segment with too little tissue
            is not read.

    Returns:
        (K, N) steps and (K,) whether the segment lies between blocks, for the K segments that hold
        enough tissue; K may be 0 (then N is 0 too).
    """
    steps, between = [], []
    for segment in border_segments(grid):
        mask = tissue(segment.region)
        mask = mask if segment.vertical else mask.T
        if mask.all(1).sum() < MIN_PIXELS:
            continue
        d = difference(segment.region)
        step = border_step(d if segment.vertical else d.swapaxes(1, 2), mask)
        if np.isfinite(step).all():
            steps.append(step)
            between.append(segment.between_blocks)
    if not steps:
        return np.empty((0, 0)), np.empty(0, bool)
    return np.stack(steps), np.array(between)
