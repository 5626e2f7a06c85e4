"""The cone of colours: its plane, and its edges from histograms of angles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pgdips.optics.cone import (
    ANGLE_BINS,
    ANGLE_RANGE,
    EDGES,
    FAR,
    SUPPORT,
    TAIL,
    Plane,
    aligned_edges,
    cone_edges,
    edge_histograms,
    pixel_noise,
)
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import FloatArray

HDAB = load_stains("hdab").stain_matrix
PLANE = Plane.of(HDAB)
WIDTH = (ANGLE_RANGE[1] - ANGLE_RANGE[0]) / ANGLE_BINS


def mixtures(count: int, noise: float, seed: int = 0, pure: float = 0.1) -> FloatArray:
    """(P, 3) of two stains, ``pure`` of the pixels of each of them alone."""
    rng = np.random.default_rng(seed)
    q = rng.gamma(3.0, 0.15, (2, count))
    kind = rng.random(count)
    q[1, kind < pure] = 0
    q[0, kind > 1 - pure] = 0
    y = q.T @ HDAB.astype(np.float64) + rng.normal(0, noise, (count, 3)) if noise else q.T @ HDAB
    return y.astype(np.float32)


def spike(first: float, second: float, mass: float = 1.0) -> npt.NDArray[np.float64]:
    """(2, ANGLE_BINS) with all of each edge's mass in one bin."""
    out = np.zeros((2, ANGLE_BINS))
    for k, angle in enumerate((first, second)):
        out[k, int((angle - ANGLE_RANGE[0]) / WIDTH)] = mass
    return out


