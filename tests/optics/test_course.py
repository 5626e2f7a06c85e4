"""A course over the slide: followed where it predicts, constant where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_pgdips.optics.course import covariance, follow

NOISE = (0.03, 0.3, 3.0)


def places(count: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 2))


@pytest.mark.parametrize(
    "truth", [lambda p: p[:, 0], lambda p: np.sign(p[:, 1]), lambda p: np.sin(5 * p[:, 0])]
)
def test_a_plane_a_step_and_a_wave_are_followed(truth) -> None:
    rng = np.random.default_rng(1)
    at, to = places(), places(200, 1)
    values = truth(at)[:, None] + rng.normal(0, 0.05, (60, 1))
    found, trust = follow(at, values, np.ones(60), to, noise=NOISE)
    assert trust > 0.8
    assert np.square(found[:, 0] - truth(to)).mean() < 0.3 * np.square(truth(to)).mean()


@pytest.mark.parametrize("seed", range(8))
def test_noise_is_not_followed(seed: int) -> None:
    values = np.random.default_rng(seed + 50).normal(0, 1, (60, 1))
    found, _ = follow(places(), values, np.ones(60), places(200, 1), noise=NOISE)
    assert np.square(found).mean() < 0.25


def test_values_without_a_vote_do_not_count() -> None:
    at = places()
    values = at[:, :1].copy()
    vote = np.ones(60)
    vote[::6], values[::6] = 1e-4, 5.0
    found, trust = follow(at, values, vote, at, noise=NOISE)
    assert trust > 0.8
    assert np.abs(found - at[:, :1])[vote == 1].max() < 0.2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_places_support_nothing(count: int) -> None:
    found, trust = follow(
        places(count), np.ones((count, 2)), np.ones(count), places(5), noise=NOISE
    )
    assert found.shape == (5, 2)
    assert not found.any()
    assert trust == 0


def test_regions_are_held_out_whole() -> None:
    """Values that agree only within a region are predicted by nothing outside it."""
    rng = np.random.default_rng(4)
    at, folds = places(120), np.arange(120) % 6
    at = at * 0.05 + rng.uniform(-0.5, 0.5, (6, 2))[folds]
    values = rng.normal(0, 1, (6, 1))[folds]
    _, alone = follow(at, values, np.ones(120), at, noise=NOISE)
    _, regions = follow(at, values, np.ones(120), at, noise=NOISE, folds=folds)
    assert alone > 0.9
    assert regions < 0.5


def test_covariance_is_symmetric_and_positive() -> None:
    at = places()
    gram = covariance(at, at, 4.0, 0.5)
    np.testing.assert_allclose(gram, gram.T)
    assert np.linalg.eigvalsh(gram).min() > -1e-9
