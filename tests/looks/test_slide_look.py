"""The look of a slide, as it is measured."""

from __future__ import annotations

import numpy as np
import pytest

from support.cheap_runs import Slide
from support.looks import look
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.slide_look import measure_sample, slide_look
from wsi_pgdips.slide.reader import open_source


def test_typical_colours_are_medians_of_a_stain_s_own_pixels():
    rng = np.random.default_rng(0)
    rows = look().stain_matrix
    amounts = np.zeros((2, 9000), np.float32)
    amounts[0, :3000] = rng.uniform(0.4, 0.6, 3000)
    amounts[1, 3000:6000] = rng.uniform(0.7, 0.9, 3000)
    amounts[:, 6000:] = 0.01
    od = np.einsum("np,nc->cp", amounts, rows) + 0.02
    around = amounts.sum(0)
    found = measure_sample(od, amounts, np.full(2, 0.05), around)
    assert np.allclose(found["typical_od"][0], 0.5 * rows[0] + 0.02, atol=0.01)
    assert np.allclose(found["typical_od"][1], 0.8 * rows[1] + 0.02, atol=0.01)
    assert found["percentiles"]["50"] == pytest.approx(np.median(amounts, 1).tolist(), abs=1e-3)
    # twice as much glass, or half as many cells: the same look
    fewer = np.r_[0:1500, 3000:9000]
    again = measure_sample(od[:, fewer], amounts[:, fewer], np.full(2, 0.05), around[fewer])
    assert np.allclose(again["typical_od"], found["typical_od"], atol=0.01)
    absent = measure_sample(od[:, :3000], amounts[:, :3000], np.full(2, 0.05), around[:3000])
    assert absent["typical_od"][1] is None
    nothing = measure_sample(np.zeros((3, 0)), np.zeros((2, 0)), np.full(2, 0.05), np.zeros(0))
    assert nothing["typical_od"] == [None, None]
    assert nothing["palest_od"] is None


def test_what_is_palest_in_tissue_leaves_gaps_out():
    rng = np.random.default_rng(0)
    amounts = np.zeros((2, 9000), np.float32)
    amounts[0, 6000:] = rng.uniform(0.4, 0.6, 3000)
    od = np.einsum("np,nc->cp", amounts, look().stain_matrix)
    od[:, 3000:] += np.array([0.03, 0.02, 0.025])[:, None]  # under all tissue, not under gaps
    around = np.repeat([0.0, 0.2, 0.4], 3000)
    found = measure_sample(od, amounts, np.full(2, 0.05), around)
    assert np.allclose(found["palest_od"], [0.03, 0.02, 0.025], atol=1e-3)


def test_the_spread_off_the_plane_is_of_tissue_and_not_of_its_tails():
    rng = np.random.default_rng(0)
    rows = look().stain_matrix
    amounts = np.zeros((2, 8000), np.float32)
    amounts[0, :4000], amounts[1, 4000:] = 0.5, 0.5
    normal = np.cross(*rows) / np.linalg.norm(np.cross(*rows))
    off = rng.normal(0, 0.02, 8000)
    off[::100] = 1.0  # a pigment
    od = np.einsum("np,nc->cp", amounts, rows) + normal[:, None] * off
    found = measure_sample(od, amounts, np.full(2, 0.05), amounts.sum(0))
    assert found["off_plane_od"] == pytest.approx(0.02, rel=0.1)
    alone = measure_sample(
        od[:, :4000], amounts[:, :4000], np.full(2, 0.05), amounts[:, :4000].sum(0)
    )
    assert alone["off_plane_od"] is None  # one colour has no plane


def test_a_run_measures_its_look(finished: Layers):
    own = slide_look(finished)
    assert own.labels == finished.stains.labels
    assert np.isfinite(own.typical_od).all()
    assert "name" not in own.sources[0]
    assert finished.provenance["look"]["percentiles"]["99"][0] > 0


def test_layers_of_before_looks_were_measured(slide: Slide, finished: Layers):
    old = open_layers(finished.path)
    measured = old.provenance.pop("look")

    source = open_source(slide.path, mpp=old.grid.mpp, tile=256, block=1024)
    again = slide_look(old, source)
    assert np.allclose(again.typical_od, measured["typical_od"], atol=0.02)
    assert np.isnan(slide_look(old).typical_od).all()
