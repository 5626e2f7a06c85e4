"""Statistics of cells: sums, so that cells may be added; and tiles as the solver sees them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from support.synthetic import GLASS, HDAB, HE, THREE, concentrations, tile_of
from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver.rays import pool_od
from wsi_pgdips.solver.statistics import (
    Q_BINS,
    Q_MAX,
    cell_statistics,
    empty_cell,
    empty_statistics,
    q_histogram,
    tile_statistics,
)
from wsi_pgdips.solver.tile import batch, tile_input


@pytest.mark.parametrize("rows", [HE[:1], HE, THREE])
def test_statistics_are_additive(rows: FloatArray) -> None:
    rng = np.random.default_rng(0)
    count = 48  # too few for a noise of their own, so that all are moved by the noise given
    y = (rng.gamma(2, 0.2, (count, len(rows))) @ rows).astype(np.float32)
    half = rng.random(count) > 0.5
    whole = cell_statistics(y, half, rows, 0.002)
    parts = [
        cell_statistics(y[own], half[own], rows, 0.002) for own in (slice(0, 20), slice(20, None))
    ]
    empty = empty_cell(rows)
    assert set(whole) == set(empty)
    for name, value in whole.items():
        total = parts[0][name] + parts[1][name] + empty[name]
        np.testing.assert_allclose(total, value, atol=1e-9, err_msg=name)
        assert not empty[name].any(), name
    assert int(whole["count"]) == count


def test_sums_are_taken_half_by_half_and_moments_of_all() -> None:
    rng = np.random.default_rng(1)
    y = rng.random((200, 3)).astype(np.float32)
    half = np.arange(200) % 3 == 0
    stats = cell_statistics(y, half, HE, 0.0)
    for i, part in enumerate((y[~half], y[half])):
        np.testing.assert_allclose(stats["sum"][i], part.sum(0), rtol=1e-5)
    np.testing.assert_allclose(stats["moment"], y.T @ y, rtol=1e-5)


def test_q_histogram_counts_every_pixel_once() -> None:
    q = np.array([[0.0, 0.004, 1.0, 99.0], [2.999, -0.1, 0.5, 0.5]], np.float32)
    hist = q_histogram(q)
    assert hist.shape == (2, Q_BINS)
    assert hist.sum(1).tolist() == [4, 4]
    assert hist[0, 0] == 2
    assert hist[0, -1] == 1
    assert hist[1, int(0.5 / Q_MAX * Q_BINS)] == 2


def test_regression_recovers_a_tilt_out_of_the_plane() -> None:
    plane = Plane.of(HDAB)
    tilt = np.array([0.05, -0.03])
    q = np.random.default_rng(2).gamma(2, 0.3, (500, 2))
    y = (q @ (HDAB + tilt[:, None] * plane.normal)).astype(np.float32)
    stats = cell_statistics(y, np.zeros(500, bool), HDAB, 0.0)
    found = np.linalg.solve(stats["plane_qq"], stats["plane_qr"])
    np.testing.assert_allclose(found, tilt, atol=1e-4)


def test_a_tile_is_divided_into_its_cells_without_its_halo() -> None:
    q = concentrations(2, 64, 0)
    whole = tile_of(q, HE, halo=16, noise=0)
    found = tile_statistics(whole, q[:, 16:48, 16:48].reshape(2, -1), HE, 0.002)
    for (y, x), part in zip(np.ndindex(2, 2), product((16, 32), repeat=2), strict=True):
        alone = tile_of(q[:, part[0] : part[0] + 16, part[1] : part[1] + 16], HE, noise=0)
        y_alone, half, _ = pool_od(alone.corrected, alone.own_tissue)
        own = cell_statistics(y_alone, half, HE, 0.002)
        for name in own:
            np.testing.assert_allclose(found[name][y, x], own[name], atol=1e-6, err_msg=name)
    assert found["q_hist"].sum() == 2 * 32 * 32
    nothing = empty_statistics(HE)
    assert {k: v.shape for k, v in nothing.items()} == {k: v.shape for k, v in found.items()}
    assert not any(v.any() for v in nothing.values())


def test_a_tile_at_the_slide_end_is_reflected_and_not_tissue_there() -> None:
    rgb = np.random.default_rng(3).integers(0, 255, (10, 12, 3), dtype=np.uint8)
    tile = tile_input(rgb, np.ones((10, 12), bool), GLASS, margins=(2, 0, 0, 20), halo=2, seed=5)
    assert tile.od.shape == (3, 12, 32)
    assert tile.tissue.sum() == 120
    assert not tile.tissue[:2].any()
    np.testing.assert_array_equal(tile.od[:, 0, :12], tile.od[:, 3, :12])
    assert np.isfinite(tile.od).all()
    assert tile.corrected.shape == (3, 8, 28)
    assert tile.own_tissue.shape == (8, 28)
    np.testing.assert_allclose(tile.corrected[:, 0, 0], tile.od[:, 2, 2] - GLASS, atol=1e-6)


def test_without_a_halo_the_whole_tile_is_its_own() -> None:
    tile = tile_of(concentrations(1, 16, 0), HE[:1])
    assert tile.corrected.shape == (3, 16, 16)
    assert tile.own_tissue.all()


def test_a_batch_stacks_its_tiles() -> None:
    tiles = [tile_of(concentrations(2, 16, s), HE, seed=s) for s in (0, 1)]
    od, valid, background = batch(tiles, torch.device("cpu"))
    assert valid.shape == (2, 1, 16, 16)
    np.testing.assert_array_equal(od[1].numpy(), tiles[1].od)
    assert (valid == 1).all()
    np.testing.assert_allclose(background.numpy(), np.stack([GLASS, GLASS]))
