"""The seam step: how much the fields add to the jump of a map across a tile border (decision 9).

A plain ratio of jumps misleads, because JPEG's own grid lies on tile borders. So the map under test
is d = q - q(S0, B0): the concentrations minus those of the same pixels under the slide's constant
parameters, in which the texture and its coding cancel. A field without seams gives 0.

``render`` keeps d of the pixels along the sides of each tile; the steps are computed from these
strips when all blocks are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.tiles.blocks import BlockPlan

SIDES = ("top", "bottom", "left", "right")
BORDER = 2  # pixel rows or columns kept along each side
MIN_PIXELS = 64
PERCENTILE = 99.0
TileIndex = tuple[int, int]
Block = tuple[int, int]
Arrays = dict[str, npt.NDArray[Any]]
Steps = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strips:
    """d = q - q(S0, B0) along the four sides of one tile, in the order of ``SIDES``.

    A side is ``L`` long, as a whole tile's is; the end of a shorter side is NaN or False.

    Attributes:
        blended: (4, N, L, 2) float32 under the fields, outermost pixel first.
        unblended: the same under the tile's own parameters. tissue: (4, L, 2) bool.
    """

    blended: FloatArray
    unblended: FloatArray
    tissue: BoolArray


def along_sides(a: Tensor) -> Tensor:
    """Return (C, P): the four strips (L, 2) of (C, h, w), outermost pixel first, end to end."""
    strips = (
        a[:, :BORDER].mT,
        a[:, -BORDER:].mT.flip(-1),
        a[:, :, :BORDER],
        a[:, :, -BORDER:].flip(-1),
    )
    return torch.cat([s.reshape(len(a), -1) for s in strips], 1)


def by_side(along: Tensor, size: tuple[int, int], side: int) -> FloatArray:
    """Return (4, C, L, 2), filled up with NaN, from ``along_sides`` of (C, h, w).

    Args:
        size: (h, w). side: L, of a whole tile.
    """
    h, w = size
    rows, columns = min(BORDER, h), min(BORDER, w)
    shapes = ((w, rows), (w, rows), (h, columns), (h, columns))
    out = np.full((len(SIDES), len(along), side, BORDER), np.nan, np.float32)
    ends = np.cumsum([length * depth for length, depth in shapes])[:-1].tolist()
    for own, part, (length, depth) in zip(out, along.tensor_split(ends, 1), shapes, strict=True):
        own[:, :length, :depth] = part.reshape(len(along), length, depth).numpy()
    return out


def pack(strips: dict[TileIndex, Strips]) -> Arrays:
    """Stack the strips of a block's tiles: few large arrays are written faster than hundreds.

    Returns:
        ``tiles`` (T, 2) int32 in raster order, and the arrays of ``Strips`` with T in front.
    """
    tiles = sorted(strips)
    kinds = {"blended": np.float32, "unblended": np.float32, "tissue": np.bool_}
    return {"tiles": np.array(tiles, np.int32).reshape(-1, 2)} | {
        kind: np.array([getattr(strips[t], kind) for t in tiles], dtype)
        for kind, dtype in kinds.items()
    }


@dataclass(frozen=True)
class BlockStrips:
    """The strips of one block as ``pack`` stacks them, and the row of each tile in them."""

    arrays: Arrays
    rows: dict[TileIndex, int]

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        return cls(arrays, {(int(y), int(x)): i for i, (y, x) in enumerate(arrays["tiles"])})

    def side(self, side: str, rows: list[int]) -> Arrays:
        """Return one side of some tiles, by kind: (T, N, L, 2), or (T, L, 2) for tissue."""
        chosen = (rows, SIDES.index(side))
        return {kind: self.arrays[kind][chosen] for kind in ("blended", "unblended", "tissue")}


def seam_figures(
    grid: OutputGrid,
    plans: Sequence[BlockPlan],
    rendered: Sequence[Block],
    strips: Callable[[Block], Arrays],
    present: dict[str, bool],
) -> dict[str, dict[str, float | None]]:
    """Return the seam step of a slide in OD: blended, unblended, and at borders of blocks alone.

    Args:
        plans: of the slide. rendered: the blocks that are done, in raster order.
        strips: returns the packed strips of one of them.
        present: label of each stain -> whether any tile holds it; else its step is None.

    Returns:
        Name of the figure -> label -> OD, None where nothing was measured.
    """
    steps: dict[str, list[Steps]] = {"blended": [], "unblended": []}
    between: list[BoolArray] = []
    done = [p for p in plans if (p.by, p.bx) in set(rendered)]
    for before, after, between_blocks in _borders(grid, done, strips):
        tissue = _across(before["tissue"], after["tissue"])
        for kind, found in steps.items():
            found.append(border_step(_across(before[kind], after[kind]), tissue))
        between.append(between_blocks)
    figures: dict[str, dict[str, float | None]] = {}
    for name, kind, only_blocks in (
        ("seam_step_od", "blended", False),
        ("seam_step_unblended_od", "unblended", False),
        ("seam_step_blocks_od", "blended", True),
    ):
        worst = np.full(len(present), np.nan)
        if between:
            chosen = np.concatenate(between) | (not only_blocks)
            worst = seam_summary(np.concatenate(steps[kind])[chosen])
        figures[name] = {
            label: float(value) if there and np.isfinite(value) else None
            for (label, there), value in zip(present.items(), worst, strict=True)
        }
    return figures


def _borders(
    grid: OutputGrid, plans: Sequence[BlockPlan], strips: Callable[[Block], Arrays]
) -> Iterator[tuple[Arrays, Arrays, BoolArray]]:
    """Yield the strips before and after K borders, and (K,) whether each lies between blocks.

    Args:
        plans: of the blocks that are done.
    """
    per, done = grid.tiles_per_block, {(p.by, p.bx) for p in plans}
    opened: dict[Block, BlockStrips] = {}

    def block_strips(block: Block) -> BlockStrips:
        if block not in opened:
            opened[block] = BlockStrips.of(strips(block))
        return opened[block]

    for plan in plans:
        for passed in [b for b in opened if b[0] < plan.by]:
            del opened[passed]
        here = block_strips((plan.by, plan.bx))
        for (dy, dx), side, other in (((0, 1), "right", "left"), ((1, 0), "bottom", "top")):
            pairs: list[tuple[int, BlockStrips, int]] = []  # row here, block and row there
            for ty, tx in plan.render:
                next_tile = (ty + dy, tx + dx)
                next_block = (next_tile[0] // per, next_tile[1] // per)
                if next_block in done:
                    there = block_strips(next_block)
                    if (ty, tx) in here.rows and next_tile in there.rows:
                        pairs.append((here.rows[ty, tx], there, there.rows[next_tile]))
            if pairs:
                after = [there.side(other, [row]) for _, there, row in pairs]
                yield (
                    here.side(side, [row for row, _, _ in pairs]),
                    {kind: np.concatenate([a[kind] for a in after]) for kind in after[0]},
                    np.array([there is not here for _, there, _ in pairs]),
                )


def _across(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Join two strips, outermost pixel first, to (..., L, 4) across their border."""
    return np.concatenate([before[..., ::-1], after], -1)


def border_step(d: FloatArray, tissue: BoolArray) -> Steps:
    """Return |mean jump across a border - mean jump beside it|, per stain.

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


def seam_summary(steps: Steps, present: BoolArray | None = None) -> Steps:
    """Return the 99th percentile over segments, per stain; 0 without seams.

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
