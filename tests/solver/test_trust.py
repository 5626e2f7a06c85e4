"""Ink and pigment in a few squares have no say in the vectors; all that is stained has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.synthetic import GLASS, HDAB, HE, THREE, concentrations, tile_of
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver.rays import POOL, estimate_rays
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.solver.trust import (
    LIBRARY_SLACK,
    MIXED_SIDE,
    pooled_tile,
    robust_plane,
    trusted,
    without_foreign,
)

SQUARES, PIXELS = 60, 300
INKS = {
    "blue": (40, 60, 170),
    "green": (30, 120, 80),
    "black": (12, 12, 14),
    "red": (190, 30, 40),
}
Squares = npt.NDArray[np.intp]


def ink_od(name: str) -> npt.NDArray[np.float64]:
    return -np.log10(np.array(INKS[name]) / 245.0)


def slide(rows: FloatArray, seed: int = 0) -> tuple[FloatArray, Squares]:
    """Pooled OD of tissue, a tenth of which holds one stain alone, and the square of each pixel."""
    rng, n = np.random.default_rng(seed), len(rows)
    q = rng.gamma(3.0, 0.08, (n, SQUARES * PIXELS))
    kind = rng.random(q.shape[1])
    for k in range(n):
        alone = (kind >= 0.1 * k) & (kind < 0.1 * (k + 1))
        q[np.ix_(np.arange(n) != k, alone)] = 0
    y = q.T @ rows + rng.normal(0, 0.004, (q.shape[1], 3))
    return np.asarray(y, np.float32), np.repeat(np.arange(SQUARES), PIXELS)


def inked(y: FloatArray, square: Squares, ink: str) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """The slide with ink over a tenth of the pixels of a tenth of its squares."""
    rng = np.random.default_rng(1)
    under = (square < SQUARES // 10) & (rng.random(len(y)) < 0.1)
    out = y.copy()
    out[under] += rng.normal(1, 0.015, (under.sum(), 1)) * ink_od(ink)
    return out, under


def vectors(y: FloatArray, rows: FloatArray) -> FloatArray:
    return estimate_rays(y, rows, [len(y)]).stain_matrix


@pytest.mark.parametrize(
    ("rows", "ink"),
    [(HE, "green"), (HE, "black"), (HDAB, "green"), (HDAB, "red")],
    ids=["he-green", "he-black", "hdab-green", "hdab-red"],
)
def test_ink_in_a_tenth_of_the_squares_turns_no_vector(rows: FloatArray, ink: str) -> None:
    y, square = slide(rows)
    clean = vectors(y, rows)
    dirty, under = inked(y, square, ink)
    kept = trusted(dirty, square, rows)
    assert angle_deg(vectors(dirty, rows), clean).max() > 2
    assert angle_deg(vectors(dirty[kept], rows), clean).max() < 2
    assert kept[~under].mean() > 0.99
    assert kept[under].mean() < 0.1


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("rows", [HE, HDAB], ids=["he", "hdab"])
def test_no_ink_turns_a_vector_by_more_than_laboratories_do(rows: FloatArray, ink: str) -> None:
    y, square = slide(rows)
    dirty, _ = inked(y, square, ink)
    kept = trusted(dirty, square, rows)
    found = vectors(dirty[kept], rows)
    assert angle_deg(found, rows).max() < np.degrees(LIBRARY_SLACK) + 1


@pytest.mark.parametrize("rows", [HE[:1], HE, HDAB, THREE], ids=["one", "two", "dab", "three"])
def test_tissue_without_ink_is_kept(rows: FloatArray) -> None:
    y, square = slide(rows)
    assert trusted(y, square, rows).mean() > 0.99


def test_tissue_of_another_laboratory_is_kept() -> None:
    """Vectors that differ from the library's by what is usual, in the plane and out of it."""
    turned = HE + np.array([[0.06, -0.04, 0.05], [0.05, 0.03, -0.06]], np.float32)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    assert 3 < angle_deg(turned, HE).max() < 8
    y, square = slide(turned)
    kept = trusted(y, square, HE)
    assert kept.mean() > 0.99
    assert angle_deg(vectors(y[kept], HE), vectors(y, HE)).max() < 0.5


