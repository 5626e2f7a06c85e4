"""Optical density and the forward model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsi_pgdips.optics.physics import (
    I0,
    OD_MAX,
    angle_deg,
    compose_od,
    od_to_rgb,
    rgb_to_od,
    unit_rows,
)

ALL_VALUES = np.arange(256, dtype=np.uint8)


def test_table_is_beer_lambert():
    od = rgb_to_od(ALL_VALUES)
    assert od.dtype == np.float32
    np.testing.assert_allclose(od[1:], -np.log10(np.arange(1, 256) / I0), atol=1e-6)
    assert od[255] == 0
    assert od[0] == pytest.approx(-np.log10(0.5 / 255), rel=1e-6)
    assert od[0] == np.float32(OD_MAX)
    assert (np.diff(od) < 0).all()


def test_every_value_round_trips():
    np.testing.assert_array_equal(od_to_rgb(rgb_to_od(ALL_VALUES)), ALL_VALUES)


@pytest.mark.parametrize("error", [-8e-4, 8e-4])
def test_every_value_survives_a_small_error_of_od(error):
    np.testing.assert_array_equal(od_to_rgb(rgb_to_od(ALL_VALUES) + error), ALL_VALUES)


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)))
def test_round_trip_keeps_shape_and_values(rgb):
    od = rgb_to_od(rgb)
    assert od.shape == rgb.shape
    np.testing.assert_array_equal(od_to_rgb(od), rgb)


def test_od_outside_the_range_is_clipped():
    assert od_to_rgb(np.array([-1.0, 9.0])).tolist() == [255, 0]


def test_only_bytes_are_taken():
    with pytest.raises(TypeError, match="uint8"):
        rgb_to_od(np.zeros((2, 2, 3)))  # type: ignore[arg-type]


finite = st.floats(0, 2, width=32)


@given(
    q=hnp.arrays(np.float32, (2, 3, 4), elements=finite),
    s=hnp.arrays(np.float32, (2, 3), elements=finite),
    b=hnp.arrays(np.float32, (3,), elements=finite),
)
def test_compose_is_the_sum_and_fields_equal_constants(q, s, b):
    od = compose_od(q, s, b)
    assert od.shape == (3, 3, 4)
    assert od.dtype == np.float32
    expected = b + q[0, 1, 2] * s[0] + q[1, 1, 2] * s[1]
    np.testing.assert_allclose(od[:, 1, 2], expected, rtol=1e-5, atol=1e-5)
    fields = compose_od(
        q,
        np.broadcast_to(s[:, :, None, None], (2, 3, 3, 4)),
        np.broadcast_to(b[:, None, None], (3, 3, 4)),
    )
    np.testing.assert_allclose(fields, od, rtol=1e-5, atol=1e-5)


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(0.01, 5)))
def test_unit_rows_are_unit_and_keep_direction(rows):
    unit = unit_rows(rows)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert (angle_deg(unit, rows) < 0.05).all()


def test_unit_rows_keep_a_zero_row_zero():
    assert unit_rows([[0, 0, 0], [0, 2, 0]]).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_angle_of_known_vectors():
    angles = angle_deg([[1, 0, 0], [1, 1, 0], [1, 0, 0]], [[0, 1, 0], [1, 0, 0], [7, 0, 0]])
    np.testing.assert_allclose(angles, [90, 45, 0], atol=1e-6)
