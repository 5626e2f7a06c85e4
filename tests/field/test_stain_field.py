"""S(x): constant where nothing drifts, following where something does, never driven by noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wsi_pgdips.field import cells, stains
from wsi_pgdips.field.cells import Cells
from wsi_pgdips.field.stains import (
    StainField,
    raw_stain_matrix,
    supported_share,
)
from wsi_pgdips.optics.cone import EDGES, Plane
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver.statistics import cell_statistics, empty_cell

HDAB = load_stains("hdab").stain_matrix
THREE = load_stains("hedab").stain_matrix
PLANE = Plane.of(HDAB)
GRID = (8, 9)
CELLS = 3000
NOISE = 0.004
Statistics = dict[str, npt.NDArray[np.float64]]


def cells_of(rows: FloatArray, seed: int) -> FloatArray:
    """(CELLS, 3) pooled OD of a tile; a tenth of the cells hold one stain alone."""
    rng = np.random.default_rng(seed)
    n = len(rows)
    q = rng.gamma(3.0, 0.2, (n, CELLS))
    kind = rng.random(CELLS)
    for k in range(n):
        alone = (kind >= 0.1 * k) & (kind < 0.1 * (k + 1))
        q[np.ix_(np.arange(n) != k, alone)] = 0
    return np.asarray(q.T @ rows + rng.normal(0, NOISE, (CELLS, 3)), np.float32)


def statistics_of(y: FloatArray, anchor: FloatArray, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a tile of these cells, taken under ``anchor``."""
    half = np.random.default_rng(seed).random(len(y)) > 0.5
    return cell_statistics(y, half, anchor, NOISE)