@pytest.mark.parametrize("name", ["he", "hdab"])
def test_plane_is_orthonormal_and_holds_its_rows(name: str) -> None:
    rows = load_stains(name).stain_matrix
    plane = Plane.of(rows)
    base = np.stack([plane.e1, plane.e2, plane.normal])
    np.testing.assert_allclose(base @ base.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(rows @ plane.normal, 0, atol=1e-6)
    np.testing.assert_allclose(plane.rays(plane.angles(rows)), rows, atol=1e-6)
    first, second = plane.angles(rows)
    assert first == pytest.approx(-second, abs=1e-6)
    assert np.degrees(second - first) == pytest.approx(float(angle_deg(*rows)), abs=1e-3)


@given(phi=st.floats(-3.1, 3.1), length=st.floats(0.01, 3), height=st.floats(-1, 1))
def test_plane_round_trip(phi: float, length: float, height: float) -> None:
    y = length * PLANE.rays(phi).astype(np.float64) + height * PLANE.normal
    assert float(PLANE.angles(y)) == pytest.approx(phi, abs=2e-5)
    assert float(y @ PLANE.normal) == pytest.approx(height, abs=1e-5)


def test_rays_and_angles_keep_leading_axes() -> None:
    phi = np.linspace(-0.5, 0.5, 24).reshape(2, 3, 4)
    rays = PLANE.rays(phi)
    assert rays.shape == (2, 3, 4, 3)
    assert rays.dtype == np.float32
    np.testing.assert_allclose(PLANE.angles(rays), phi, atol=1e-6)


def test_edge_of_one_bin_lies_at_the_tail_inside_that_bin() -> None:
    histograms = spike(-0.3001, 0.4001)
    angles, strength = cone_edges(histograms)
    low = EDGES[np.searchsorted(EDGES, -0.3001) - 1]
    high = EDGES[np.searchsorted(EDGES, 0.4001)]
    assert angles[0] == pytest.approx(low + TAIL * WIDTH, abs=1e-9)
    assert angles[1] == pytest.approx(high - TAIL * WIDTH, abs=1e-9)
    assert strength.tolist() == [1.0, 1.0]


def test_edges_of_a_uniform_histogram_are_its_quantiles() -> None:
    angles, _ = cone_edges(np.ones((2, ANGLE_BINS)))
    half = ANGLE_RANGE[1]
    np.testing.assert_allclose(angles, [-half + TAIL * half, half - TAIL * half], atol=1e-9)


def test_what_lies_beyond_the_tail_is_ignored() -> None:
    histograms = spike(-0.3001, 0.4001) + 0.5 * TAIL * spike(-0.8, 0.8)
    angles, _ = cone_edges(histograms)
    np.testing.assert_allclose(angles, [-0.3, 0.4], atol=2 * WIDTH)
    moved, _ = cone_edges(spike(-0.3001, 0.4001) + 2 * TAIL * spike(-0.8, 0.8))
    # more than the tail, but too few to carry an edge away
    np.testing.assert_allclose(moved, [-0.3 - FAR, 0.4 + FAR], atol=2 * WIDTH)
    many, _ = cone_edges(spike(-0.3001, 0.4001) + 2 * SUPPORT * spike(-0.8, 0.8))
    np.testing.assert_allclose(many, [-0.8, 0.8], atol=2 * WIDTH)


def test_the_middle_divides_the_sides() -> None:
    histograms = spike(0.1001, 0.4001) + spike(-0.3001, -0.2001)
    at_zero, _ = cone_edges(histograms)
    np.testing.assert_allclose(at_zero, [-0.3, 0.4], atol=2 * WIDTH)
    _, strength = cone_edges(histograms, middle=0.25)
    assert strength.tolist() == [2.0, 1.0]


def test_an_empty_side_is_nan_and_leaves_the_other() -> None:
    histograms = spike(-0.3001, 0.4001)
    histograms[1] = 0
    angles, strength = cone_edges(histograms)
    assert np.isfinite(angles[0])
    assert np.isnan(angles[1])
    assert strength.tolist() == [1.0, 0.0]
    angles, strength = cone_edges(np.zeros((4, 2, ANGLE_BINS)))
    assert np.isnan(angles).all()
    assert not strength.any()


def test_edges_of_a_stack_equal_those_of_each() -> None:
    rng = np.random.default_rng(0)
    stack = rng.random((3, 2, 2, ANGLE_BINS))
    angles, strength = cone_edges(stack)
    assert angles.shape == strength.shape == (3, 2, 2)
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(angles[i, j], cone_edges(stack[i, j])[0])


@settings(max_examples=25)
@given(cut=st.integers(0, 500), noise=st.floats(0, 0.05))
def test_histograms_are_additive(cut: int, noise: float) -> None:
    y = mixtures(500, 0.01)
    whole = edge_histograms(y, PLANE, noise)
    parts = edge_histograms(y[:cut], PLANE, noise) + edge_histograms(y[cut:], PLANE, noise)
    assert whole.shape == (2, ANGLE_BINS)
    np.testing.assert_allclose(parts, whole, atol=1e-9)


def test_histograms_weigh_by_strength() -> None:
    y = mixtures(400, 0.0)
    inside = np.abs(PLANE.angles(y)) < ANGLE_RANGE[1] - 1e-3
    assert inside.all()
    total = np.linalg.norm(y.astype(np.float64), axis=1).sum()
    np.testing.assert_allclose(edge_histograms(y, PLANE, 0.0).sum(1), total, rtol=1e-9)


def test_black_and_white_pixels_do_no_harm() -> None:
    y = np.zeros((5, 3), np.float32)
    assert np.isfinite(edge_histograms(y, PLANE, 0.01)).all()
    assert edge_histograms(y, PLANE, 0.01).sum() == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.02])
def test_edges_of_a_noisy_cone(noise: float, seed: int) -> None:
    y = mixtures(20_000, noise, seed)
    angles, _ = cone_edges(edge_histograms(y, PLANE, noise))
    error = angle_deg(PLANE.rays(angles), HDAB)
    assert error.max() < 1.4


@pytest.mark.parametrize("noise", [0.02, 0.04])
def test_moving_pixels_inwards_reduces_the_bias_of_noise(noise: float) -> None:
    y = mixtures(20_000, noise)
    plain, _ = cone_edges(edge_histograms(y, PLANE, 0.0))
    moved, _ = cone_edges(edge_histograms(y, PLANE, noise))
    truth = PLANE.angles(HDAB)
    # noise pushes both edges outwards
    assert plain[0] < truth[0]
    assert plain[1] > truth[1]
    assert (np.abs(moved - truth) < 0.5 * np.abs(plain - truth)).all()


