"""Edges without pure pixels move towards the library, and only outwards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wsi_pgdips.optics.cone import (
    ANGLE_BINS,
    ANGLE_RANGE,
    FURTHEST,
    LEAST_WIDTH,
    inward,
    leaned_tilt,
    outward,
    pure_shares,
)

EDGES = np.radians([-17.0, 17.0])
Floats = npt.NDArray[np.float64]


def sides(first: float, second: float) -> Floats:
    """Histograms with that share of each side at its edge, the rest 10 degrees further in."""
    out = np.zeros((2, ANGLE_BINS))
    for k, share in enumerate((first, second)):
        for angle, weight in ((EDGES[k], share), (0.4 * EDGES[k], 1 - share)):
            out[k] += np.histogram([angle], ANGLE_BINS, ANGLE_RANGE, weights=[weight])[0]
    return out


def moved(first: float, second: float, library: tuple[float, float]) -> Floats:
    """Degrees outwards."""
    turn = outward(sides(first, second), EDGES, np.radians(library))
    return np.asarray(np.degrees(turn) * (-1, 1))


def test_share_near_the_edge() -> None:
    np.testing.assert_allclose(pure_shares(sides(0.3, 0.02), EDGES), [0.3, 0.02])
    assert (pure_shares(np.zeros((2, ANGLE_BINS)), EDGES) == 0).all()


@pytest.mark.parametrize("library", [(-20.0, 20.0), (-22.0, 14.0), (-10.0, 10.0)])
def test_pure_pixels_hold_an_edge(library: tuple[float, float]) -> None:
    np.testing.assert_array_equal(moved(0.2, 0.3, library), 0)


def test_without_pure_pixels_an_edge_moves_to_the_library_and_not_far() -> None:
    limit = np.degrees(FURTHEST)
    np.testing.assert_allclose(moved(0.3, 0.02, (-20, 20)), [0, 3], atol=1e-9)
    np.testing.assert_allclose(moved(0.02, 0.02, (-20, 25)), [3, limit], atol=1e-9)
    np.testing.assert_allclose(moved(0.3, 0.1, (-20, 20)), [0, 1.5], atol=1e-9)


def test_no_edge_moves_inwards() -> None:
    np.testing.assert_array_equal(moved(0.0, 0.0, (-12, 12)), 0)


def test_a_cone_far_too_narrow_is_widened_towards_the_library() -> None:
    widened = moved(0.5, 0.5, (-17, 43))
    np.testing.assert_allclose(widened, [0, LEAST_WIDTH * 60 - 34], atol=1e-9)
    assert (moved(0.5, 0.5, (-17, 26)) == 0).all()


def test_an_edge_that_few_pixels_carry_comes_in_to_the_library() -> None:
    """3 % of a side lie 10 degrees and more beyond the rest of it."""
    few = sides(0.03, 0.03)
    np.testing.assert_allclose(
        np.degrees(inward(few, EDGES, np.radians([-12, 12]))), [-12, 12], atol=0.5
    )
    # not further in than the pixels support
    support = 0.4 * 17 + 4
    np.testing.assert_allclose(
        np.degrees(inward(few, EDGES, np.radians([-5, 5]))),
        [-support, support],
        atol=0.5,
    )
    # an edge inside the library's vector, and one that pixels carry, stay
    assert (inward(few, EDGES, np.radians([-20, 20])) == EDGES).all()
    assert (inward(sides(0.2, 0.2), EDGES, np.radians([-5, 5])) == EDGES).all()


def test_without_pure_pixels_a_stain_leaves_the_plane_as_the_librarys_does() -> None:
    normal = np.array([0.0, 0.0, 1.0])
    library = np.array([[0.8, 0.6, 0.0], [0.6, 0.0, 0.8]])
    measured = np.array([0.2, 0.2])

    def tilt(first: float, second: float) -> Floats:
        return leaned_tilt(measured, sides(first, second), EDGES, library, normal)

    np.testing.assert_allclose(tilt(0.3, 0.2), measured)
    np.testing.assert_allclose(tilt(0.01, 0.02), [0.0, 0.8 / 0.6])
    np.testing.assert_allclose(tilt(0.1, 0.3), [0.1, 0.2])
