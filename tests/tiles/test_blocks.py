from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.tiles.blocks import plan_blocks
from wsi_pgdips.tiles.tissue import TissueMap


def scattered(shape: tuple[int, int], points: list[tuple[float, float]], scale: float) -> TissueMap:
    size = -(-shape[0] // int(scale)), -(-shape[1] // int(scale))
    core = np.zeros(size, bool)
    for y, x in points:
        core[int(y * (size[0] - 1)), int(x * (size[1] - 1))] = True
    mask = core.copy()
    mask[1:] |= core[:-1]
    mask[:, 1:] |= core[:, :-1]
    return TissueMap(mask, core, ~mask, np.zeros((*size, 3), np.float32), scale, shape)


unit = st.floats(0, 1)


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.lists(st.tuples(unit, unit), max_size=8),
    st.sampled_from([(256, 1024), (512, 1024), (1024, 2048)]),
    st.sampled_from([0.0, 0.001, 0.05, 1.0]),
)
def test_every_tile_touching_the_mask_is_planned_exactly_once(shape, points, sides, least):
    grid = OutputGrid(shape, 1.0, 0.5, *sides)
    tissue = scattered(shape, points, 16.0)
    plans = plan_blocks(grid, tissue, least)
    planned = [t for plan in plans for t in plan.render]
    touching = {
        (ty, tx)
        for ty in range(grid.tile_grid[0])
        for tx in range(grid.tile_grid[1])
        if tissue.window((r := grid.tile_region(ty, tx)).y, r.x, r.h, r.w).any()
    }
    assert len(planned) == len(set(planned))
    assert set(planned) == touching
    for plan in plans:
        owned = set(grid.tiles_of_block(plan.by, plan.bx))
        assert plan.render
        assert set(plan.render) <= owned
        for tile, fraction in zip(plan.render, plan.fraction, strict=True):
            assert (tile in plan.fit) == (fraction > 0 and fraction >= least)
            assert fraction == tissue.fraction(grid.tile_region(*tile))
    blocks = [(plan.by, plan.bx) for plan in plans]
    assert blocks == sorted(set(blocks))  # raster order


def test_a_tile_reached_by_dilation_alone_is_rendered_but_never_fitted():
    grid = OutputGrid((512, 512), 1.0, 0.5, 256, 1024)
    core = np.zeros((32, 32), bool)
    core[:, :16] = True
    mask = core.copy()
    mask[:, 16] = True
    tissue = TissueMap(mask, core, ~mask, np.zeros((32, 32, 3), np.float32), 16.0, (512, 512))
    (plan,) = plan_blocks(grid, tissue, 0.0)
    assert plan.render == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert plan.fit == ((0, 0), (1, 0))
    assert plan.fraction == (1.0, 0.0, 1.0, 0.0)
