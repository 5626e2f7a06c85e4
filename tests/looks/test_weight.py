"""Weights of tissue: ramps without a step, the same in any window, and none of solid on glass."""

from __future__ import annotations

import numpy as np

from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.looks.weight import (
    GLASS_OD,
    RAMP_UM,
    SOLID_OD,
    TissueWeight,
    pixel_weight,
)


def test_weight_of_tissue_is_a_ramp_inside_the_mask_and_the_same_in_any_window():
    mask = np.zeros((60, 80), bool)
    mask[20:50, 30:70] = True
    weight = TissueWeight(
        mask, 16.0, 0.5, np.full(mask.shape, 0.5)
    )  # 8 um a pixel: a ramp of three
    whole = weight.at(PixelGrid((0, 0), (960, 1280), (1, 1))).pixels()[0]
    assert whole[:300].max() == 0
    assert whole[30 * 16 : 40 * 16, 45 * 16 : 55 * 16].min() == 1
    assert np.abs(np.diff(whole, axis=0)).max() <= 0.5 / RAMP_UM * 1.5
    part = weight.at(PixelGrid((300, 450), (200, 150), (1, 1))).pixels()[0]
    assert np.allclose(part, whole[300:500, 450:600], atol=1e-5)
    coarse = weight.at(PixelGrid((75, 112.5), (50, 37), (4, 4))).pixels()[0]
    assert np.allclose(coarse, part[:, :148].reshape(50, 4, 37, 4).mean((1, 3)), atol=0.02)
    everything = TissueWeight(np.ones((4, 4), bool), 16.0, 0.5, np.ones((4, 4)))
    assert (
        everything.at(PixelGrid((0, 0), (64, 64), (1, 1))).pixels().min() == 1
    )  # no margin at ends


def test_gaps_and_the_mask_s_margin_are_tissue_but_not_solid():
    mask = np.zeros((40, 40), bool)
    mask[4:36, 4:36] = True
    amount = np.zeros((40, 40), np.float32)
    amount[8:32, 8:32] = 0.3  # around it four cells of glass, as a mask holds
    amount[18:22, 18:22] = GLASS_OD  # a lumen
    weight = TissueWeight(mask, 16.0, 0.5, amount)
    tissue, solid = weight.at(PixelGrid((0, 0), (640, 640), (1, 1))).pixels()
    assert tissue[20 * 16, 20 * 16] == 1
    assert solid[19 * 16 : 21 * 16, 19 * 16 : 21 * 16].max() == 0
    assert solid[: 7 * 16].max() == 0
    assert solid[12 * 16, 12 * 16] == 1
    assert (solid <= tissue + 1e-6).all()
    for axis in (0, 1):
        assert np.abs(np.diff(solid, axis=axis)).max() <= 1 / 16 + 1e-5  # over a cell, no step
    part = weight.at(PixelGrid((250, 130), (100, 90), (1, 1))).pixels()
    assert np.allclose(part, np.stack([tissue, solid])[:, 250:350, 130:220], atol=1e-5)


def test_half_covered_is_half_solid():
    amount = np.full((9, 9), (GLASS_OD + SOLID_OD) / 2)
    weight = TissueWeight(np.ones((9, 9), bool), 16.0, 0.5, amount)
    tissue, solid = weight.at(PixelGrid((32, 32), (20, 20), (1, 1))).pixels()
    assert tissue.min() == 1
    assert np.allclose(solid, 0.5, atol=1e-6)


def test_weights_of_a_picture_are_those_of_its_cells():
    rng = np.random.default_rng(0)
    q = rng.uniform(0, 0.1, (2, 70, 50)).astype(np.float32)
    q[:, :16, :16] = np.nan  # not measured: glass
    weight = TissueWeight.of_picture(np.ones((70, 50), bool), q, 0.5)
    assert weight.mask.shape == weight.amount.shape == (5, 4)
    assert weight.amount[0, 0] == 0
    assert np.isclose(weight.amount[4, 3], q[:, 64:, 48:].sum(0).mean(), atol=1e-6)
    assert np.isclose(weight.amount[2, 1], q[:, 32:48, 16:32].sum(0).mean(), atol=1e-6)


def test_of_pixels_alone_the_weight_is_a_function_of_each():
    amount = np.linspace(0, 2 * SOLID_OD, 60).reshape(6, 10)
    tissue, solid = pixel_weight(amount).pixels()
    assert tissue.min() == 1
    assert (solid[amount <= GLASS_OD] == 0).all()
    assert (solid[amount >= SOLID_OD] == 1).all()
    assert (np.diff(solid.ravel()) >= 0).all()