def test_a_stain_in_one_focus_alone_is_kept() -> None:
    y, square = slide(HDAB[:1])
    rng = np.random.default_rng(2)
    focus = (square < 2) & (rng.random(len(y)) < 0.5)
    y[focus] = rng.gamma(3.0, 0.2, (focus.sum(), 1)) * HDAB[1] + rng.normal(0, 0.004, 3)
    kept = trusted(y, square, HDAB)
    assert kept[focus].mean() > 0.95
    assert kept[~focus].mean() > 0.99


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), ink=st.sampled_from(sorted(INKS)))
def test_neither_the_order_nor_the_numbers_of_squares_matter(seed: int, ink: str) -> None:
    y, square = slide(HE)
    dirty, _ = inked(y, square, ink)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dirty))
    number = rng.permutation(3 * SQUARES)[square]
    one = trusted(dirty, square, HE)
    other = np.zeros_like(one)
    other[order] = trusted(dirty[order], number[order], HE)
    assert (one != other).mean() < 1e-3  # sums in another order


def test_few_pixels_are_all_kept() -> None:
    y, square = slide(HE)
    for few in (0, 1, 5):
        assert trusted(y[:few], square[:few], HE).all()


def test_the_plane_is_the_tissues_and_not_the_inks() -> None:
    turned = HE + np.array([[0.05, 0.0, -0.05], [0.0, 0.0, 0.0]], np.float32)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    y, square = slide(turned)
    dirty, _ = inked(y, square, "green")
    plane, noise = robust_plane(dirty, np.linalg.norm(dirty, axis=1).astype(float), HE)
    assert np.abs(turned @ plane.normal).max() < 0.02
    assert 0.003 < noise < 0.006


def inked_tile(side: int = 512) -> tuple[TileInput, npt.NDArray[np.bool_]]:
    tile = tile_of(concentrations(2, side, 0, [0.5, 0.5]), HE)
    under = np.zeros((side, side), bool)
    under[200:240, 100:300] = True
    od = tile.od.copy()
    od[:, under] += np.float32(ink_od("green"))[:, None]
    return TileInput(od, tile.tissue, GLASS, 0, 0), under


def test_a_pooled_tile_explains_itself() -> None:
    tile, under = inked_tile()
    found = pooled_tile(tile, HE, 0.0015)
    assert found.od.shape == (3, 128, 128)
    assert found.q.shape == (2, 128, 128)
    pooled = under[::POOL, ::POOL]
    assert found.foreign[pooled].mean() > 0.95
    assert found.foreign[~pooled].mean() < 0.01
    mean = tile.corrected.reshape(3, 128, POOL, 128, POOL).mean((2, 4))
    np.testing.assert_allclose(found.od, mean, atol=1e-5)
    assert found.q.min() >= 0


def test_what_is_foreign_and_its_squares_are_no_tissue_anymore() -> None:
    tile, under = inked_tile()
    found = pooled_tile(tile, HE, 0.0015)
    cleaned = without_foreign(tile, found)
    assert not cleaned.tissue[under].mean() > 0.05
    side = MIXED_SIDE * POOL
    for y in range(0, 512, side):
        for x in range(0, 512, side):
            own = np.s_[y : y + side, x : x + side]
            if under[own].mean() > 0.05:
                assert not cleaned.tissue[own].any()
            elif not under[own].any():
                assert cleaned.tissue[own].mean() > 0.9
    np.testing.assert_array_equal(cleaned.od, tile.od)


def test_a_clean_tile_is_returned_as_it_is() -> None:
    tile = tile_of(concentrations(2, 96, 0), HE)
    found = pooled_tile(tile, HE, 0.0015)
    assert not found.foreign.any()
    assert without_foreign(tile, found) is tile