def one_tile(rows: FloatArray, anchor: FloatArray, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a tile stained by ``rows``."""
    return statistics_of(cells_of(rows, seed), anchor, seed + 1)


def slide(truth: FloatArray, anchor: FloatArray, missing: float = 0.0, seed: int = 0) -> Statistics:
    """Statistics of a slide whose tile (i, j) is stained by ``truth[i, j]``."""
    rng = np.random.default_rng(seed)
    nothing = empty_cell(anchor)
    tiles = [
        nothing if rng.random() < missing else one_tile(rows, anchor, seed * 10_000 + i)
        for i, rows in enumerate(truth.reshape(-1, *anchor.shape))
    ]
    return {
        name: np.stack([t[name] for t in tiles]).reshape(*truth.shape[:2], *value.shape)
        for name, value in nothing.items()
    }


def stain_field(
    statistics: Statistics,
    anchor: FloatArray,
    measured: npt.NDArray[np.bool_],
    library: FloatArray | None = None,
) -> StainField:
    """From (CY, CX, ...) statistics: two parts, rows in turn."""
    shape = (statistics["count"].shape[0], statistics["count"].shape[1])
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    parts = [
        Cells(
            index[i::2].reshape(-1, 2), {k: np.concatenate(v[i::2]) for k, v in statistics.items()}
        )
        for i in range(min(2, shape[0]))
    ]
    return stains.stain_field(parts, shape, anchor, measured, library)


def drifting(first: float, second: float, tilt: float = 0.0) -> FloatArray:
    """(GY, GX, 2, 3): each row turned in the plane from -degrees to +degrees across the slide."""
    across = np.linspace(-1, 1, GRID[1])[None, :, None] * np.ones((GRID[0], 1, 2))
    angle = PLANE.angles(HDAB) + np.radians([first, second]) * across
    return unit_rows(PLANE.rays(angle) + (np.radians(tilt) * across)[..., None] * PLANE.normal)


def constant(rows: FloatArray) -> FloatArray:
    return np.broadcast_to(rows, (*GRID, *rows.shape)).copy()


def error(field: StainField, truth: FloatArray) -> npt.NDArray[np.float64]:
    """(N,) mean angle to the truth, degrees."""
    return angle_deg(field.stain_matrix, truth).mean((0, 1))


def every(n: int) -> npt.NDArray[np.bool_]:
    return np.ones(n, bool)


@pytest.mark.parametrize("rows", [HDAB[:1], HDAB], ids=["one", "two"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_drifts(rows: FloatArray, seed: int) -> None:
    truth = constant(rows)
    field = stain_field(slide(truth, rows, seed=seed), rows, every(len(rows)))
    assert field.stain_matrix.shape == (*GRID, len(rows), 3)
    slide_error = angle_deg(field.slide, rows)
    assert (error(field, truth) <= slide_error + 0.1).all()
    assert angle_deg(field.stain_matrix, field.slide).max() < 0.5
    assert all(0 <= v <= 1 for v in field.kept.values())


def test_follows_a_drift_of_one_stain() -> None:
    truth = drifting(5.0, 0.0, tilt=2.0)[:, :, :1]
    field = stain_field(slide(truth, HDAB[:1]), HDAB[:1], every(1))
    assert field.kept["direction"] > 0.9
    assert error(field, truth)[0] < 0.3 * angle_deg(field.slide, truth).mean()


@pytest.mark.parametrize(("first", "second", "tilt"), [(4, 4, 0), (-4, 4, 0), (5, 0, 0), (4, 4, 3)])
def test_follows_a_drift_of_two_stains(first: float, second: float, tilt: float) -> None:
    truth = drifting(first, second, tilt)
    field = stain_field(slide(truth, HDAB), HDAB, every(2))
    flat = angle_deg(field.slide, truth).mean((0, 1))
    moved = np.array([first, second]) != 0
    assert (error(field, truth)[moved] < 0.6 * flat[moved]).all()
    assert (error(field, truth)[~moved] < flat[~moved] + 0.2).all()


def test_follows_a_tilt_of_the_plane() -> None:
    truth = drifting(0, 0, tilt=4.0)
    field = stain_field(slide(truth, HDAB), HDAB, every(2))
    assert min(field.kept["tilt_0"], field.kept["tilt_1"]) > 0.9
    assert (error(field, truth) < 0.5 * angle_deg(field.slide, truth).mean((0, 1))).all()


@pytest.mark.parametrize("rows", [HDAB[:1], HDAB], ids=["one", "two"])
def test_tiles_without_statistics_inherit(rows: FloatArray) -> None:
    truth = drifting(4.0, 4.0)[:, :, : len(rows)]
    statistics = slide(truth, rows, missing=0.3)
    field = stain_field(statistics, rows, every(len(rows)))
    nothing = statistics["count"] == 0
    assert 5 < nothing.sum() < 60
    assert np.isfinite(field.stain_matrix).all()
    raw = raw_stain_matrix(statistics, rows)
    assert np.isnan(raw[nothing]).all()
    assert np.isfinite(raw[~nothing]).all()
    np.testing.assert_allclose(np.linalg.norm(field.stain_matrix, axis=-1), 1, atol=1e-5)
    inherited = angle_deg(field.stain_matrix, truth)[nothing].mean(0)
    flat = angle_deg(field.slide, truth)[nothing].mean(0)
    assert (inherited < 0.8 * flat).all()


@pytest.mark.parametrize("rows", [HDAB[:1], HDAB, THREE], ids=["one", "two", "three"])
def test_a_slide_without_any_statistics_keeps_the_anchor(rows: FloatArray) -> None:
    field = stain_field(slide(constant(rows), rows, missing=1.1), rows, every(len(rows)))
    np.testing.assert_allclose(field.stain_matrix, constant(rows), atol=1e-6)


def test_what_the_halves_do_not_support_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stains, "supported_share", lambda split, weight: 0.0)
    truth = drifting(5, 5, tilt=4)[:, :, :1]
    field = stain_field(slide(truth, HDAB[:1]), HDAB[:1], every(1))
    np.testing.assert_allclose(field.stain_matrix, constant(field.slide), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_colours_that_differ_at_random_from_tile_to_tile_are_not_followed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.radians(rng.normal(0, 2, (*GRID, 2)))
    truth = unit_rows(PLANE.rays(PLANE.angles(HDAB) + turn))
    field = stain_field(slide(truth, HDAB, seed=seed), HDAB, every(2))
    assert angle_deg(field.stain_matrix, field.slide).max((0, 1)).max() < 1.5


def test_a_step_is_followed() -> None:
    across = np.where(np.arange(GRID[1]) < GRID[1] // 2, -4.0, 4.0)
    turn = np.broadcast_to(np.radians(across)[None, :, None], (*GRID, 2))
    truth = unit_rows(PLANE.rays(PLANE.angles(HDAB) + turn))
    field = stain_field(slide(truth, HDAB), HDAB, every(2))
    flat = angle_deg(field.slide, truth).mean((0, 1))
    assert (error(field, truth) < 0.35 * flat).all()
    assert (angle_deg(field.slide, HDAB) < 1.5).all()


def test_fewer_than_three_tiles_keep_the_slides_vectors() -> None:
    cells = slide(drifting(6, 6)[:2, :4], HDAB)  # two tiles side by side
    field = stain_field(cells, HDAB, every(2), HDAB)
    np.testing.assert_array_equal(field.slide, HDAB)
    assert (field.stain_matrix == HDAB).all()
    more = slide(drifting(6, 6)[:2, :8], HDAB)
    assert angle_deg(stain_field(more, HDAB, every(2), HDAB).slide, HDAB).max() > 0.1


def test_a_course_too_wide_for_a_stain_is_left_to_the_tissue() -> None:
    """40 degrees to each side are no drift: that stain keeps S0, the other is still followed."""
    field = stain_field(slide(drifting(40, 6), HDAB), HDAB, every(2))
    np.testing.assert_allclose(
        field.stain_matrix[:, :, 0], np.broadcast_to(HDAB[0], field.stain_matrix[:, :, 0].shape)
    )
    assert field.kept["edge_0"] == field.kept["tilt_0"] == 0
    assert field.kept["edge_1"] > 0


def test_places_without_pure_pixels_do_not_bend_the_field() -> None:
    """A third of the tiles lack pure pixels; nothing drifts."""
    statistics = slide(constant(HDAB), HDAB)
    rng = np.random.default_rng(3)
    for i, j in zip(*np.nonzero(rng.random(GRID) < 0.3), strict=True):
        q = rng.gamma(3.0, 0.2, (CELLS, 2)) + 0.15
        y = np.asarray(q @ HDAB + rng.normal(0, NOISE, (CELLS, 3)), np.float32)
        alone = cell_statistics(y, rng.random(CELLS) > 0.5, HDAB, NOISE)
        for name, value in alone.items():
            statistics[name][i, j] = value
    field = stain_field(statistics, HDAB, every(2))
    assert angle_deg(field.stain_matrix, HDAB).max() < 1.5


def test_many_tiles_are_pooled_to_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = drifting(4, 4)
    whole = stain_field(slide(truth, HDAB), HDAB, every(2))
    monkeypatch.setattr(cells, "MAX_SQUARES", 24)
    pooled = stain_field(slide(truth, HDAB), HDAB, every(2))
    assert angle_deg(pooled.stain_matrix, whole.stain_matrix).max() < 2.0


def test_three_stains_are_constant() -> None:
    field = stain_field(slide(constant(THREE), THREE, missing=0.3), THREE, every(3))
    np.testing.assert_array_equal(field.stain_matrix, constant(THREE))
    np.testing.assert_array_equal(field.slide, THREE)


@pytest.mark.parametrize("unmeasured", [0, 1])
def test_an_unmeasured_stain_stays(unmeasured: int) -> None:
    measured = every(2)
    measured[unmeasured] = False
    field = stain_field(slide(drifting(5, 5, tilt=6), HDAB), HDAB, measured)
    expected = np.broadcast_to(HDAB[unmeasured], (*GRID, 3))
    np.testing.assert_allclose(field.stain_matrix[:, :, unmeasured], expected, atol=1e-5)
    np.testing.assert_allclose(field.slide[unmeasured], HDAB[unmeasured], atol=1e-5)
    assert angle_deg(field.stain_matrix[0, 0], field.stain_matrix[0, -1])[1 - unmeasured] > 2


def test_one_unmeasured_stain_stays() -> None:
    field = stain_field(slide(drifting(5, 0)[:, :, :1], HDAB[:1]), HDAB[:1], np.array([False]))
    np.testing.assert_array_equal(field.stain_matrix, constant(HDAB[:1]))


def test_a_mirrored_slide_has_the_mirrored_field() -> None:
    statistics = slide(drifting(4, 4), HDAB)
    mirrored = {name: v[::-1, ::-1] for name, v in statistics.items()}
    a, b = (stain_field(s, HDAB, every(2)).stain_matrix for s in (statistics, mirrored))
    np.testing.assert_allclose(b[::-1, ::-1], a, atol=1e-6)


def share_of(signal: float, noise: float, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    place = rng.normal(0, 1, (20, 20, 1, 2)) * signal
    return supported_share(place + rng.normal(0, 1, (20, 20, 2, 2)) * noise, np.ones((20, 20)))


@pytest.mark.parametrize("seed", range(5))
def test_share_of_pure_noise_is_next_to_nothing(seed: int) -> None:
    assert 0 <= share_of(0.0, 1.0, seed) < 0.15


def test_share_of_what_both_halves_say_is_one() -> None:
    assert share_of(1.0, 0.0) == pytest.approx(1.0)
    assert share_of(1.0, 0.05) > 0.99


def test_share_is_signal_over_signal_and_noise_of_the_mean() -> None:
    assert share_of(1.0, 1.0) == pytest.approx(1 / 1.5, abs=0.08)
    assert share_of(1.0, 2.0) == pytest.approx(1 / 3, abs=0.08)


def test_halves_that_contradict_each_other_support_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(6, 6, 1, 1))
    assert supported_share(np.concatenate([x, -x], 2), np.ones((6, 6))) == 0


def test_share_guards_nothing_and_constants() -> None:
    split = np.random.default_rng(0).normal(size=(4, 4, 2, 1))
    assert supported_share(split, np.zeros((4, 4))) == 0
    assert supported_share(np.ones((4, 4, 2, 1)), np.ones((4, 4))) == 0
    one = np.zeros((4, 4))
    one[1, 1] = 1
    assert supported_share(split, one) == 0


def test_the_level_leans_on_the_library_where_no_pixel_is_pure() -> None:
    """As S0 did: an anchor further out than any pixel stays where the library supports it."""
    inner = PLANE.rays(PLANE.angles(HDAB) + np.radians([0.0, -4.0]))
    tiles = constant(inner)
    statistics = slide(tiles, HDAB)
    alone = stain_field(statistics, HDAB, every(2))
    kept = stain_field(statistics, HDAB, every(2), HDAB)
    np.testing.assert_allclose(angle_deg(alone.slide, inner), 0, atol=0.7)
    # a tenth of the tiles' cells are pure, so the edge holds
    assert angle_deg(kept.slide, alone.slide).max() < 0.5
    spread = np.asarray(statistics["edges"])
    spread[..., 1, : spread.shape[-1] // 2] = 0
    rng = np.random.default_rng(0)
    own = rng.dirichlet(np.ones(60), spread.shape[:2]) * 1200
    first = int(np.searchsorted(EDGES, np.radians(1.0)))
    spread[..., 1, first : first + 60] = own * np.linspace(1, 0, 60) ** 3
    spread[..., 1, first + 60 :] = 0
    pulled = stain_field(statistics, HDAB, every(2), HDAB)
    away = stain_field(statistics, HDAB, every(2))
    assert angle_deg(pulled.slide, HDAB)[1] < angle_deg(away.slide, HDAB)[1] - 3.0


def test_a_step_inside_tiles_does_not_pass_for_a_drift_of_their_edges() -> None:
    """The plane of the stains tilts along a line that crosses a column of tiles."""
    column = GRID[1] // 2
    tilted = [
        unit_rows(HDAB + np.radians(6.0 * sign) * PLANE.normal).astype(np.float32)
        for sign in (-1, 1)
    ]
    truth = np.stack([tilted[int(x > column)] for x in range(GRID[1])])
    truth = np.broadcast_to(truth, (*GRID, 2, 3)).copy()
    statistics = slide(truth, HDAB)
    for y in range(GRID[0]):
        both = [cells_of(rows, 77 + 2 * y + k) for k, rows in enumerate(tilted)]
        mixed = statistics_of(np.concatenate(both), HDAB, y)
        for name, value in mixed.items():
            statistics[name][y, column] = value
    field = stain_field(statistics, HDAB, every(2))
    away = np.arange(GRID[1]) != column
    found = PLANE.angles(field.stain_matrix) - PLANE.angles(HDAB)
    assert np.degrees(np.abs(found)).max() < 1.0
    assert angle_deg(field.stain_matrix, truth)[:, away].mean() < 2.0


def test_two_tiles_leave_the_vectors_of_calibration() -> None:
    truth = drifting(5, 5)[:1, :2]
    field = stain_field(slide(truth, HDAB), HDAB, every(2), HDAB)
    np.testing.assert_array_equal(field.slide, HDAB)
    np.testing.assert_array_equal(field.stain_matrix, np.broadcast_to(HDAB, truth.shape))


def test_only_edges_outside_that_few_pixels_carry_are_fringes() -> None:
    off = np.radians([[-6.0, 6.0], [-1.0, 1.0], [6.0, -6.0], [0.0, 0.0]])
    mass = np.full((4, 2), 100.0)
    assert not stains._fringes(off, mass).any()  # a quarter of all strength is no fringe
    mass[0] = 4.0
    found = stains._fringes(off, mass)
    assert found[0].all()
    assert not found[1:].any()


def test_two_tissues_side_by_side_are_no_stain_that_drifts() -> None:
    """A few cells far from all others exceed the widest drift, although the mean is small."""
    truth = constant(HDAB)
    truth[:, :1] = PLANE.rays(PLANE.angles(HDAB) + np.radians([-12.0, 0.0]))
    found = stain_field(slide(truth, HDAB), HDAB, every(2))
    spread = angle_deg(found.stain_matrix, found.slide)
    assert spread[..., 0].max() < 0.5
