from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.surface import fit_surface
from wsi_pgdips.tiles.tissue import find_tissue
from wsi_pgdips.tiles.tissue_map import TissueMap

SHAPE, SCALE = (400, 500), 16.0
GRID = OutputGrid((6400, 8000), 1.0, 0.5, 512, 4096)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]] / np.array(SHAPE)[:, None, None] - 0.5


def slide(background, glass=None, noise=0.004, seed=0):
    """A map with glass around a disk of tissue; ``background`` (H, W, 3) OD."""
    rng = np.random.default_rng(seed)
    tissue = (Y**2 + X**2) < 0.3**2
    glass = ~tissue if glass is None else glass & ~tissue
    od = background + rng.normal(0, noise, (*SHAPE, 3))
    od[tissue] += 0.5
    return TissueMap(tissue, tissue, glass, od.astype(np.float32), SCALE, GRID.shape)


def at_cells(background):
    cy, cx = GRID.cell_grid
    y = np.minimum((np.arange(cy) + 0.5) * 16, SHAPE[0] - 1).astype(int)
    x = np.minimum((np.arange(cx) + 0.5) * 16, SHAPE[1] - 1).astype(int)
    return background[np.ix_(y, x)]


def flat(value=(0.03, 0.04, 0.02)):
    return np.broadcast_to(np.array(value), (*SHAPE, 3)).copy()


@pytest.mark.parametrize(
    "shape", [X, Y, 0.7 * X - 0.7 * Y, np.sin(3 * X), X**2 + 0.5 * Y], ids=list("xydsq")
)
def test_a_drift_is_followed_within_a_hundredth_also_inside_tissue(shape):
    drift = shape / np.ptp(shape) * 0.03
    truth = flat() + drift[..., None] * np.array([1, 0.8, 1.2])
    field, weight, b0 = background_field(slide(truth), GRID)
    expected = at_cells(truth)
    assert field.shape == (*GRID.cell_grid, 3)
    assert field.dtype == weight.dtype == b0.dtype == np.float32
    assert np.abs(field - expected).max() < 0.01
    assert np.square(field - expected).mean() < 0.25 * np.square(b0 - expected).mean()
    assert (weight > 0).all()


@pytest.mark.parametrize("where", [X + 0.1 * Y, Y - 0.2 * X], ids=["across", "down"])
def test_a_step_between_two_panes_is_followed(where):
    truth = flat() + 0.025 * (where > 0)[..., None]
    field, _, b0 = background_field(slide(truth), GRID)
    expected, side = at_cells(truth), np.abs(at_cells(where[..., None])[..., 0])
    assert np.abs(field - expected)[side > 0.25].max() < 0.006
    assert np.square(field - expected).mean() < 0.2 * np.square(b0 - expected).mean()


def test_where_the_picture_begins_has_no_say():
    made = slide(flat() + 0.02 * X[..., None] + 0.02 * (Y > 0.1)[..., None])
    field, _, b0 = background_field(made, GRID)
    gap = 2 * GRID.cell // round(SCALE)

    def moved(a):
        return np.pad(a, ((gap, 0), (gap, 0)) + ((0, 0),) * (a.ndim - 2))

    shape = tuple(n + 2 * GRID.cell for n in GRID.shape)
    further = replace(
        made,
        mask=moved(made.mask),
        core=moved(made.core),
        glass=moved(made.glass),
        glass_od=moved(made.glass_od),
        shape=shape,
    )
    found, _, b0_found = background_field(further, OutputGrid(shape, 1.0, 0.5, 512, 4096))
    np.testing.assert_array_equal(b0_found, b0)
    rows, columns = field.shape[:2]
    np.testing.assert_allclose(found[2 : 2 + rows, 2 : 2 + columns], field, atol=1e-6)


