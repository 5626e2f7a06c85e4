"""Transfers between looks: identity, colours that must arrive, and no step anywhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.looks import TILE, amounts, look, vectors
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.match import Inside
from wsi_pgdips.looks.pixels import PixelGrid, planes_od, write_rgb
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import METHODS, constant_fields, glass_step, make_transfer
from wsi_pgdips.optics.physics import od_to_rgb, rgb_to_od
from wsi_pgdips.records import Fields


def drifting_fields(own: Reference, tiles=(3, 4), seed=0) -> Fields:
    """S and B that wander over the slide, on cells of half a tile."""
    rng = np.random.default_rng(seed)
    gy, gx = tiles
    s = own.stain_matrix + rng.normal(0, 0.04, (2 * gy, 2 * gx, own.n, 3)).astype(np.float32)
    s /= np.linalg.norm(s, axis=-1, keepdims=True)
    b = np.float32(own.background) + rng.normal(0, 0.01, (2 * gy, 2 * gx, 3)).astype(np.float32)
    m = np.float32(own.spectral_correction) * rng.uniform(0.8, 1.2, (gy, gx, own.n))
    m = m.astype(np.float32)
    inherited = np.zeros((gy, gx), bool)
    return Fields(s, m, b, s, m, b, np.ones_like(m), inherited)


def pixels(seed=0, shape=(90, 70)) -> np.ndarray:
    rgba = np.random.default_rng(seed).integers(0, 256, (*shape, 4), dtype=np.uint8)
    rgba[0, 0, :3], rgba[0, 1, :3] = 0, 255
    return rgba


def changed(transfer, rgba, place=None, foreign=0.0):
    place = place or PixelGrid((10, 20), rgba.shape[:2], (1, 1))
    out = rgba.copy()
    share = np.full(rgba.shape[:2], foreign, np.float32) if foreign else None
    transfer.recolour(out, place, share)
    return out


def test_pixels_survive_the_way_to_densities_and_back():
    rgba = pixels()
    out = np.zeros_like(rgba)
    write_rgb(planes_od(rgba), out)
    assert (out[..., :3] == rgba[..., :3]).all()
    assert (planes_od(rgba) == rgb_to_od(rgba[..., :3]).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_itself_is_the_identity_byte_for_byte(n):
    own = look(n)
    rgba = pixels()
    for reference in (None, own):
        transfer = make_transfer(constant_fields(own), own, reference, tile=TILE)
        assert (changed(transfer, rgba) == rgba).all()
    # under drifting fields, self takes nothing away that is the slide's own
    transfer = make_transfer(drifting_fields(own), own, None, tile=TILE)
    assert (changed(transfer, rgba) == rgba).all()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_alpha_is_left_alone_and_bytes_do_not_depend_on_the_window(n, method):
    own, other = look(n), look(n, 1.4, 0.1, 0.05)
    transfer = make_transfer(drifting_fields(own), own, other, tile=TILE, method=method)
    rgba = pixels()
    whole = changed(transfer, rgba)
    assert (whole[..., 3] == rgba[..., 3]).all()
    assert (whole[..., :3] != rgba[..., :3]).any()
    part = changed(transfer, rgba[30:60, 20:50], PixelGrid((40, 40), (30, 30), (1, 1)))
    difference = np.abs(part.astype(int) - whole[30:60, 20:50])
    assert difference.max() <= 1  # float32 sums in another order, at the edge of rounding
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("n", [1, 2, 3])
def test_colours_of_alike_tissue_arrive_and_glass_too(n):
    own, other = look(n), look(n, 1.4, 0.1, 0.05)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    od = np.vstack([own.tissue_od, np.zeros(3)]) + np.float32(own.background)
    wanted = np.vstack([other.tissue_od, np.zeros(3)]) + np.float32(other.background)
    rgb = np.ascontiguousarray(od_to_rgb(od)[None])
    found = changed(transfer, rgb)
    assert np.abs(found.astype(int) - od_to_rgb(wanted)[None].astype(int)).max() <= 3


def test_of_other_tissue_only_the_glass_is_changed():
    own, other = look(), look(2, 1.4, 0.1, 0.05, tissue=1)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    assert transfer.found.evidence < 0.01
    od = np.array(own.tissue_od) + np.float32(own.background)
    wanted = np.array(own.tissue_od) + np.float32(other.background)
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(od)[None]))
    assert np.abs(found.astype(int) - od_to_rgb(wanted)[None].astype(int)).max() <= 1


def test_colours_follow_the_field():
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    fields = drifting_fields(own)
    transfer = make_transfer(fields, own, other, tile=TILE)
    centre = PixelGrid((TILE / 4, TILE / 4e-3), (1, 14), (1, 1e-3))  # centre of a cell
    here = amounts() @ fields.stain_matrix[0, 0] + fields.background[0, 0]
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(here)[None]), centre)
    wanted = od_to_rgb(np.array(other.tissue_od) + np.float32(other.background))
    assert np.abs(found[0].astype(int) - wanted.astype(int)).max() <= 4


def test_the_published_method_is_the_equation():
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE, method="augmented")
    q = np.random.default_rng(0).uniform(0, 0.8, (2, 40))
    gain = np.array(other.spectral_correction) / own.spectral_correction
    residual = np.random.default_rng(1).normal(0, 0.004, (3, 40))
    residual -= np.linalg.pinv(own.stain_matrix) @ own.stain_matrix @ residual  # off the plane
    od = np.einsum("np,nc->cp", q, own.stain_matrix) + np.array(own.background)[:, None] + residual
    wanted = np.einsum("np,nc->cp", q * gain[:, None], other.stain_matrix)
    wanted += np.array(other.background)[:, None] + residual
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(od.T)[None]))
    exact = 255 * 10**-wanted.T
    # bytes in, so as much as half a count at the source's slope
    assert np.abs(found[0] - exact).max() <= 0.5 + 0.6 * (exact / od_to_rgb(od.T)).max() * 3


def test_amounts_can_be_kept():
    own, other = look(), look(2, 2.0, 0.1)
    kept = make_transfer(constant_fields(own), own, other, tile=TILE, keep_amounts=True)
    od = 0.4 * np.array(vectors()) + np.float32(own.background)
    found = changed(kept, np.ascontiguousarray(od_to_rgb(od)[None]))
    y = rgb_to_od(found[0]) - np.float32(other.background)
    assert np.allclose(np.linalg.norm(y, axis=1), 0.4, atol=0.02)
    assert np.allclose(y / np.linalg.norm(y, axis=1, keepdims=True), vectors(2, 0.1), atol=0.07)


@pytest.mark.parametrize("method", METHODS)
def test_of_foreign_pixels_only_the_glass_is_changed(method):
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    fields = drifting_fields(own)
    transfer = make_transfer(fields, own, other, tile=TILE, method=method)
    rgb = np.full((40, 50, 3), 200, np.uint8)
    place = PixelGrid((12, 30), (40, 50), (1, 1))
    found = changed(transfer, rgb, place, 1.0)
    b = place.field(fields.background, TILE / 2)
    wanted = planes_od(rgb) - b + np.float32(other.background)[:, None, None]
    assert np.abs(found - 255 * 10 ** -wanted.transpose(1, 2, 0)).max() < 0.6


def test_colours_outside_change_as_the_nearest_inside():
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    inside = transfer.found.inside
    y = np.array([[0.02, 0.5, 0.4], [1.3, 1.35, 1.32], [0.1, 0.15, 0.9]])  # orange, black, yellow
    near = inside.nearest(y.T).T
    assert (near.sum(1) <= inside.top + 1e-6).all()
    assert np.allclose(inside.nearest(near.T).T, near)
    assert np.allclose(inside.nearest(np.array(own.tissue_od).T).T, own.tissue_od, atol=1e-3)
    wanted = y + near @ transfer.change[0, 0].T + np.float32(other.background)
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(y + np.float32(own.background))[None]))
    light = y < 1
    assert np.abs(found[0] - 255 * 10**-wanted)[light].max() < 2
    assert found[0, 1].max() < 30  # black stays black


@given(st.lists(st.floats(-0.2, 3), min_size=3, max_size=3))
def test_the_nearest_colour_inside_is_inside(y):
    inside = Inside(1.0, (0.1, 0.1), (0.5, 0.4))
    near = inside.nearest(np.array(y))
    assert -1e-9 <= near.sum() <= 1 + 1e-9
    assert np.allclose(inside.nearest(near), near, atol=1e-6)


def test_a_guessed_white_point_moves_to_its_group_and_a_measured_one_does_not():
    own, group = look(glass=0.03), look(glass=0.02)
    measured = glass_step(own, group)
    guessed = glass_step(dataclasses.replace(own, glass_measured=False), group)
    assert np.abs(measured).max() <= 0.006
    assert np.allclose(guessed, -0.01, atol=1e-3)
    assert (glass_step(own, None) == 0).all()


@given(st.integers(0, 2**31), st.floats(0.3, 4))
def test_no_step_between_neighbours_of_one_colour(seed, size):
    """A picture of one colour stays free of edges wherever cells end, at any magnification."""
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    transfer = make_transfer(drifting_fields(own, seed=seed % 1000), own, other, tile=TILE)
    rgb = np.full((48, 64, 3), 120, np.uint8)
    place = PixelGrid((5 / size, 9 / size), rgb.shape[:2], (size, size))
    found = changed(transfer, rgb, place).astype(float)
    # fields move by 0.04 per cell of 32 px: some counts a pixel at most, where they move fastest
    for axis in (0, 1):
        assert np.abs(np.diff(found, axis=axis)).max() <= 4 * max(size, 1) + 2


def test_of_other_methods_or_stains_nothing_is_made():
    own = look()
    with pytest.raises(SettingsError, match="unknown method"):
        make_transfer(constant_fields(own), own, look(), tile=TILE, method="best")


def test_a_window_of_another_size_is_refused():
    transfer = make_transfer(constant_fields(look()), look(), look(2, 1.4), tile=TILE)
    with pytest.raises(ValueError, match="pixels of"):
        transfer.recolour(pixels(), PixelGrid((0, 0), (8, 8), (1, 1)))
    with pytest.raises(ValueError, match="pixels of"):
        transfer.recolour(pixels(), PixelGrid((0, 0), (90, 70), (1, 1)), np.ones((8, 8)))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_layers_alone_say_the_same(n):
    own, other = look(n), look(n, 0.6, 0.2, 0.05)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    place = PixelGrid((0, 0), (1, 600), (1, 1))
    q = np.linspace(0, 1, 600, dtype=np.float32) * np.ones((n, 1, 1), np.float32) / n
    alone = transfer.render(q, place)
    y = transfer.model(q, place) + np.float32(own.background)[:, None, None]
    rgb = np.ascontiguousarray(od_to_rgb(y.transpose(1, 2, 0)))
    wanted = od_to_rgb(alone.transpose(1, 2, 0))
    assert np.abs(changed(transfer, rgb, place).astype(int) - wanted).max() <= 3
    # no step on the way from glass to black
    assert np.abs(np.diff(alone, axis=-1)).max() < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_of_a_slide_that_knows_vectors_alone_glass_and_amounts_stay(method):
    bare = dataclasses.replace(look(), background=None, spectral_correction=None, tissue_od=())
    other = look(2, 1.4, 0.0, 0.05)
    transfer = make_transfer(constant_fields(bare), bare, other, tile=TILE, method=method)
    rgb = np.full((4, 4, 3), 244, np.uint8)
    assert (changed(transfer, rgb, foreign=1.0) == rgb).all()
    od = 0.4 * bare.stain_matrix
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(od)[None]))
    assert np.allclose(np.linalg.norm(rgb_to_od(found[0]), axis=1), 0.4, atol=0.02)


def test_fields_that_are_not_finite_never_reach_compiled_code():
    own = look()
    fields = constant_fields(own)
    fields.background[:] = np.nan
    transfer = make_transfer(fields, own, look(2, 1.4), tile=TILE)
    with pytest.raises(ValueError, match="not finite"):
        changed(transfer, pixels())
