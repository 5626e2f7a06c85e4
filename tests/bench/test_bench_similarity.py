"""Registration, PCC, SSIM and equal sharpness."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.quality import similarity


@pytest.fixture
def scene() -> np.ndarray:
    """(160, 150) blobs with some noise."""
    rng = np.random.default_rng(2)
    blobs = gaussian_filter(rng.standard_normal((160, 150)), 3)
    return (blobs + 0.02 * rng.standard_normal(blobs.shape)).astype(np.float32)


@pytest.mark.parametrize("shift", [(0, 0), (3, -7), (-16, 16)])
def test_a_shift_is_found_and_undone(scene, shift):
    moving = np.roll(scene, shift, (0, 1))
    assert similarity.best_shift(scene, moving) == shift
    a, b = similarity.in_register(scene, moving, shift)
    assert a.shape == (160 - abs(shift[0]), 150 - abs(shift[1]))
    np.testing.assert_array_equal(a, b)


def test_a_gain_within_the_noise_moves_nothing(scene):
    near = gaussian_filter(scene, 20)  # so broad that a pixel is worth nothing
    assert similarity.best_shift(near, np.roll(near, 1, 0)) == (0, 0)


def test_pcc_knows_no_scale_and_a_flat_map_has_none(scene):
    a = similarity.scaled(scene)
    assert similarity.pcc(a, 3 * a + 2) == pytest.approx(1)
    assert similarity.pcc(a, np.corrcoef(a, a)[0, 0] - a) == pytest.approx(-1)
    assert np.isnan(similarity.pcc(a, similarity.scaled(np.ones_like(a))))


def test_the_sharper_map_is_blurred_to_the_softer(scene):
    soft = gaussian_filter(scene, 2.0)
    wanted = similarity.sharpness(similarity.scaled(soft))
    sigma = similarity.equalising_sigma(scene, wanted)
    assert sigma == pytest.approx(2.0, abs=0.05)
    reached = similarity.sharpness(similarity.scaled(similarity.blur(scene, sigma)))
    assert reached == pytest.approx(wanted, rel=0.01)
    assert similarity.equalising_sigma(soft, similarity.sharpness(similarity.scaled(scene))) == 0
