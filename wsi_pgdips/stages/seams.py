"""The seam step: what the fields add to the jump of a map across a tile border (decision 9).

A plain ratio of jumps misleads, since JPEG's own grid lies on tile borders. So the map
under test is d = q - q(S0, B0): the concentrations less those of the same pixels under the slide's
constant parameters, in which the texture and its coding cancel. A seam-free field gives 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.records import BoolArray, FloatArray

MIN_PIXELS = 64
PERCENTILE = 99.0
Steps = npt.NDArray[np.float64]


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
    """All borders between tiles, left to right and top to bottom within each direction."""
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


def border_step(d: FloatArray, tissue: BoolArray) -> Steps:
    """|mean jump across a border - mean jump beside it|, per stain.

    Args:
        d: (..., N, L, 4) the map's two pixels before a border and the two after it, along its
            length. tissue: (..., L, 4); only pixels whose four columns are all tissue count.

    Returns:
        (..., N) float64 OD; NaN where fewer than 64 pixels count, or a value of theirs is not
        finite for so many that fewer than 64 remain.
    """
    values = np.asarray(d, np.float64)
    good: BoolArray = np.asarray(tissue.all(-1) & np.isfinite(values).all((-1, -3)))  # (..., L)
    enough = good.sum(-1, keepdims=True)
    jumps = np.where(good[..., None, :, None], np.diff(values, axis=-1), 0).sum(-2)
    jump = jumps / np.maximum(enough, 1)[..., None]  # (..., N, 3): before, across, after
    step = np.abs(jump[..., 1] - (jump[..., 0] + jump[..., 2]) / 2)
    return np.asarray(np.where(enough < MIN_PIXELS, np.nan, step))


def seam_steps(
    grid: OutputGrid,
    difference: Callable[[Region], FloatArray],
    tissue: Callable[[Region], BoolArray],
) -> tuple[Steps, BoolArray]:
    """Steps of all segments; a strip of four pixels is in memory at a time.

    Args:
        difference: Region -> (N, h, w) d of these pixels, NaN where not measured.
        tissue: Region -> (h, w); asked first, and a segment with too little is not read.

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


def seam_summary(steps: Steps, present: BoolArray | None = None) -> Steps:
    """99th percentile over segments, per stain; perfect is 0.

    Args:
        steps: (K, N), may hold NaN. present: (N,) False for a stain below presence, or None.

    Returns:
        (N,) float64 OD; NaN for a stain without any segment, or below presence.
    """
    out = np.full(steps.shape[1], np.nan)
    for n in range(steps.shape[1]):
        known = steps[np.isfinite(steps[:, n]), n]
        if len(known) and (present is None or present[n]):
            out[n] = np.percentile(known, PERCENTILE)
    return out
