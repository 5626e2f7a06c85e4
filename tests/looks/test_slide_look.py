"""The look of a slide, as it is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from support.cheap_runs import FAST, Slide
from support.looks import vectors
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.slide_look import MEASURES, drift_map, measure_sample, slide_look
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.pipeline.looks import measure_slide_look
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.slide.reader import open_source


def tissue(coarse=2.0, shape=(200, 240)):
    """(3, h, w) OD of two stains in lumps of a size."""
    noise = np.random.default_rng(0).normal(size=(2, *shape))
    q = np.exp(3 * coarse * gaussian_filter(noise, (0, coarse, coarse))) * 0.2
    return np.einsum("nhw,nc->chw", q, np.array(vectors())).astype(np.float32)


WHERE = np.ones((200, 240), bool)


def test_a_scanner_changes_the_colours_of_parts_and_neither_parts_nor_texture() -> None:
    y = tissue()
    scanner = np.array([[0.9, 0.1, 0.0], [0.0, 1.3, 0.1], [0.05, 0.0, 1.1]])
    other = np.einsum("ij,jhw->ihw", scanner, y).astype(np.float32)
    here, there = measure_sample([(y, WHERE)], 1.0), measure_sample([(other, WHERE)], 1.0)
    assert np.shape(here["tissue_od"]) == (MEASURES[0], 3)
    expected = np.array(here["tissue_od"]) @ scanner.T
    np.testing.assert_allclose(there["tissue_od"], expected, rtol=0.02, atol=0.003)
    np.testing.assert_allclose(there["texture"], here["texture"], atol=0.01)
    coarser = measure_sample([(tissue(6.0), WHERE)], 1.0)["texture"]
    assert min(np.subtract(coarser, here["texture"])[:3]) > 0.1


def test_windows_and_glass_make_no_difference_and_too_little_tissue_has_no_look() -> None:
    y = tissue()
    whole = measure_sample([(y, WHERE)], 1.0)
    halves = [(y[:, :, :120], WHERE[:, :120]), (y[:, :, 120:], WHERE[:, 120:])]
    parts = measure_sample([*halves, (np.zeros_like(y), WHERE)], 1.0)
    np.testing.assert_allclose(parts["tissue_od"], whole["tissue_od"], atol=2e-3)
    np.testing.assert_allclose(parts["texture"], whole["texture"], atol=0.03)
    assert measure_sample([(y, np.zeros_like(WHERE))], 1.0) == {"tissue_od": [], "texture": []}
    assert measure_sample([], 1.0) == {"tissue_od": [], "texture": []}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(-0.1, 0.1))
def test_drift_is_taken_off_what_the_stains_make_and_off_nothing_else(q, tilt) -> None:
    here, slide = np.array(vectors(2, tilt)), np.array(vectors())
    d = drift_map(here, slide)
    np.testing.assert_allclose(d @ (q @ here), q @ slide, atol=1e-9)
    normal = np.cross(*here)
    np.testing.assert_allclose(d @ normal, normal, atol=1e-9)


def test_a_run_measures_its_look(finished: Layers):
    own = slide_look(finished)
    assert own.labels == finished.stains.labels
    assert (len(own.tissue_od), len(own.texture)) == MEASURES
    assert own.glass_measured
    assert "name" not in own.sources[0]


def test_layers_of_before_looks_were_measured(slide: Slide, finished: Layers):
    old = open_layers(finished.path)
    measured = old.provenance.pop("look")

    source = open_source(slide.path, mpp=old.grid.mpp, tile=256, block=1024)
    again = slide_look(old, source)
    np.testing.assert_allclose(again.tissue_od, measured["tissue_od"], atol=0.02)
    assert slide_look(old).tissue_od == ()


def test_without_layers_the_look_is_nearly_that_of_a_run(slide: Slide, finished: Layers):
    run = slide_look(finished)
    alone = measure_slide_look(
        slide.path, stains=str(slide.stains), tile=256, block=1024, tissue="none"
    )
    np.testing.assert_allclose(alone.tissue_od, run.tissue_od, atol=0.02)
    np.testing.assert_allclose(alone.texture, run.texture, atol=0.03)
    np.testing.assert_allclose(alone.background, run.background, atol=0.003)
    assert alone.tissue == "none"
    assert alone.foreign == {}


def test_a_slide_without_glass_says_so_with_and_without_layers(slide: Slide, tmp_path: Path):
    y = tissue(3.0, (600, 700)) + np.float32([0.08, 0.1, 0.05])[:, None, None]
    bare = tmp_path / "bare.tiff"
    tifffile.imwrite(bare, np.ascontiguousarray(od_to_rgb(y).transpose(1, 2, 0)), tile=(256, 256))
    options = {**FAST, "stains": str(slide.stains), "mpp_source": 0.5}
    deconvolve_slide(bare, tmp_path / "bare.ome.zarr", **options)
    run = slide_look(open_layers(tmp_path / "bare.ome.zarr"))
    alone = measure_slide_look(bare, **options)
    for found in (run, alone):
        assert not found.glass_measured
    np.testing.assert_allclose(alone.background, run.background, atol=1e-6)
    kept = NormalizedSlide(bare, look=alone, reference="self")
    assert kept.account == ()
    moved = NormalizedSlide(
        bare, tmp_path / "bare.ome.zarr", dataclasses.replace(run, name="other")
    )
    assert "glass is kept" in moved.account[0]
