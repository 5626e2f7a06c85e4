"""Errors against truth: known answers, and the same whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.phantom.score import (
    background_error,
    concentration_error,
    stain_angles,
    windows_of,
)

SHAPE = (90, 70)


def cut(image: np.ndarray):
    return lambda r: image[..., r.y : r.stop_y, r.x : r.stop_x]


def scene(seed: int = 0):
    rng = np.random.default_rng(seed)
    truth = rng.random((2, *SHAPE)).astype(np.float32)
    tissue = rng.random(SHAPE) < 0.6
    return truth, tissue, rng


@given(side=st.integers(7, 100))
def test_windows_cover_once_and_do_not_change_the_error(side):
    seen = np.zeros(SHAPE, int)
    for r in windows_of(SHAPE, side):
        cut(seen)(r)[...] += 1
    assert (seen == 1).all()
    truth, tissue, rng = scene()
    estimate = truth + rng.normal(0.01, 0.1, truth.shape).astype(np.float32)
    error = concentration_error(cut(estimate), cut(truth), cut(tissue), windows_of(SHAPE, side), 2)
    exact = (estimate.astype(np.float64) - truth)[:, tissue]
    np.testing.assert_allclose(error.rmse, np.sqrt((exact**2).mean(1)), rtol=1e-6)
    np.testing.assert_allclose(error.bias, exact.mean(1), rtol=1e-5)
    assert error.joint == pytest.approx(np.sqrt((exact**2).mean()))
    assert error.pixels == tissue.sum()
    assert error.measured == 1


def test_only_tissue_counts():
    truth, tissue, _ = scene(1)
    estimate = np.where(tissue, truth, 9.0).astype(np.float32)
    error = concentration_error(cut(estimate), cut(truth), cut(tissue), windows_of(SHAPE), 2)
    assert error.joint == 0


def test_pixels_left_out_count_as_zero():
    truth, tissue, _ = scene(2)
    estimate = truth.copy()
    hidden = tissue & (np.arange(SHAPE[1]) < 20)
    estimate[:, hidden] = np.nan
    error = concentration_error(cut(estimate), cut(truth), cut(tissue), windows_of(SHAPE), 2)
    assert error.measured == pytest.approx(1 - hidden.sum() / tissue.sum())
    expected = np.sqrt((truth[:, hidden].astype(np.float64) ** 2).sum(1) / tissue.sum())
    np.testing.assert_allclose(error.rmse, expected)


def test_windows_without_tissue_are_not_read_and_nothing_gives_nan():
    def refuse(region: Region) -> np.ndarray:
        raise AssertionError(region)

    error = concentration_error(
        refuse, refuse, lambda r: np.zeros((r.h, r.w), bool), windows_of(SHAPE), 3
    )
    assert error.pixels == 0
    assert np.isnan([*error.rmse, error.joint, error.measured]).all()


def test_angles_are_weighted_by_tissue():
    truth = np.broadcast_to(np.eye(3)[:2], (1, 3, 2, 3))
    tilt = np.radians([0.0, 10.0, 80.0])
    first = np.stack([np.cos(tilt), np.sin(tilt), 0 * tilt], -1)  # turned towards the second
    estimate = np.stack([first, np.broadcast_to(np.eye(3)[1], first.shape)], 1)[None]
    np.testing.assert_allclose(
        stain_angles(estimate, truth, np.array([[1.0, 3.0, 0.0]])), [7.5, 0], atol=1e-6
    )
    per_stain = np.array([[[1, 0], [0, 0], [0, 0]]])
    np.testing.assert_allclose(stain_angles(estimate, truth, per_stain), [0, np.nan], atol=1e-6)


def test_one_matrix_stands_for_the_whole_slide():
    rng = np.random.default_rng(3)
    rows = unit_rows(rng.random((2, 3)))
    truth = unit_rows(rng.random((4, 5, 2, 3)))
    weight = rng.random((4, 5))
    same = np.broadcast_to(rows, truth.shape)
    np.testing.assert_allclose(stain_angles(rows, truth, weight), stain_angles(same, truth, weight))


def test_tiles_without_tissue_do_not_matter_to_the_background():
    truth = np.zeros((2, 2, 3), np.float32)
    estimate = truth.copy()
    estimate[0, 0] = [0.03, 0, 0]
    estimate[1, 1] = 5
    error = background_error(estimate, truth, np.array([[2.0, 1.0], [0.0, 0.0]]))
    assert error.largest == pytest.approx(0.03)
    assert error.rms == pytest.approx(np.sqrt(2 * 0.03**2 / (3 * 3)))
    constant = background_error(np.full(3, 0.01, np.float32), truth, np.ones((2, 2)))
    assert constant.largest == pytest.approx(0.01)
    assert constant.rms == pytest.approx(0.01)
    nothing = background_error(truth, truth, np.zeros((2, 2)))
    assert np.isnan([nothing.largest, nothing.rms]).all()
