"""Recomposition: the slide with its residual, the model without it, and one stain alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from support.array_slide import pixels_of, psnr
from support.cheap_runs import Slide
from support.looks import TILE, look
from wsi_pgdips.errors import SettingsError, StainError
from wsi_pgdips.export.source import read_rgb
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.recompose import model_od, recompose, residual_od, single_stain
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.looks.transfer import constant_fields
from wsi_pgdips.optics.physics import compose_od, od_to_rgb, rgb_to_od, unit_rows
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
    in_steps = np.rint(residual / STEP) * STEP  # as it is stored
    np.testing.assert_array_equal(recompose(q, ROWS[:n], B, in_steps), rgb)


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


def test_one_stain_from_layers_is_its_vector_on_white(finished: Layers) -> None:
    region = Region(200, 300, 400, 500)
    q = np.nan_to_num(finished.read(region.y, region.x, region.h, region.w))
    rows = np.asarray(finished.provenance["stain_matrix"], np.float32)
    # well inside tissue, where its weight is 1
    inside = np.asarray(finished.tissue()[region.slices].compute())
    inside = binary_erosion(inside, iterations=90)
    assert inside.sum() > 1000
    for k, label in enumerate(finished.stains.labels):
        with NormalizedSlide(None, finished, "self", only=label) as alone:
            got = read_rgb(alone, region)
            assert alone.properties["wsi-pgdips.only"] == label
        expected = od_to_rgb(q[k][..., None] * rows[k])
        assert np.abs(got[inside].astype(int) - expected[inside]).max() <= 1
        assert got[inside].std() > 5


def test_one_stain_of_the_slide_has_its_detail(slide: Slide, finished: Layers) -> None:
    reference = dataclasses.replace(slide_look(finished), background=(0.1, 0.2, 0.3), name="grey")
    with NormalizedSlide(slide.path, finished, reference, only="eosin") as alone:
        got = pixels_of(alone)
    with NormalizedSlide(None, finished, reference, only="EOSIN") as model:
        layered = pixels_of(model)
    assert psnr(got, layered) > 30  # the phantom is at the layers' own resolution
    glass = ~np.asarray(finished.tissue(2).compute())
    far = np.kron(glass, np.ones((4, 4), bool))[: got.shape[0], : got.shape[1]]
    expected = od_to_rgb(np.array([0.1, 0.2, 0.3]))
    assert far.sum() > 100
    assert np.abs(got[far].astype(int) - expected).max() <= 2  # noise of glass is no amount


def test_a_stain_that_is_not_there_is_refused(finished: Layers) -> None:
    with pytest.raises(StainError, match="Hematoxylin or Eosin"):
        NormalizedSlide(None, finished, "self", only="DAB")


def test_a_view_of_one_stain_knows_the_ways_too():
    own = look()
    with pytest.raises(SettingsError, match="unknown method"):
        single_stain(constant_fields(own), own, None, "A", tile=TILE, method="best")
