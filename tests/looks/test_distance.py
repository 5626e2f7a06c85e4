"""Colour distances and the structures they are taken over."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu

from wsi_pgdips.looks.distance import (
    distances,
    has_dab,
    lab,
    otsu,
    structures,
    wasserstein,
)
from wsi_pgdips.optics.density import od_to_rgb
from wsi_pgdips.optics.stains import load_stains

RNG = np.random.default_rng(0)


def test_cielab_is_scikit_image_s():
    rgb = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert np.allclose(np.moveaxis(lab(rgb), 0, -1), rgb2lab(rgb), atol=1e-9)


def test_otsu_is_scikit_image_s():
    values = np.concatenate([RNG.normal(0, 1, 900), RNG.normal(6, 1, 300)])
    assert otsu(values) == pytest.approx(threshold_otsu(values))
    assert otsu(np.zeros(0)) == np.inf


def test_wasserstein_is_scipy_s():
    a, b = RNG.normal(0, 1, (3, 20000)), RNG.normal(0.7, 2, (3, 30000))
    exact = np.mean([wasserstein_distance(x, y) for x, y in zip(a, b, strict=True)])
    assert wasserstein(a, b) == pytest.approx(exact, rel=0.01)
    assert wasserstein(a, a) == 0


def test_structures_are_found_and_compared_with_their_like():
    stains = load_stains("hdab")
    assert has_dab(stains.stain_matrix)
    assert not has_dab(load_stains("he").stain_matrix)
    q = np.zeros((2, 120, 120), np.float32)
    q[:] = np.array([0.08, 0.03])[:, None, None]  # stroma
    q[0, 20:50, 20:100] = 0.7  # nuclei
    q[1, 70:100, 20:100] = 1.0  # DAB
    od = np.einsum("nhw,nc->chw", q, stains.stain_matrix).astype(np.float32)
    tissue = np.ones((120, 120), bool)
    masks = structures(od, tissue, np.zeros(3, np.float32), stains.stain_matrix)
    assert list(masks) == ["whole", "DAB", "nuclei", "stroma"]
    assert masks["nuclei"][25:45, 25:95].all()
    assert masks["DAB"][75:95, 25:95].all()
    assert not (masks["nuclei"] & masks["DAB"]).any()
    rgb = od_to_rgb(od).transpose(1, 2, 0)
    darker = od_to_rgb(od * 1.5).transpose(1, 2, 0)
    found = distances(rgb, darker, masks, masks)
    assert found["DAB"]["od"] > found["nuclei"]["od"] > found["stroma"]["od"] > 0
    same = distances(rgb, rgb, masks, masks)
    assert {v for row in same.values() for v in row.values()} == {0.0}
    few = {"whole": np.zeros_like(tissue)}
    assert distances(rgb, rgb, few, few) == {}
