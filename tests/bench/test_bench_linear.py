"""Linear baselines on pixels without noise, where they must be exact."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.picture import Picture, complement, unmix_od
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.optics.physics import angle_deg, compose_od, od_to_rgb, unit_rows
from wsi_pgdips.tiles.tissue_map import TissueMap

GLASS = np.array([0.03, 0.05, 0.02], np.float32)
LIBRARY = unit_rows([[0.65, 0.70, 0.29], [0.27, 0.57, 0.78], [0.07, 0.99, 0.11]])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_complement_inverts_what_the_model_made(n):
    q = np.random.default_rng(n).gamma(1, 0.4, (n, 20, 30)).astype(np.float32)
    od = compose_od(q, LIBRARY[:n], GLASS)
    np.testing.assert_allclose(complement(od, LIBRARY[:n], GLASS), q, atol=1e-5)
    assert complement(od - 1, LIBRARY[:n], GLASS).min() == 0  # cut, not negative


@pytest.fixture(scope="module")
def methods() -> tuple[Picture, np.ndarray]:
    """1024 x 1024 of two stains 5 degrees off the library: pure pixels of each, and mixtures."""
    rng = np.random.default_rng(3)
    side, tile = 1024, 512
    q = rng.gamma(2, 0.15, (2, side, side)).astype(np.float32)
    q[0, : side // 4], q[1, -side // 4 :] = 0, 0
    off = np.array([[0.05, -0.05, 0.02], [-0.05, 0.03, 0.02]])
    true = unit_rows(LIBRARY[:2] + off)
    rgb = od_to_rgb(compose_od(q, true, GLASS).transpose(1, 2, 0))
    everywhere = np.ones((64, 64), bool)
    tissue = TissueMap(
        everywhere, everywhere, ~everywhere, np.zeros((64, 64, 3), np.float32), 16.0, (side, side)
    )
    grid = OutputGrid((side, side), 1.0, 0.5, tile)
    return Picture(rgb, LIBRARY[:2], grid, tissue, GLASS), true


def test_the_slides_own_vectors_are_nearer_than_the_librarys(methods):
    picture, true = methods
    library = angle_deg(LIBRARY[:2], true)
    rays = picture.result("rays-slide")
    assert (angle_deg(rays.stain_matrix, true) < 0.5 * library).all()
    np.testing.assert_array_equal(rays.background, GLASS)
    wanted = unmix_od(picture.od, rays.stain_matrix, GLASS)
    np.testing.assert_array_equal(rays.maps, wanted)


@pytest.mark.parametrize("name", ["fixed", "complement", "macenko-slide", "macenko-tile"])
def test_glass_is_all_that_the_suffix_adds(methods, name):
    plain, given = (methods[0].result(name + end) for end in ("", "-glass"))
    np.testing.assert_array_equal(plain.stain_matrix, given.stain_matrix)
    assert (plain.background == 0).all()
    np.testing.assert_array_equal(given.background, GLASS)
    # glass in the maps is bias
    assert given.maps.sum() < plain.maps.sum()


def test_tiles_have_their_own_vectors(methods):
    picture, _ = methods
    rows = picture.result("macenko-tile").stain_matrix
    assert rows.shape == (2, 2, 2, 3)
    assert angle_deg(rows[0, 0], rows[1, 1]).max() > 0.1
    q = picture.result("macenko-tile-glass").maps[:, :512, 512:]
    wanted = unmix_od(picture.od[:, :512, 512:], rows[0, 1], GLASS)
    np.testing.assert_array_equal(q, wanted)