@pytest.mark.parametrize("pure", [0.03, 0.1, 0.4])
def test_the_share_of_pure_pixels_hardly_matters(pure: float) -> None:
    y = mixtures(40_000, 0.01, pure=pure)
    angles, _ = cone_edges(edge_histograms(y, PLANE, 0.01))
    assert angle_deg(PLANE.rays(angles), HDAB).max() < 1.6


def test_noise_is_told_by_side_and_strength() -> None:
    rng = np.random.default_rng(0)
    clean = mixtures(40_000, 0.0).astype(np.float64)
    second = PLANE.angles(clean) > 0
    scale = np.where(second, 0.004, 0.012) * np.linalg.norm(clean, axis=1) / 0.6
    y = clean + scale[:, None] * rng.normal(size=clean.shape)
    found = pixel_noise(y, PLANE, PLANE.angles(HDAB))
    assert np.median(np.abs(np.log(found / scale))) < 0.25
    assert np.median(found[~second]) > 2 * np.median(found[second])


def test_a_tilt_of_the_tile_s_own_plane_is_no_noise() -> None:
    rows = HDAB + np.array([[0.1], [-0.1]]) * PLANE.normal
    q = np.random.default_rng(0).gamma(3.0, 0.15, (2000, 2))
    assert np.median(pixel_noise(q @ rows, PLANE, PLANE.angles(HDAB))) < 1e-3


@pytest.mark.parametrize("count", [0, 1, 10])
def test_few_pixels_take_the_noise_they_are_given(count: int) -> None:
    noise = pixel_noise(mixtures(count, 0.01), PLANE, PLANE.angles(HDAB), 0.007)
    np.testing.assert_array_equal(noise, np.full(count, 0.007))


def test_aligned_edges_take_the_shift_of_each_place_out() -> None:
    shift = np.radians(np.array([[-4.0, -2.0], [0.0, 0.0], [4.0, 2.0]]))
    own = PLANE.angles(HDAB)
    stack = np.stack(
        [
            edge_histograms(
                np.concatenate([np.tile(PLANE.rays(a), (50, 1)) for a in own + s]), PLANE, 0.0
            )
            for s in shift
        ]
    )
    edges, sides = aligned_edges(stack, shift, (own + shift).mean(1))
    np.testing.assert_allclose(edges, own, atol=2 * WIDTH)
    np.testing.assert_allclose(sides.sum(1), [150, 150], rtol=1e-5)  # nothing of the other stain
    alone, _ = aligned_edges(stack[1:2], np.zeros((1, 2)), np.zeros(1))
    np.testing.assert_allclose(alone, cone_edges(stack[1])[0], atol=2 * WIDTH)
    assert np.isnan(aligned_edges(0 * stack, shift, np.zeros(3))[0]).all()


def test_zero_rows_stay_out_of_the_way() -> None:
    """A plane needs two rows that differ; equal rows give no second axis rather than NaN."""
    plane = Plane.of(unit_rows(np.stack([HDAB[0], HDAB[0]])))
    assert np.isfinite(plane.e2).all()


@pytest.mark.parametrize("share", [0.01, 0.02, 0.04])
def test_a_few_pixels_of_pigment_do_not_carry_an_edge_away(share: float) -> None:
    """Ink, keratin, a fringe of colour: far outside, and more of them than a tail holds."""
    y = mixtures(20000, 0.004)
    clean, _ = cone_edges(edge_histograms(y, PLANE, 0.004))
    own = int(share * (PLANE.angles(y) < 0).sum())
    odd = np.tile(0.5 * PLANE.rays(clean[0] - 0.4), (own, 1))
    dirty, _ = cone_edges(edge_histograms(np.concatenate([y, odd]), PLANE, 0.004))
    assert np.degrees(clean[0] - dirty[0]) < 4.5
    assert dirty[1] == pytest.approx(clean[1], abs=1e-6)
