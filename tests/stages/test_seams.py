"""The seam step: zero without a seam, the seam's height with one, blind to texture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.seam_steps import border_segments, seam_steps
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.stages.seams import border_step, seam_summary

GRID = OutputGrid(shape_l0=(2048 + 100, 1536), factor=1, mpp=0.5, tile=512, block=1024)


def everywhere(region: Region) -> np.ndarray:
    return np.ones((region.h, region.w), bool)


def cut(image: np.ndarray):
    """Region -> its part of a (N, H, W) image."""
    return lambda r: image[:, r.y : r.stop_y, r.x : r.stop_x]


def ramp(shape: tuple[int, int], n: int = 2) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return np.stack([(k + 1) * (1e-4 * y - 2e-4 * x) for k in range(n)])


def test_segments_are_the_borders_between_tiles():
    segments = list(border_segments(GRID))
    assert GRID.tile_grid == (5, 3)
    assert sum(s.vertical for s in segments) == 5 * 2
    assert sum(not s.vertical for s in segments) == 4 * 3
    for s in segments:
        r = s.region
        assert r == r.clipped(GRID.shape)
        length = r.h if s.vertical else r.w
        assert (r.w if s.vertical else r.h) == 4
        assert length in (512, 100)
        across = (r.x if s.vertical else r.y) + 2
        assert across % 512 == 0
        assert s.between_blocks == (across % 1024 == 0)


def test_a_tile_of_one_pixel_has_no_border():
    grid = OutputGrid(shape_l0=(512, 1025), factor=1, mpp=0.5)
    assert [s.region for s in border_segments(grid)] == [Region(0, 510, 512, 4)]


@given(height=st.floats(-0.1, 0.1), slope=st.floats(-0.01, 0.01), seed=st.integers(0, 99))
def test_step_is_the_jump_beyond_the_slope(height, slope, seed):
    texture = np.random.default_rng(seed).normal(0, 1, (1, 100, 1))
    d = texture + slope * np.arange(4) + height * np.array([0, 0, 1, 1])
    step = border_step(d, np.ones((100, 4), bool))
    np.testing.assert_allclose(step, abs(height), atol=1e-9)


def test_only_pixels_with_four_tissue_columns_count():
    d = np.zeros((1, 128, 4))
    d[0, :64, 2:] = 0.5
    tissue = np.ones((128, 4), bool)
    tissue[:64, 3] = False
    assert border_step(d, tissue)[0] == 0
    assert border_step(d, np.ones((128, 4), bool))[0] == pytest.approx(0.25)


def test_too_little_tissue_says_nothing():
    d = np.zeros((3, 128, 4))
    tissue = np.zeros((128, 4), bool)
    tissue[:63] = True
    assert np.isnan(border_step(d, tissue)).all()
    tissue[63] = True
    assert (border_step(d, tissue) == 0).all()
    d[1, 5, 0] = np.nan  # one pixel not measured: 63 remain
    assert np.isnan(border_step(d, tissue)).all()


def test_many_borders_at_once_are_as_each_by_itself():
    rng = np.random.default_rng(3)
    d = rng.normal(0, 1, (5, 2, 128, 4))
    d[1, 0, 7] = np.nan
    tissue = rng.random((5, 128, 4)) > 0.1
    tissue[3, 60:] = False  # too little
    together = border_step(d, tissue)
    alone = np.stack([border_step(*pair) for pair in zip(d, tissue, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-15)
    assert np.isnan(together).all(1).tolist() == [False, False, False, True, False]


def test_a_smooth_map_has_no_seam_and_a_checkerboard_has_its_height():
    smooth = ramp(GRID.shape)
    steps, _ = seam_steps(GRID, cut(smooth), everywhere)
    assert steps.shape == (22, 2)
    np.testing.assert_allclose(seam_summary(steps), 0, atol=1e-6)
    y, x = np.mgrid[: GRID.shape[0], : GRID.shape[1]] // 512
    tiled = smooth.copy()
    tiled[1] += 0.02 * ((y + x) % 2)
    steps, between = seam_steps(GRID, cut(tiled), everywhere)
    np.testing.assert_allclose(seam_summary(steps), [0, 0.02], atol=1e-6)
    assert between.sum() == 5 + 2 * 3  # x = 1024, and y = 1024 and 2048


def test_borders_without_tissue_are_not_read():
    read: list[Region] = []

    def difference(r: Region) -> np.ndarray:
        read.append(r)
        return np.zeros((1, r.h, r.w))

    def left_tissue(r: Region) -> np.ndarray:
        return np.broadcast_to(np.arange(r.x, r.stop_x) < 512, (r.h, r.w))

    steps, _ = seam_steps(GRID, difference, left_tissue)
    assert len(steps) == len(read) == 4  # the horizontal borders of the first column
    none, between = seam_steps(GRID, difference, lambda r: np.zeros((r.h, r.w), bool))
    assert none.shape == (0, 0)
    assert between.shape == (0,)


def test_summary_is_a_high_percentile_and_null_where_there_is_nothing():
    steps = np.stack([np.arange(101.0), np.full(101, np.nan), np.arange(101.0)], 1)
    np.testing.assert_array_equal(
        seam_summary(steps, np.array([True, True, False])), [99, np.nan, np.nan]
    )
