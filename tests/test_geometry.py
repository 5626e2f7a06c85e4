"""The output grid: tiles and blocks cover every pixel once, levels halve, scales snap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import (
    BLOCK_SIZES,
    CHUNK,
    SNAP_TOLERANCE,
    TILE_SIZES,
    OutputGrid,
    Region,
    choose_factor,
)

small_grids = st.builds(
    OutputGrid,
    shape_l0=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    factor=st.sampled_from([1.0, 2.0, 1.37]),
    mpp=st.just(0.5),
    tile=st.sampled_from(TILE_SIZES),
    block=st.just(1024),
)
grids = st.builds(
    OutputGrid,
    shape_l0=st.tuples(st.integers(1, 200_000), st.integers(1, 200_000)),
    factor=st.floats(1, 8),
    mpp=st.just(0.5),
    tile=st.sampled_from(TILE_SIZES),
    block=st.sampled_from(BLOCK_SIZES),
)


def paint(grid: OutputGrid, regions) -> np.ndarray:
    count = np.zeros(grid.shape, np.int32)
    for r in regions:
        assert r.h > 0
        assert r.w > 0
        count[r.y : r.stop_y, r.x : r.stop_x] += 1
    return count


@settings(max_examples=40)
@given(small_grids)
def test_every_pixel_lies_in_one_tile_and_one_block(grid: OutputGrid):
    gy, gx = grid.tile_grid
    tiles = paint(grid, (grid.tile_region(ty, tx) for ty in range(gy) for tx in range(gx)))
    blocks = paint(grid, (grid.block_region(*b) for b in grid.blocks()))
    assert (tiles == 1).all()
    assert (blocks == 1).all()


@settings(max_examples=40)
@given(small_grids)
def test_tiles_never_straddle_blocks_and_each_has_one_owner(grid: OutputGrid):
    owned = []
    for block in grid.blocks():
        outer = grid.block_region(*block)
        for index in grid.tiles_of_block(*block):
            inner = grid.tile_region(*index)
            assert outer.y <= inner.y < inner.stop_y <= outer.stop_y
            assert outer.x <= inner.x < inner.stop_x <= outer.stop_x
            owned.append(index)
    gy, gx = grid.tile_grid
    assert sorted(owned) == [(ty, tx) for ty in range(gy) for tx in range(gx)]


@given(grids)
def test_levels_end_at_one_chunk_and_blocks_own_the_finest(grid: OutputGrid):
    assert grid.level_shape(0) == grid.shape
    assert max(grid.level_shape(grid.n_levels - 1)) <= CHUNK
    if grid.n_levels > 1:
        assert max(grid.level_shape(grid.n_levels - 2)) > CHUNK
    for level in range(1, grid.n_levels):
        finer, here = grid.level_shape(level - 1), grid.level_shape(level)
        assert all(h == -(-f // 2) for f, h in zip(finer, here, strict=True))
    assert 1 <= grid.owned_levels <= grid.n_levels
    # an owned level's shard is exactly the block, so that no two blocks share a shard
    assert all(grid.shard(k) << k == grid.block for k in range(grid.owned_levels))


@given(grids)
def test_output_pixels_are_backed_by_level_0(grid: OutputGrid):
    for size, size_l0 in zip(grid.shape, grid.shape_l0, strict=True):
        assert size >= 1
        assert size * grid.factor <= size_l0 + 1e-6 * grid.factor or size == 1


@pytest.mark.parametrize(
    ("mpp_l0", "wanted", "factor"),
    [
        (0.5, 0.5, 1.0),
        (0.499, 0.5, 1.0),
        (0.5044, 0.5, 1.0),
        (0.2528, 0.5, 2.0),
        (0.263, 0.5, 2.0),
        (0.25, 1.0, 4.0),
        (0.25, 0.529, 2.0),
        (0.25, 0.60, 2.4),
    ],
)
def test_factor_snaps_within_six_percent(mpp_l0: float, wanted: float, factor: float):
    assert choose_factor(mpp_l0, wanted) == pytest.approx(factor, rel=1e-12)


@given(st.floats(0.1, 1), st.floats(1, 20))
def test_factor_is_an_integer_nearby_or_the_exact_ratio(mpp_l0: float, times: float):
    ratio = mpp_l0 * times / mpp_l0
    factor = choose_factor(mpp_l0, mpp_l0 * times)
    nearest = round(ratio)
    snapped = abs(ratio / nearest - 1) <= SNAP_TOLERANCE
    assert factor == (nearest if snapped else ratio)
    assert abs(factor / ratio - 1) < 0.065


@given(st.floats(0.1, 1), st.floats(0.05, 0.93))
def test_upsampling_is_refused(mpp_l0: float, share: float):
    with pytest.raises(SlideError, match="upsampling"):
        choose_factor(mpp_l0, mpp_l0 * share)


@pytest.mark.parametrize("change", [{"tile": 500}, {"block": 512}])
def test_odd_sizes_are_refused_with_the_allowed_ones(change: dict[str, int]):
    with pytest.raises(SettingsError, match="expected: one of"):
        OutputGrid((100, 100), 1.0, 0.5, **change)


regions = st.builds(
    Region, st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 60), st.integers(0, 60)
)


@given(regions, st.integers(1, 60), st.integers(1, 60))
def test_clipping_keeps_exactly_the_pixels_inside(region: Region, h: int, w: int):
    part = region.clipped((h, w))
    inside_y = set(range(h)) & set(range(region.y, region.stop_y))
    inside_x = set(range(w)) & set(range(region.x, region.stop_x))
    assert set(range(part.y, part.stop_y)) == inside_y
    assert set(range(part.x, part.stop_x)) == inside_x
    assert part.h >= 0
    assert part.w >= 0


@given(regions, st.integers(0, 20))
def test_growing_adds_the_halo_on_every_side(region: Region, halo: int):
    grown = region.grown(halo)
    assert (grown.y, grown.x) == (region.y - halo, region.x - halo)
    assert (grown.stop_y, grown.stop_x) == (region.stop_y + halo, region.stop_x + halo)
