"""Recomposition: with its residual it is the slide, without it the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.looks.recompose import model_od, recompose, residual_od
from wsi_pgdips.optics.physics import compose_od, rgb_to_od, unit_rows
from wsi_pgdips.optics.unmix import unmix

ROWS = unit_rows([[0.65, 0.704, 0.286], [0.072, 0.99, 0.105], [0.269, 0.568, 0.778]])
B = np.array([0.03, 0.05, 0.02], np.float32)
STEP = np.float32(1e-3)


def any_pixels(seed: int = 0, side: int = 64) -> np.ndarray:
    """(side, side, 3) uint8, every value from black to white, unlike any mixture of stains."""
    rgb = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    rgb[0, :3] = [[0, 0, 0], [255, 255, 255], [0, 255, 1]]
    return rgb


def od_of(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgb_to_od(rgb).transpose(2, 0, 1))


def stored(od: np.ndarray, rows: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Concentrations as they are read back from a file: in steps of 1e-3, at least one."""
    q = unmix(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (od, rows, background)))
    return np.maximum(np.rint(q.numpy() / STEP), 1) * STEP


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_slide_comes_back_byte_for_byte(n):
    rgb = any_pixels()
    od = od_of(rgb)
    q = stored(od, ROWS[:n], B)
    residual = residual_od(od, q, ROWS[:n], B)
    assert residual.dtype == np.float32
    assert residual.shape == od.shape
    np.testing.assert_array_equal(recompose(q, ROWS[:n], B, residual), rgb)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_residual_in_stored_steps_is_still_lossless(n):
    rgb = any_pixels(1)
    q = stored(od_of(rgb), ROWS[:n], B)
    residual = np.rint(residual_od(od_of(rgb), q, ROWS[:n], B) / STEP) * STEP
    np.testing.assert_array_equal(recompose(q, ROWS[:n], B, residual), rgb)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 3), scale=st.floats(0, 3))
def test_whatever_the_concentrations_the_residual_makes_up_for_them(seed, n, scale):
    rng = np.random.default_rng(seed)
    rgb = any_pixels(seed, 8)
    q = (scale * rng.random((n, 8, 8))).astype(np.float32)
    rows = unit_rows(rng.random((n, 3)) + 0.01)
    residual = residual_od(od_of(rgb), q, rows, B)
    np.testing.assert_array_equal(recompose(q, rows, B, residual), rgb)


def test_fields_per_pixel():
    rgb = any_pixels(2, 16)
    od = od_of(rgb)
    tilt = np.linspace(0, 0.2, 16, dtype=np.float32)
    rows = ROWS[:2, :, None, None] + tilt  # (2, 3, 1, 16)
    rows = np.broadcast_to(rows, (2, 3, 16, 16))
    background = np.broadcast_to(B[:, None, None] + tilt, (3, 16, 16))
    q = stored(od, rows, background)
    residual = residual_od(od, q, rows, background)
    np.testing.assert_array_equal(recompose(q, rows, background, residual), rgb)
    np.testing.assert_array_equal(model_od(q, rows, background), compose_od(q, rows, background))


def test_pixels_that_were_not_measured_come_back_too():
    rgb = any_pixels(3, 8)
    q = np.full((2, 8, 8), np.nan, np.float32)
    residual = residual_od(od_of(rgb), q, ROWS[:2], B)
    assert np.isfinite(residual).all()
    np.testing.assert_array_equal(recompose(q, ROWS[:2], B, residual), rgb)
    # the model alone says glass there
    glass = np.rint(255 * 10.0**-B)
    assert (recompose(q, ROWS[:2], B) == glass).all()


def test_the_model_alone_returns_a_mixture_within_its_quantisation():
    rng = np.random.default_rng(4)
    q = rng.random((2, 16, 16)).astype(np.float32)
    rgb = recompose(q, ROWS[:2], B)
    assert rgb.shape == (16, 16, 3)
    assert rgb.dtype == np.uint8
    expected = 255 * 10.0 ** -compose_od(q, ROWS[:2], B)
    np.testing.assert_allclose(rgb.transpose(2, 0, 1), expected, atol=0.5)
    again = recompose(np.rint(q / STEP) * STEP, ROWS[:2], B)
    # 2.3 * 255 counts per OD, half a step from each stain, and rounding
    assert np.abs(again.astype(int) - rgb).max() <= 2


def test_one_scalar_residual_would_not_do():
    # the reason for three signed channels: their mean loses what colour the rest had
    rgb = any_pixels(5)
    od = od_of(rgb)
    q = stored(od, ROWS[:1], B)
    residual = residual_od(od, q, ROWS[:1], B)
    grey = np.broadcast_to(residual.mean(0), residual.shape)
    assert (recompose(q, ROWS[:1], B, grey) != rgb).mean() > 0.5
