"""Colour distances and the structures they are taken over."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from wsi_pgdips.looks.distance import (
    colour_distances,
    distances,
    otsu,
    structures,
    wasserstein,
)
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.optics.stain_files import load_stains

RNG = np.random.default_rng(0)


def test_otsu_parts_two_heaps_and_nothing_from_nothing():
    values = np.concatenate([RNG.normal(0, 1, 900), RNG.normal(9, 1, 300)])
    assert 3 < otsu(values) < 6
    assert otsu(np.zeros(0)) == otsu(np.ones(9)) == np.inf


def test_wasserstein_is_scipy_s():
    a, b = RNG.normal(0, 1, 20000), RNG.normal(0.7, 2, 30000)
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b), rel=0.01)
    assert wasserstein(a, a) == 0


def test_distance_of_one_grey_to_another_is_that_of_densities_and_of_lightness():
    a, b = (np.full((600, 3), v, np.uint8) for v in (200, 100))
    od, lab = colour_distances(a, b)
    assert od == pytest.approx(np.log10(2), abs=1e-4)
    assert lab == pytest.approx((80.6 - 42.4) / 3, abs=0.1)  # L of the two; a and b are 0


def test_structures_are_found_and_compared_with_their_like():
    stains = load_stains("hdab")
    q = np.zeros((2, 160, 160), np.float32)
    q[:] = np.array([0.08, 0.03])[:, None, None]  # stroma
    q[0, 20:50, 20:100] = 0.7  # nuclei
    q[1, 70:100, 20:100] = 1.0  # DAB
    q[:, 130:] = 0  # glass
    od = np.einsum("nhw,nc->chw", q, stains.stain_matrix).astype(np.float32)
    inside = np.ones((160, 160), bool)
    masks = structures(od, inside, stains, 0.5)
    assert list(masks) == ["tissue", "DAB", "nuclei", "stroma"]
    assert masks["nuclei"][25:45, 25:95].all()
    assert masks["DAB"][75:95, 25:95].all()
    assert not (masks["nuclei"] & masks["DAB"]).any()
    assert not masks["tissue"][150:].any()
    assert "DAB" not in structures(od, inside, load_stains("he"), 0.5)
    fainter = structures(od / 4, inside, stains, 0.5)  # a scanner of less contrast
    assert (fainter["tissue"] == masks["tissue"]).all()
    assert not structures(od, ~inside, stains, 0.5)["tissue"].any()
    rgb = od_to_rgb(od).transpose(1, 2, 0)
    darker = od_to_rgb(od * 1.5).transpose(1, 2, 0)
    found = distances(rgb, darker, masks, masks)
    assert found["DAB"]["od"] > found["nuclei"]["od"] > found["stroma"]["od"] > 0
    same = distances(rgb, rgb, masks, masks)
    assert {v for row in same.values() for v in row.values()} == {0.0}
    few = {"tissue": np.zeros((160, 160), bool)}
    assert distances(rgb, rgb, few, few) == {}
