"""Codes and reductions, against slow oracles and by their properties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsi_pgdips.layers import pyramid
from wsi_pgdips.layers.schema import CODE_MAX, SCALE_FACTOR

codes_2d = arrays(
    np.uint16,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 0, 1, 2, 3, 7, 1000, 1001, 65534, 65535]),
)


def oracle_mean(codes: pyramid.CodeArray) -> pyramid.CodeArray:
    """Masked mean pixel by pixel in exact fractions; Python rounds halves to even."""
    h, w = codes.shape
    out = np.zeros(((h + 1) // 2, (w + 1) // 2), np.uint16)
    for i, j in np.ndindex(out.shape):
        known = [int(v) for v in codes[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() if v]
        out[i, j] = round(Fraction(sum(known), len(known))) if known else 0
    return out


@given(codes_2d)
def test_downsample_is_the_exact_masked_mean(codes: pyramid.CodeArray) -> None:
    np.testing.assert_array_equal(pyramid.downsample(codes), oracle_mean(codes))


@given(codes_2d, codes_2d)
def test_channels_are_reduced_apart(a: pyramid.CodeArray, b: pyramid.CodeArray) -> None:
    h, w = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    both = pyramid.downsample(np.stack([a[:h, :w], b[:h, :w]]))
    np.testing.assert_array_equal(both[0], pyramid.downsample(a[:h, :w]))
    np.testing.assert_array_equal(both[1], pyramid.downsample(b[:h, :w]))


@given(st.integers(1, CODE_MAX), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_a_constant_stays_whatever_the_mask(value: int, h: int, w: int, seed: int) -> None:
    measured = np.random.default_rng(seed).random((h, w)) < 0.5
    codes = np.where(measured, value, 0).astype(np.uint16)
    for reduce in (pyramid.downsample, pyramid.downsample_rms):
        assert set(np.unique(reduce(codes))) <= {0, value}
        np.testing.assert_array_equal(
            reduce(codes) > 0, pyramid.downsample_labels(measured.astype(np.uint8)) > 0
        )


def test_repeated_halving_keeps_the_mean() -> None:
    codes = np.random.default_rng(1).integers(1, 2001, (1024, 1024)).astype(np.uint16)
    mean = codes.mean()
    for _ in range(5):
        codes = pyramid.downsample(codes)
    # rounding halves up would add an eighth of a count a level; to even adds none
    assert abs(codes.mean() - mean) < 0.05


@pytest.mark.parametrize("reduce", [pyramid.downsample, pyramid.downsample_rms])
def test_tiled_equals_whole(reduce: object) -> None:
    assert callable(reduce)
    codes = np.random.default_rng(2).integers(0, 900, (101, 77)).astype(np.uint16)
    codes[codes < 200] = 0
    tiled = np.block(
        [[reduce(codes[y : y + 32, x : x + 32]) for x in (0, 32, 64)] for y in (0, 32, 64, 96)]
    )
    np.testing.assert_array_equal(tiled, reduce(codes))


def test_labels_take_the_maximum_at_odd_borders_too() -> None:
    labels = np.zeros((5, 3), np.uint8)
    labels[4, 2] = 1
    np.testing.assert_array_equal(pyramid.downsample_labels(labels), [[0, 0], [0, 0], [0, 1]])


@given(
    arrays(np.float32, (2, 3, 4), elements=st.floats(0.0009765625, 65.5, width=32)),
    arrays(np.bool_, (3, 4)),
)
def test_round_trip_is_within_half_a_count(q: np.ndarray, measured: np.ndarray) -> None:
    q[:, ~measured] = np.nan
    codes = pyramid.encode(q, measured)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes > 0, np.broadcast_to(measured, q.shape))
    back = pyramid.decode(codes)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(back), np.isnan(q))
    # float32 itself resolves 4e-6 at 65 OD
    assert np.all(np.abs(back - q)[:, measured] <= 0.5 * SCALE_FACTOR + 1e-5)


def test_measured_values_are_clipped_into_the_codes() -> None:
    q = np.array([[[0.0, -1.0, 1e-9, 65.535, 80.0, 9.0]]], np.float32)
    measured = np.array([[True, True, True, True, True, False]])
    np.testing.assert_array_equal(pyramid.encode(q, measured), [[[1, 1, 1, CODE_MAX, CODE_MAX, 0]]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_where_measured(bad: float) -> None:
    q = np.array([[[0.5, bad]]], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        pyramid.encode(q, np.array([[True, True]]))
    np.testing.assert_array_equal(pyramid.encode(q, np.array([[True, False]])), [[[500, 0]]])


def test_signed_round_trip() -> None:
    od = np.linspace(-2.7, 2.7, 3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)
    measured = np.ones((8, 8), bool)
    measured[0] = False
    back = pyramid.decode_signed(pyramid.encode_signed(od, measured))
    assert np.isnan(back[:, 0]).all()
    assert np.abs(back - od)[:, 1:].max() <= 0.5 * SCALE_FACTOR + 1e-5
