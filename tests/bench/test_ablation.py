"""Each ablation takes away what it says, and nothing else comes out broken."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.methods import ABLATION, ABLATIONS_ON_PICTURES
from benchmarks.quality.picture import Result
from benchmarks.quality.product import Product
from support.cheap_runs import CHEAP, Slide
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.image import Solved
from wsi_pgdips.slide.reader import open_source

ABLATIONS = (*ABLATIONS_ON_PICTURES, "no-blending", "no-slide-prior")
STEPS = {k: v for k, v in CHEAP.items() if k.startswith("calibration")}


@pytest.fixture(scope="module")
def product(slide: Slide) -> Product:
    """Cheap, and without a network: what it is worth is not asked here."""
    source = open_source(slide.path, mpp="native", block=1024)
    return Product(source, load_stains(slide.stains), preset="fast", **STEPS)


@pytest.fixture(scope="module")
def solved(product: Product) -> Solved:
    return product.balanced


@pytest.fixture(scope="module")
def ablated(product: Product) -> dict[str, Result]:
    return {name: product.result(ABLATION + name) for name in ABLATIONS}


def test_all_measure_the_same_pixels(product, ablated):
    whole = np.isfinite(product.result("balanced").maps)
    for name, done in ablated.items():
        measured = np.isfinite(done.maps)
        share = (measured & whole).sum() / whole.sum()
        # with vectors of its own, a few other pixels are foreign
        assert share > (0.8 if name == "no-slide-prior" else 0.999), name
        assert done.maps[measured].min() >= 0


def test_without_glass_b_is_nothing(ablated):
    assert (ablated["no-glass"].background == 0).all()
    assert ablated["no-blending"].background.min() > 0


def test_without_the_slides_vectors_there_are_the_librarys(solved, ablated):
    library, rows = solved.context.stains.stain_matrix, ablated["no-stain-prior"].stain_matrix
    np.testing.assert_allclose(rows, np.broadcast_to(library, rows.shape), atol=1e-5)
    assert np.abs(ablated["no-glass"].stain_matrix - library).max() > 0.01


def test_without_blending_each_tile_keeps_its_own(solved, ablated):
    rows, raw = ablated["no-blending"].stain_matrix, solved.fields.raw_stain_matrix
    own = np.isfinite(raw)
    np.testing.assert_array_equal(rows[own], raw[own])
    assert np.abs(rows - solved.fields.tile_stain_matrix).max() > 1e-3


def test_tiles_alone_do_not_know_of_each_other(ablated):
    done = ablated["no-slide-prior"]
    fitted = done.background.any(-1)
    assert fitted.sum() > 1
    assert np.ptp(done.background[fitted], axis=0).max() > 1e-4
