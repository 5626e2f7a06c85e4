"""Weights of neighbours: they sum to one, leave no step, and ignore how a slide is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pgdips.field.blend import local_mean
from wsi_pgdips.field.cells import neighbourhood_sum
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.optics.interpolate import crossfade, interpolate, interpolation_weights

TILE = 256
GRID = OutputGrid((1100, 1300), 1.0, 0.5, tile=TILE, block=1024)
GY, GX = GRID.tile_grid


@pytest.mark.parametrize(("side", "halo"), [(64, 8), (128, 16), (40, 20), (16, 0)])
def test_crossfades_of_neighbours_sum_to_one(side: int, halo: int) -> None:
    fade = crossfade(side, halo)
    assert fade.shape == (side + 2 * halo,)
    assert fade.dtype == np.float32
    assert fade.min() > 0
    assert fade.max() <= 1
    line = np.zeros(3 * side + 2 * halo)
    for i in range(3):
        line[i * side : i * side + len(fade)] += fade
    np.testing.assert_allclose(line[2 * halo : len(line) - 2 * halo], 1, atol=1e-6)


@given(
    centres=st.integers(1, 7),
    side=st.sampled_from([4, 16, 256]),
    start=st.integers(0, 1800),
    length=st.integers(1, 40),
)
def test_rows_of_interpolation_sum_to_one(centres: int, side: int, start: int, length: int) -> None:
    weights = interpolation_weights(centres, side, start, length)
    assert weights.shape == (length, centres)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_interpolation_reproduces_ramps_between_centres_and_holds_beyond() -> None:
    side, centres = 16, 5
    weights = interpolation_weights(centres, side, 0, centres * side)
    position = (np.arange(centres * side) + 0.5) / side - 0.5
    expected = 3 + 2 * np.clip(position, 0, centres - 1)
    np.testing.assert_allclose(weights @ (3 + 2 * np.arange(centres)), expected, atol=1e-5)


def test_constants_and_ramps_in_two_dimensions() -> None:
    region = Region(0, 0, *GRID.shape)
    ramp = np.add.outer(np.arange(GY), 10.0 * np.arange(GX))
    out = interpolate(np.stack([np.full((GY, GX), 0.7), ramp], -1), GRID, region)
    assert out.shape == (2, *GRID.shape)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0], 0.7, atol=1e-6)
    y = np.clip((np.arange(GRID.shape[0]) + 0.5) / TILE - 0.5, 0, GY - 1)
    x = np.clip((np.arange(GRID.shape[1]) + 0.5) / TILE - 0.5, 0, GX - 1)
    np.testing.assert_allclose(out[1], np.add.outer(y, 10 * x), atol=1e-4)


def test_no_step_at_any_border_of_tiles_or_blocks() -> None:
    field = np.random.default_rng(0).random((GY, GX))
    out = interpolate(field, GRID, Region(0, 0, *GRID.shape))
    # between centres one apart a field of range one moves by at most 1 / tile a pixel
    for axis in (0, 1):
        assert np.abs(np.diff(out, axis=axis)).max() <= 1 / TILE + 1e-6


@settings(max_examples=25)
@given(y=st.integers(0, 1000), x=st.integers(0, 1200), h=st.integers(1, 100), w=st.integers(1, 100))
def test_any_region_equals_its_part_of_the_whole(y: int, x: int, h: int, w: int) -> None:
    field = np.random.default_rng(1).random((GY, GX, 2, 3))
    whole = interpolate(field, GRID, Region(y, 0, h, GRID.shape[1]))
    part = interpolate(field, GRID, Region(y, x, h, w))
    assert part.shape == (2, 3, h, w)
    np.testing.assert_allclose(part, whole[..., x : x + w], atol=1e-6)


def test_tiled_equals_whole() -> None:
    field = np.random.default_rng(2).random((GY, GX, 2))
    whole = interpolate(field, GRID, Region(0, 0, *GRID.shape))
    tiled = np.full_like(whole, np.nan)
    for by, bx in GRID.blocks():
        for tile in GRID.tiles_of_block(by, bx):
            r = GRID.tile_region(*tile)
            tiled[:, r.y : r.stop_y, r.x : r.stop_x] = interpolate(field, GRID, r)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_a_slide_of_one_tile_is_constant() -> None:
    grid = OutputGrid((200, 100), 1.0, 0.5, tile=TILE, block=1024)
    out = interpolate(np.full((1, 1, 3), 0.3), grid, Region(0, 0, 200, 100))
    np.testing.assert_allclose(out, 0.3, atol=1e-7)


@pytest.mark.parametrize("sigma", [0.75, 1.5])
def test_a_lone_tile_keeps_its_own_sum(sigma: float) -> None:
    values = np.zeros((9, 11, 2))
    values[4, 5] = 8.0, -2.0
    out = neighbourhood_sum(values, sigma)
    np.testing.assert_allclose(out[4, 5], values[4, 5], rtol=2e-3)
    step = np.exp(-0.5 / sigma**2)
    np.testing.assert_allclose(out[4, 6], values[4, 5] * step, rtol=2e-3)
    np.testing.assert_allclose(out[3, 6], values[4, 5] * step**2, rtol=2e-3)


def test_neighbourhood_sums_are_linear_and_keep_order() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 6, 5, 4))
    together = neighbourhood_sum(2 * a + b, 1.0)
    np.testing.assert_allclose(together, 2 * neighbourhood_sum(a, 1) + neighbourhood_sum(b, 1))
    flipped = neighbourhood_sum(a[::-1, ::-1], 1.0)[::-1, ::-1]
    np.testing.assert_allclose(flipped, neighbourhood_sum(a, 1.0))


def test_blend_without_any_weight_is_the_fallback() -> None:
    fallback = np.array([0.1, 0.2])
    for values, weight in (
        (np.random.default_rng(0).random((3, 4, 2)), np.zeros((3, 4))),
        (np.full((3, 4, 2), np.nan), np.ones((3, 4))),
    ):
        out = local_mean(values, weight, 1.0, fallback)
        np.testing.assert_array_equal(out, np.broadcast_to(fallback, (3, 4, 2)))


def test_blend_spreads_what_is_known_and_leaves_the_rest_to_the_fallback() -> None:
    values = np.full((1, 30, 1), np.nan)
    values[0, 2] = 5.0
    out = local_mean(values, np.ones((1, 30)), 1.0, np.array([1.0]))[0, :, 0]
    np.testing.assert_allclose(out[:6], 5.0)
    np.testing.assert_array_equal(out[6:], 1.0)


def test_blend_weighs_each_component_by_its_own_confidence() -> None:
    values = np.stack([np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])], -1)
    weight = np.stack([np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])], -1)
    np.testing.assert_allclose(local_mean(values, weight, 1.0, np.zeros(2))[0], [[0, 1], [0, 1]])


@given(seed=st.integers(0, 100))
def test_blend_stays_between_what_it_blends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(5, 6, 2))
    weight = rng.random((5, 6)) * (rng.random((5, 6)) > 0.5)
    out = local_mean(values, weight, 1.0, np.zeros(2))
    assert np.isfinite(out).all()
    assert out.max() <= max(values.max(), 0) + 1e-9
    assert out.min() >= min(values.min(), 0) - 1e-9
