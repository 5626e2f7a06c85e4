"""Stain vectors from synthetic mixtures with pure pixels."""

from __future__ import annotations

import numpy as np
import pytest

from support.synthetic import HDAB, HE, THREE
from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver.rays import (
    MIN_CELLS,
    SATURATED_OD,
    across_noise,
    estimate_rays,
    extreme_rays,
    fitted_plane,
    pool_od,
)


def turned(rows: FloatArray, degrees: float, seed: int = 0) -> FloatArray:
    """Each row turned by so many degrees in a random direction, still absorbing everywhere."""
    rng = np.random.default_rng(seed)
    out = []
    for row in rows.astype(np.float64):
        while True:
            side = rng.normal(size=3)
            side -= (side @ row) * row
            side *= np.tan(np.radians(degrees)) / np.linalg.norm(side)
            if (row + side).min() > 0.02:
                break
        out.append(row + side)
    return unit_rows(np.array(out))


def mixtures(
    rows: FloatArray, count: int, *, noise: float = 0.002, pure: float = 0.15, seed: int = 0
) -> FloatArray:
    """(P, 3) pooled OD: every stain alone in ``pure`` of the pixels, all together in the rest."""
    rng = np.random.default_rng(seed)
    n = len(rows)
    q = rng.gamma(3.0, 0.2, (n, count)) + 0.05
    kind = (rng.random(count) / pure).astype(int)
    for k in range(n):
        others = np.arange(n) != k
        q[np.ix_(others, kind == k)] = 0
    return np.asarray(q.T @ rows + rng.normal(0, noise, (count, 3)), np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("library", "noise", "tolerance"),
    [(HE[:1], 0.002, 0.2), (HE, 0.002, 1.0), (HDAB, 0.002, 1.0), (THREE, 0.01, 3.0)],
)
def test_recovers_stains_that_differ_from_the_library(
    library: FloatArray, noise: float, tolerance: float, seed: int
) -> None:
    truth = turned(library, 6.0, seed)
    rays = estimate_rays(mixtures(truth, 8000, noise=noise, seed=seed), library)
    assert rays.measured == (True,) * len(library)
    error = angle_deg(rays.stain_matrix, truth)
    assert error.max() < tolerance
    np.testing.assert_allclose(np.linalg.norm(rays.stain_matrix, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pure", [0.02, 0.3])
def test_three_stains_without_many_pure_pixels(pure: float, seed: int) -> None:
    """Pairs of stains are common, single stains are not: faces tell what vertices do not."""
    rng = np.random.default_rng(seed)
    truth = turned(THREE, 6.0, seed)
    q = rng.gamma(3.0, 0.2, (3, 20_000))
    missing = rng.integers(0, 3, 20_000)
    q[missing, np.arange(20_000)] = 0
    few = rng.random(20_000) < pure
    q[(missing[few] + 1) % 3, np.nonzero(few)[0]] = 0
    y = q.T @ truth
    y += rng.normal(0, 0.013, y.shape) * np.linalg.norm(y, axis=1, keepdims=True)
    rays = estimate_rays(y.astype(np.float32), THREE)
    assert rays.measured == (True, True, True)
    error = angle_deg(rays.stain_matrix, truth)
    assert error.max() < 3.5
    assert error.mean() < 1.6


def test_tiles_that_drift_do_not_widen_the_cone() -> None:
    """The edges of all tiles together are the outermost of each; the mean is what is asked for."""
    plane, middle = Plane.of(HDAB), Plane.of(HDAB).angles(HDAB)
    parts = [
        mixtures(plane.rays(middle + np.radians(d)), 4000, noise=0.004, seed=i)
        for i, d in enumerate(np.linspace(-6, 6, 9))
    ]
    y, counts = np.concatenate(parts), [len(p) for p in parts]
    together = angle_deg(estimate_rays(y, HDAB).stain_matrix, HDAB)
    apart = angle_deg(estimate_rays(y, HDAB, counts).stain_matrix, HDAB)
    assert (together > 3.0).all()
    assert (apart < 1.0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_stain_that_is_never_pure_moves_to_the_library(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brown always lies over blue: its edge leans in, and few pixels lie near it."""
    rng = np.random.default_rng(seed)
    q = rng.gamma(3.0, 0.2, (2, 20_000))
    q[1] *= rng.random(20_000) < 0.5
    least = np.where(rng.random(20_000) < 0.04, 0.15, rng.uniform(0.6, 1.0, 20_000))
    q[0] = np.maximum(q[0], q[1] * least)
    y = np.asarray(q.T @ HDAB + rng.normal(0, 0.003, (20_000, 3)), np.float32)
    moved = angle_deg(estimate_rays(y, HDAB).stain_matrix, HDAB)
    monkeypatch.setattr("wsi_pgdips.solver.rays.leaned", lambda sides, edges, library: edges)
    monkeypatch.setattr("wsi_pgdips.solver.rays.leaned_tilt", lambda tilt, *rest: tilt)
    edge = angle_deg(estimate_rays(y, HDAB).stain_matrix, HDAB)
    assert moved[0] == pytest.approx(edge[0], abs=0.5)
    assert moved[1] < edge[1] - 2.0


def test_the_plain_estimate_is_a_percentile_of_the_angle() -> None:
    truth = turned(HDAB, 4.0)
    y = mixtures(truth, 20_000)
    assert angle_deg(extreme_rays(y, HDAB), truth).max() < 2.0
    # a stain in fewer pixels than lie outside is missed, and what leaves the gate is the library's
    alone = y[y @ truth[1] < 0.9 * np.linalg.norm(y, axis=1)]
    assert angle_deg(extreme_rays(alone, HDAB)[1], truth[1]) > 5.0
    far = unit_rows(np.array([[0.1, 0.2, 1.0]]))
    np.testing.assert_array_equal(extreme_rays(mixtures(truth[:1], 500), far), far)
    np.testing.assert_array_equal(extreme_rays(y[: MIN_CELLS - 1], HDAB), HDAB)
    three = extreme_rays(mixtures(THREE, 5000, pure=0.3), THREE)
    assert angle_deg(three, THREE).max() < 5.0


def test_one_stain_is_the_direction_of_the_mean() -> None:
    y = mixtures(HE[:1], 500)
    rays = estimate_rays(y, HE[:1])
    np.testing.assert_allclose(rays.stain_matrix[0], unit_rows(y.mean(0)), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_scarce_second_stain_is_found(seed: int) -> None:
    """Half a percent of the pixels, where percentiles of all angles would miss it."""
    rng = np.random.default_rng(seed)
    truth = turned(HDAB, 4.0, seed)
    count = 40_000
    q = np.stack([rng.gamma(3.0, 0.15, count), np.zeros(count)])
    few = rng.random(count) < 0.005
    q[:, few] = np.stack([np.zeros(few.sum()), rng.gamma(3.0, 0.25, few.sum())])
    y = np.asarray(q.T @ truth + rng.normal(0, 0.003, (count, 3)), np.float32)
    rays = estimate_rays(y[y.mean(1) > 0.1], HDAB)
    assert rays.measured == (True, True)
    assert angle_deg(rays.stain_matrix, truth).max() < 3.0


def test_an_absent_second_stain_keeps_the_library() -> None:
    rng = np.random.default_rng(0)
    y = (rng.gamma(3.0, 0.2, (5000, 1)) * HDAB[0] + rng.normal(0, 0.002, (5000, 3))).astype("f4")
    rays = estimate_rays(y, HDAB)
    assert rays.measured == (True, False)
    np.testing.assert_array_equal(rays.stain_matrix[1], HDAB[1])


def test_an_absent_third_stain_keeps_the_library() -> None:
    rays = estimate_rays(mixtures(THREE[:2], 5000, pure=0.3), THREE)
    assert rays.measured == (True, True, False)
    np.testing.assert_array_equal(rays.stain_matrix[2], THREE[2])


@pytest.mark.parametrize("n", [1, 2])
def test_what_leaves_the_gate_falls_back_to_the_library(n: int) -> None:
    """Green ink where a purple stain is expected."""
    ink = unit_rows([0.85, 0.15, 0.5])
    y = (np.random.default_rng(0).gamma(3.0, 0.2, (3000, 1)) * ink).astype(np.float32)
    library = HE[1:] if n == 1 else HE
    rays = estimate_rays(y, library)
    assert not all(rays.measured)
    for k in range(n):
        if not rays.measured[k]:
            np.testing.assert_array_equal(rays.stain_matrix[k], library[k])


@pytest.mark.parametrize("library", [HE[:1], HE, THREE])
@pytest.mark.parametrize("count", [0, 1, MIN_CELLS - 1])
def test_too_few_pixels_say_nothing(library: FloatArray, count: int) -> None:
    rays = estimate_rays(mixtures(turned(library, 5.0), count), library)
    assert rays.measured == (False,) * len(library)
    np.testing.assert_array_equal(rays.stain_matrix, library)


def test_order_of_pixels_does_not_matter() -> None:
    y = mixtures(HE, 3000)
    shuffled = np.random.default_rng(1).permutation(y)
    np.testing.assert_allclose(
        estimate_rays(shuffled, HE).stain_matrix, estimate_rays(y, HE).stain_matrix, atol=1e-4
    )


def test_fitted_plane_is_oriented_like_the_library() -> None:
    truth = turned(HDAB, 5.0)
    plane = fitted_plane(mixtures(truth, 3000), HDAB)
    first, second = plane.angles(truth)
    assert first < 0 < second
    assert np.abs(truth @ plane.normal).max() < 0.01


def test_a_plane_far_from_the_library_is_refused() -> None:
    rng = np.random.default_rng(0)
    elsewhere = rng.gamma(2, 0.3, (1000, 2)) @ np.array([[1.0, 0, 0], [0.5, 0, 0.8]])
    plane = fitted_plane(elsewhere.astype(np.float32), HE)
    np.testing.assert_allclose(plane.e1, Plane.of(HE).e1, atol=1e-6)


def test_across_noise_is_the_scatter_out_of_the_plane() -> None:
    y = mixtures(HDAB, 20_000, noise=0.01)
    y[:50] += 1.0  # a few outliers do not count
    assert across_noise(y, Plane.of(HDAB)) == pytest.approx(0.01, rel=0.05)
    assert across_noise(y[:0], Plane.of(HDAB)) == 0


def test_pooling_takes_the_mean_of_each_cell() -> None:
    od = np.random.default_rng(0).uniform(0.2, 1.0, (3, 10, 13)).astype(np.float32)
    y, half, at = pool_od(od, np.ones((10, 13), bool))
    expected = [
        od[:, i : i + 4, j : j + 4].mean((1, 2)) for i in range(0, 8, 4) for j in range(0, 12, 4)
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert at.T.tolist() == [[i, j] for i in range(2) for j in range(3)]
    assert not half.any()


def test_pooling_leaves_out_invalid_saturated_and_pale_cells() -> None:
    od = np.full((3, 16, 4), 0.5, np.float32)
    valid = np.ones((16, 4), bool)
    valid[1, 2] = False  # cell 0
    od[2, 5, 3] = SATURATED_OD + 0.1  # cell 1
    od[:, 8:12] = 0.05  # cell 2
    y, half, _ = pool_od(od, valid)
    np.testing.assert_allclose(y, [[0.5, 0.5, 0.5]])
    assert half.shape == (1,)


def test_halves_form_a_checkerboard_of_64_pixels() -> None:
    y, half, _ = pool_od(np.full((3, 128, 192), 0.5, np.float32), np.ones((128, 192), bool))
    squares = half.reshape(32, 48)
    for i in range(2):
        for j in range(3):
            square = squares[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
            assert (square == bool((i + j) % 2)).all()
    assert len(y) == 32 * 48


def test_nothing_valid_gives_nothing() -> None:
    y, half, _ = pool_od(np.ones((3, 64, 64), np.float32), np.zeros((64, 64), bool))
    assert y.shape == (0, 3)
    assert half.shape == (0,)