def test_two_places_of_glass_that_differ_by_more_than_dirt_are_told_apart():
    truth = flat() + 0.02 * X[..., None]
    glass = np.zeros(SHAPE, bool)
    glass[190:210, :20] = glass[190:210, -20:] = True
    field, _, b0 = background_field(slide(truth, glass), GRID)
    expected = at_cells(truth)
    assert np.square(field - expected).mean() < 0.5 * np.square(b0 - expected).mean()


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_drifts_the_field_is_the_constant(seed):
    truth = flat()
    rng = np.random.default_rng(seed)
    # dirt and JPEG: cells differ at random by more than pixel noise explains
    cells = np.kron(rng.normal(0, 0.003, (8, 10, 3)), np.ones((50, 50, 1)))
    field, _, b0 = background_field(slide(truth + cells, seed=seed), GRID)
    np.testing.assert_allclose(b0, truth[0, 0], atol=0.0015)
    error = np.square(field - truth[0, 0]).mean()
    assert error <= np.square(b0 - truth[0, 0]).mean() + 0.001**2


def test_glass_on_one_side_does_not_run_away():
    truth = flat()
    glass = np.zeros(SHAPE, bool)
    glass[:, :40] = True
    field, weight, b0 = background_field(slide(truth, glass), GRID)
    assert np.abs(field - b0).max() < 0.003
    assert weight[:, 0].min() > weight[:, -1].max()


def test_dirt_on_glass_does_not_move_the_constant():
    truth = flat()
    dirty = truth.copy()
    dirty[10:60, 10:200] += 0.3
    _, _, b0 = background_field(slide(dirty), GRID)
    np.testing.assert_allclose(b0, truth[0, 0], atol=0.002)


def test_what_is_assumed_stands_where_no_glass_tells():
    assumed = np.array([0.03, 0.08, 0.02], np.float32)
    for glass in (np.zeros(SHAPE, bool), None):  # none, or saturated
        tissue = replace(slide(flat(), glass), assumed=assumed)
        field, weight, b0 = background_field(tissue, GRID)
        np.testing.assert_array_equal(field, np.broadcast_to(assumed, field.shape))
        np.testing.assert_array_equal(b0, assumed)
        assert field.dtype == b0.dtype == np.float32
        assert not weight.any()


def test_without_glass_all_is_zero():
    tissue = slide(flat(), np.zeros(SHAPE, bool))
    field, weight, b0 = background_field(tissue, GRID)
    assert not field.any()
    assert not weight.any()
    assert not b0.any()


def test_a_handful_of_glass_pixels_gives_a_constant():
    glass = np.zeros(SHAPE, bool)
    glass[2:4, 2:4] = True
    field, weight, b0 = background_field(slide(flat(), glass, noise=0.0), GRID)
    np.testing.assert_allclose(b0, (0.03, 0.04, 0.02), atol=1e-6)
    np.testing.assert_allclose(field, np.broadcast_to(b0, field.shape), atol=1e-7)
    assert weight.max() <= 4


def test_from_pixels_to_field(as_source, paint):
    scene = paint((225, 230, 228), drift=0.02)
    source = as_source(scene.rgb)
    field, _, b0 = background_field(find_tissue(source), source.grid)
    cy, cx = source.grid.cell_grid
    centres = np.ix_((np.arange(cy) * 8 + 4), (np.arange(cx) * 8 + 4))
    truth = scene.background[centres]
    assert np.abs(field - truth).max() < 0.003
    assert np.square(field - truth).mean() < 0.1 * np.square(b0 - truth).mean()


@given(
    st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
    st.integers(0, 100),
)
def test_a_plane_is_recovered_through_outliers(plane, seed):
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(0, 50, 200), rng.uniform(0, 80, 200)
    truth = plane[0] + plane[1] * y / 50 + plane[2] * x / 80
    values = truth + rng.normal(0, 0.001, 200)
    values[:20] += 0.5
    surface = fit_surface(y, x, values[:, None], margin=1.0)
    np.testing.assert_allclose(surface.at(y, x)[:, 0], truth, atol=0.005)


def test_a_surface_stays_near_what_it_has_seen():
    y, x = np.zeros(20), np.arange(20.0)
    surface = fit_surface(y, x, (0.01 * x)[:, None], margin=0.02)
    far = surface.at(np.array([0.0]), np.array([1000.0]))
    assert far[0, 0] <= 0.19 + 0.02
