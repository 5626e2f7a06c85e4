"""Each ablation takes away what it says, and nothing else comes out broken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.quality.ablation import ABLATIONS, ablate
from support.cheap_runs import CHEAP, Slide
from wsi_pgdips.config import make_settings
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.stains import load_stains
from wsi_pgdips.pipeline.image import Deconvolution, Solved, render, solve
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.stages.context import Context, make_context

CPU, THREADS = torch.device("cpu"), 2
STEPS = {k: v for k, v in CHEAP.items() if k.startswith("calibration")}
# no network: what it is worth is not asked here, and each tile alone would train one
SETTINGS = make_settings({"preset": "fast", "mpp": "native", "block": 1024, **STEPS}).science


@pytest.fixture(scope="module")
def context(slide: Slide) -> Context:
    stains = load_stains(slide.stains)
    return make_context(open_source(slide.path, mpp="native", block=1024), stains, SETTINGS)


@pytest.fixture(scope="module")
def solved(context: Context) -> Solved:
    return solve(context, CPU, THREADS)


@pytest.fixture(scope="module")
def ablated(context: Context) -> dict[str, Deconvolution]:
    return {
        name: ablate(name, context.source, context.stains, SETTINGS, device=CPU, threads=THREADS)
        for name in ABLATIONS
    }


def test_all_measure_the_same_pixels(solved, ablated):
    whole = np.isfinite(render(solved, CPU, THREADS).concentration)
    for name, done in ablated.items():
        measured = np.isfinite(done.concentration)
        share = (measured & whole).sum() / whole.sum()
        assert share > (0.8 if name == "no-slide-prior" else 0.9999), name
        assert done.concentration[measured].min() >= 0


def test_without_glass_b_is_nothing(ablated):
    assert (ablated["no-glass"].background == 0).all()
    assert (ablated["no-glass"].fields.background == 0).all()
    assert ablated["no-blending"].background.min() > 0


def test_without_the_slides_vectors_there_are_the_librarys(context, ablated):
    rows = ablated["no-stain-prior"].fields.stain_matrix
    np.testing.assert_allclose(
        rows, np.broadcast_to(context.stains.stain_matrix, rows.shape), atol=1e-5
    )
    assert np.abs(ablated["no-glass"].stain_matrix - context.stains.stain_matrix).max() > 0.01


def test_without_blending_each_tile_keeps_its_own(solved, ablated):
    done = ablated["no-blending"]
    raw = solved.fields.raw_stain_matrix
    own = np.isfinite(raw)
    np.testing.assert_array_equal(done.fields.stain_matrix[own], raw[own])
    blended = solved.fields.tile_stain_matrix
    assert np.abs(done.fields.stain_matrix - blended).max() > 1e-3


def test_tiles_alone_do_not_know_of_each_other(context, ablated):
    done = ablated["no-slide-prior"]
    fitted = ~done.fields.inherited
    assert fitted.sum() > 1
    b = done.fields.background[fitted]
    assert np.ptp(b, axis=0).max() > 1e-4


def test_an_unknown_ablation_is_refused(context):
    with pytest.raises(SettingsError, match="no-blending"):
        ablate("nothing", context.source, context.stains, SETTINGS, device=CPU, threads=1)
