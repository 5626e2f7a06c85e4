"""Which tiles of which blocks are rendered, and which of those are fitted."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_pgdips.geometry import OutputGrid
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
