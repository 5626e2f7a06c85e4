"""Scores against truths whose error is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.fields import gap_closed
from benchmarks.quality.scoring import Truth


@pytest.fixture
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Three stains that have something to do with each other, and tissue with a hole."""
    rng = np.random.default_rng(4)
    q = rng.gamma(1.0, 0.3, (3, 80, 96)).astype(np.float32)
    q[1] += 0.5 * q[0]
    tissue = np.ones((80, 96), bool)
    tissue[20:30, 40:70] = False
    return q, tissue


def test_a_planted_leak_is_found_where_it_is(truth):
    q, tissue = truth
    maps = q.copy()
    maps[1] += 0.2 * q[0] - 0.1 * q[2] + 0.05 * q[1] + 0.03
    maps[:, ~tissue] = 9.0  # of no one's concern
    found = Truth(q, tissue).error(maps)
    np.testing.assert_allclose(found.crosstalk, [0, 0.2, 0], atol=1e-4)
    leak = (maps[1] - q[1])[tissue]
    np.testing.assert_allclose(found.rmse[1], np.sqrt((leak**2).mean()), rtol=1e-4)
    assert found.joint == pytest.approx(found.rmse[1] / 3**0.5)


def test_one_stain_has_no_crosstalk(truth):
    q, tissue = truth
    found = Truth(q[:1], tissue).error(q[:1] + 0.1)
    assert np.isnan(found.crosstalk).all()
    np.testing.assert_allclose(found.joint, 0.1, rtol=1e-4)


def test_the_gap_is_a_share_of_what_can_be_gained():
    assert gap_closed(0.05, 0.03, 0.03) == 1
    assert gap_closed(0.05, 0.04, 0.03) == pytest.approx(0.5)
    assert gap_closed(0.05, 0.06, 0.03) == pytest.approx(-0.5)
    assert np.isnan(gap_closed(0.03, 0.02, 0.03))
