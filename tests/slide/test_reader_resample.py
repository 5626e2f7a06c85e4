"""Numerics of the output grid on arrays in memory: levels, means, seams between windows."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.records import ByteArray, TileSource
from wsi_pgdips.slide.colour import on_white
from wsi_pgdips.slide.resample import (
    MAX_SHIFT,
    antialiased,
    area_mean,
    box_mean,
    choose_level,
    describe_levels,
    taps_lvl,
)
from wsi_pgdips.slide.source import ArraySource


def noise(height: int, width: int, seed: int = 0) -> ByteArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(height: int, width: int) -> ByteArray:
    y, x = np.mgrid[:height, :width]
    planes = (
        127 + 100 * np.sin(x / 23) * np.cos(y / 17),
        x * 200 / width,
        255 - y * 200 / height,
    )
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def rounded_mean(rgb: ByteArray, ratio: int) -> ByteArray:
    h, w = rgb.shape[0] // ratio, rgb.shape[1] // ratio
    boxes = rgb[: h * ratio, : w * ratio].reshape(h, ratio, w, ratio, 3)
    return np.floor(boxes.mean(axis=(1, 3), dtype=np.float64) + 0.5 + 1e-9).astype(np.uint8)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5, 7, 8, 16])
def test_box_mean_rounds_to_nearest(ratio: int) -> None:
    rgb = noise(ratio * 20, ratio * 30)
    np.testing.assert_array_equal(box_mean(rgb, ratio), rounded_mean(rgb, ratio))


def test_area_mean_counts_fractions_of_pixels() -> None:
    rgb = np.zeros((4, 2, 3), np.uint8)
    rgb[1], rgb[2] = 100, 200
    spans_y = np.array([[0.5, 2.0], [1.25, 2.5]])
    got = area_mean(rgb, spans_y, np.array([[0.0, 2.0]]))
    assert got[:, 0, 0].tolist() == [round(100 / 1.5), 140]  # (75 + 100) / 1.25


def test_alpha_is_composited_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 128]]], np.uint8)
    expected = [[10, 20, 30], [255, 255, 255], [127, 177, 227]]
    assert on_white(rgba)[0].tolist() == expected


def test_rounded_shapes_are_whole_downsamples() -> None:
    shapes = ((16783, 14486), (4195, 3621), (1048, 905))
    levels = describe_levels(shapes, (True, False, False))
    assert [level.scale for level in levels] == [1, 4, 16]
    assert [level.slack_l0 for level in levels] == [0, 3, 15]


def test_level_of_another_aspect_is_left_out() -> None:
    levels = describe_levels(((4000, 4000), (1000, 1000), (400, 768)), (True,) * 3)
    assert [level.index for level in levels] == [0, 1]


@pytest.mark.parametrize(
    ("factor", "exact", "index"),
    [
        (1, True, 0),
        (3.3, True, 0),
        (4, True, 1),
        (4.002, True, 1),
        (6, True, 0),  # 6/4 is no whole number: a plain mean of level 0 is better
        (8, True, 1),
        (16, True, 2),
        (50, False, 2),
    ],
)
def test_coarsest_level_that_serves(factor: float, exact: bool, index: int) -> None:
    levels = describe_levels(((8000, 4000), (2000, 1000), (500, 250)), (True,) * 3)
    assert choose_level(levels, factor, exact=exact).index == index


def test_level_that_would_misplace_pixels_is_passed_over() -> None:
    levels = describe_levels(((16783, 14486), (4195, 3621)), (True, True))
    assert choose_level(levels, 4).index == 0  # 3 of 4 level-0 pixels are uncertain
    assert choose_level(levels, 16).index == 1
    interpolated = describe_levels(((16783, 14486), (4195, 3621)), (True, False))
    assert choose_level(interpolated, 16).index == 0
    assert choose_level(interpolated, 16, exact=False).index == 1


def test_array_at_its_own_pixels() -> None:
    rgb = noise(100, 80)
    source: TileSource = ArraySource(rgb, mpp=0.5)
    assert source.grid.shape == (100, 80)
    assert source.meta.mpp_l0 == 0.5
    np.testing.assert_array_equal(source.read(0, 0, 100, 80), rgb)
    around = source.read(-3, -2, 110, 90)
    np.testing.assert_array_equal(around[3:103, 2:82], rgb)
    around[3:103, 2:82] = 255
    assert around.min() == 255
    assert source.read(200, 0, 4, 5).min() == 255
    assert source.read(0, 0, 0, 5).shape == (0, 5, 3)


def test_array_checksum_follows_pixels_and_shape() -> None:
    rgb = noise(6, 4)
    other = rgb.copy()
    other[5, 3, 2] ^= 1
    sums = {ArraySource(a, mpp=1).meta.checksum for a in (rgb, other, rgb.reshape(4, 6, 3))}
    assert len(sums) == 3
    assert ArraySource(rgb.copy(), mpp=1).meta.checksum in sums


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_array_that_is_no_rgb_image(array: ByteArray) -> None:
    with pytest.raises(SlideError, match="not an RGB image"):
        ArraySource(array, mpp=0.5)


def test_array_options_are_checked() -> None:
    with pytest.raises(SettingsError, match="--mpp-source"):
        ArraySource(noise(4, 4), mpp=0.001)
    with pytest.raises(SettingsError, match="tile"):
        ArraySource(noise(4, 4), mpp=0.5, tile=500)


@pytest.mark.parametrize(
    ("own", "wanted", "factor", "mpp"),
    [
        (0.2528, 0.5, 2, 0.5056),
        (0.499, 0.5, 1, 0.499),
        (0.5044, 0.5, 1, 0.5044),
        (0.25, 0.33, 1.32, 0.33),
        (0.23, "native", 1, 0.23),
    ],
)
def test_factor_snaps_and_mpp_is_true(own: float, wanted: float, factor: float, mpp: float) -> None:
    grid = ArraySource(noise(40, 40), mpp=own, output_mpp=wanted).grid
    assert grid.factor == pytest.approx(factor)
    assert grid.mpp == pytest.approx(mpp)


windows = st.tuples(
    st.integers(-20, 400), st.integers(-20, 400), st.integers(1, 90), st.integers(1, 90)
)


@given(windows, st.sampled_from([1, 2, 3, 4]) | st.floats(1.07, 3.9))
@example((0, 12, 3, 7), 1.2)
def test_pixels_do_not_depend_on_the_window(
    window: tuple[int, int, int, int], factor: float
) -> None:
    y, x, h, w = window
    source = ArraySource(noise(401, 399), mpp=0.25, output_mpp=0.25 * factor)
    whole = source.read(-20, -20, 520, 520)
    np.testing.assert_array_equal(source.read(y, x, h, w), whole[y + 20 :, x + 20 :][:h, :w])


lengths, ratios = st.integers(1, 150), st.floats(1.0, 14.0)


@given(lengths, lengths, ratios, st.data())
def test_antialiased_window_is_a_part_of_the_whole(
    height: int, width: int, ratio: float, data: st.DataObject
) -> None:
    # a level may end up to MAX_SHIFT before its last output pixel does
    h, w = (max(int(n / ratio + MAX_SHIFT), 1) for n in (height, width))
    rgb = noise(height, width)
    whole = antialiased(rgb, (0, 0), Region(0, 0, h, w), ratio, (height, width))
    y, x = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    part = Region(y, x, data.draw(st.integers(1, h - y)), data.draw(st.integers(1, w - x)))
    y0, y1 = taps_lvl(part.y, part.h, ratio, height)
    x0, x1 = taps_lvl(part.x, part.w, ratio, width)
    got = antialiased(rgb[y0:y1, x0:x1], (y0, x0), part, ratio, (height, width))
    np.testing.assert_array_equal(got, whole[part.slices])


@given(lengths, lengths, ratios, st.integers(0, 255))
@example(150, 150, 1.3, 255)
def test_antialiased_constant_stays_constant(
    height: int, width: int, ratio: float, value: int
) -> None:
    region = Region(0, 0, max(int(height / ratio), 1), max(int(width / ratio), 1))
    rgb = np.full((height, width, 3), value, np.uint8)
    assert np.unique(antialiased(rgb, (0, 0), region, ratio, (height, width))).tolist() == [value]


@given(st.integers(30, 150), st.integers(30, 150), ratios, st.integers(0, 99))
def test_antialiased_is_the_hamming_filter_of_pillow(
    height: int, width: int, ratio: float, seed: int
) -> None:
    h, w = int(height / ratio), int(width / ratio)
    rgb = noise(height, width, seed)
    got = antialiased(rgb, (0, 0), Region(0, 0, h, w), ratio, (height, width))
    box = (0.0, 0.0, min(w * ratio, width), min(h * ratio, height))
    for channel in range(3):
        plane = Image.fromarray(rgb[..., channel].astype(np.float32))
        expected = np.asarray(plane.resize((w, h), Image.Resampling.HAMMING, box=box))
        # half a count of it is the last rounding
        assert np.abs(got[..., channel] - expected).max() < 0.75


@pytest.mark.parametrize("factor", [1.5, 2.2016, 3.3])
def test_centre_of_an_output_pixel(factor: float) -> None:
    x_l0 = np.arange(700)
    rgb = np.repeat(np.repeat((x_l0 / 3).astype(np.float64)[None, :, None], 60, 0), 3, 2)
    source = ArraySource(np.floor(rgb + 0.5).astype(np.uint8), mpp=1, output_mpp=factor)
    width = source.grid.shape[1]
    got = source.read(0, 0, 10, width)[5, :, 0]
    expected = ((np.arange(width) + 0.5) * factor - 0.5) / 3
    assert np.abs(got - expected)[5:-5].max() <= 1


def test_large_reads_are_made_of_chunks_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pgdips.slide.source.CHUNK_LVL", 512)
    rgb = smooth(400, 1400)
    source = ArraySource(rgb, mpp=0.25, output_mpp=0.25 * 1.3)
    h, w = source.grid.shape
    whole = source.read(0, 0, h, w)
    for y in range(0, h, 128):
        for x in range(0, w, 128):
            tile = source.read(y, x, 128, 128)
            part = whole[y : y + 128, x : x + 128]
            np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)


@given(st.integers(30, 200), st.integers(30, 200), st.floats(1, 12), st.sampled_from([1, 2, 3]))
def test_overview_pixel_covers_its_output_pixels(
    height: int, width: int, mpp: float, factor: int
) -> None:
    source = ArraySource(noise(height, width), mpp=1, output_mpp=float(factor))
    view, scale = source.overview(mpp)
    s, shape = int(scale), source.grid.shape
    assert scale == s == max(round(mpp / factor), 1)
    assert view.shape == (-(-shape[0] // s), -(-shape[1] // s), 3)
    output = source.read(0, 0, *shape).astype(float)
    for i, j in ((0, 0), (view.shape[0] - 1, view.shape[1] - 1), (view.shape[0] // 2, 0)):
        part = output[i * s : (i + 1) * s, j * s : (j + 1) * s]
        np.testing.assert_allclose(view[i, j], part.mean(axis=(0, 1)), atol=1.01)


def test_overview_of_another_factor_is_the_mean_of_the_area() -> None:
    source = ArraySource(smooth(1500, 1333), mpp=0.33, output_mpp=0.5)
    view, scale = source.overview(8.0)
    s = int(scale)
    output = source.read(0, 0, *source.grid.shape).astype(float)
    h, w = source.grid.shape[0] // s, source.grid.shape[1] // s
    means = output[: h * s, : w * s].reshape(h, s, w, s, 3).mean(axis=(1, 3))
    assert np.abs(view[:h, :w] - means).max() < 2.5


def test_overview_of_the_finest_grid_is_not_finer() -> None:
    rgb = noise(50, 60)
    view, scale = ArraySource(rgb, mpp=0.5).overview(0.1)
    assert scale == 1
    np.testing.assert_array_equal(view, rgb)


def test_array_source_survives_pickling() -> None:
    source = ArraySource(noise(70, 50), mpp=0.5, output_mpp=1.0)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(0, 0, 35, 25), source.read(0, 0, 35, 25))
    assert again.meta == source.meta
