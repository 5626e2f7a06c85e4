"""From one look to another: what must not change, what must arrive, and no step anywhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.frame import (
    MAX_OFF_PLANE,
    keep_black,
    linear_map,
    off_plane_gain,
    typical_pair,
)
from wsi_pgdips.looks.pixels import PixelGrid, planes_od, write_rgb
from wsi_pgdips.looks.recompose import single_stain
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.slide_look import measure_sample
from wsi_pgdips.looks.transfer import (
    METHODS,
    constant_fields,
    make_transfer,
)
from wsi_pgdips.looks.weight import even_weight
from wsi_pgdips.optics.physics import od_to_rgb, rgb_to_od
from wsi_pgdips.records import Fields

TILE = 64


def unit(row):
    return tuple(np.asarray(row, float) / np.linalg.norm(row))


def look(n=2, scale=1.0, tilt=0.0, glass=0.02, name="look") -> Reference:
    vectors = [(0.65, 0.70 + tilt, 0.29), (0.27 + tilt, 0.57, 0.78), (0.15, 0.9, 0.2 + tilt)][:n]
    typical = [tuple(scale * 0.5 * np.array(unit(v))) for v in vectors]
    return Reference(
        name,
        ("A", "B", "C")[:n],
        ("ff0000", "00ff00", "0000ff")[:n],
        tuple(unit(v) for v in vectors),
        (glass, glass + 0.01, glass),
        tuple(scale * m for m in (1.2, 1.5, 0.9)[:n]),
        tuple(typical),
    )


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


def changed(transfer, rgba, place=None, weight=1.0):
    place = place or PixelGrid((10, 20), rgba.shape[:2], (1, 1))
    out = rgba.copy()
    transfer.recolour(out, place, even_weight(weight, weight, rgba.shape[:2]))
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
def test_typical_colours_arrive_and_glass_too(n):
    own, other = look(n), look(n, 1.4, 0.1, 0.05)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    od = np.vstack([own.typical_od, np.zeros(3)]) + np.float32(own.background)
    wanted = np.vstack([other.typical_od, np.zeros(3)]) + np.float32(other.background)
    rgb = np.ascontiguousarray(od_to_rgb(od)[None])
    found = changed(transfer, rgb)
    assert np.abs(found.astype(int) - od_to_rgb(wanted)[None].astype(int)).max() <= 2


def test_typical_colours_follow_the_field():
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    fields = drifting_fields(own)
    transfer = make_transfer(fields, own, other, tile=TILE)
    centre = PixelGrid((TILE / 4, TILE / 4), (1, 2), (1, 1))  # about the centre of the first cell
    half = 0.5 * fields.stain_matrix[0, 0] + fields.background[0, 0]
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(half)[None]), centre)
    wanted = od_to_rgb(other.typical_od + np.float32(other.background))
    assert np.abs(found[0].astype(int) - wanted.astype(int)).max() <= 3


@pytest.mark.parametrize("method", ["augmented", "percentile", "stains"])
def test_published_methods_are_the_equation(method):
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    own = dataclasses.replace(own, percentiles={99.0: (1.0, 1.1)})
    other = dataclasses.replace(other, percentiles={99.0: (1.3, 1.2)})
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE, method=method)
    q = np.random.default_rng(0).uniform(0, 0.8, (2, 40))
    gain = np.array(other.spectral_correction) / own.spectral_correction
    if method == "percentile":
        gain = np.array([1.3, 1.2 / 1.1])
    residual = np.random.default_rng(1).normal(0, 0.004, (3, 40))
    residual -= np.linalg.pinv(own.stain_matrix) @ own.stain_matrix @ residual  # off the plane
    od = np.einsum("np,nc->cp", q, own.stain_matrix) + np.array(own.background)[:, None] + residual
    if method == "stains":
        wanted = np.einsum("np,nc->cp", q, other.stain_matrix)
        wanted += np.array(own.background)[:, None] + residual
    else:
        wanted = np.einsum("np,nc->cp", q * gain[:, None], other.stain_matrix)
        wanted += np.array(other.background)[:, None] + residual
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(od.T)[None]))
    exact = 255 * 10**-wanted.T
    # bytes in, so as much as half a count at the source's slope
    assert np.abs(found[0] - exact).max() <= 0.5 + 0.6 * (exact / od_to_rgb(od.T)).max() * 3


def test_amounts_can_be_kept():
    own, other = look(), look(2, 2.0, 0.1)
    kept = make_transfer(constant_fields(own), own, other, tile=TILE, keep_amounts=True)
    od = own.typical_od + np.float32(own.background)
    found = changed(kept, np.ascontiguousarray(od_to_rgb(od)[None]))
    y = rgb_to_od(found[0]) - np.float32(other.background)
    assert np.allclose(np.linalg.norm(y, axis=1), 0.5, atol=0.02)
    direction = other.typical_od / np.linalg.norm(other.typical_od, axis=1, keepdims=True)
    assert np.allclose(y / np.linalg.norm(y, axis=1, keepdims=True), direction, atol=0.02)


@pytest.mark.parametrize("method", ["typical", "augmented"])
def test_off_tissue_only_the_glass_is_replaced(method):
    own, other = look(), look(2, 1.4, 0.1, 0.05)
    fields = drifting_fields(own)
    transfer = make_transfer(fields, own, other, tile=TILE, method=method)
    rgb = np.full((40, 50, 3), 200, np.uint8)
    place = PixelGrid((12, 30), (40, 50), (1, 1))
    found = changed(transfer, rgb, place, 0.0)
    b = place.field(fields.background, TILE / 2)
    wanted = planes_od(rgb) - b + np.float32(other.background)[:, None, None]
    assert np.abs(found - 255 * 10 ** -wanted.transpose(1, 2, 0)).max() < 0.6


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
    with pytest.raises(ValueError, match="pixels on"):
        transfer.recolour(
            pixels(), PixelGrid((0, 0), (8, 8), (1, 1)), even_weight(1.0, 1.0, (8, 8))
        )


def test_a_stain_that_is_not_there_keeps_its_amount():
    own = dataclasses.replace(look(), typical=(look().typical[0], None))
    source, target = typical_pair(own, look(2, 1.4, 0.1))
    assert np.linalg.norm(source[1]) == pytest.approx(np.linalg.norm(target[1]), rel=1e-5)
    assert np.allclose(source[1] / np.linalg.norm(source[1]), own.stain_matrix[1], atol=1e-5)
    bare = dataclasses.replace(look(2, 1.4, 0.1), typical=(), spectral_correction=None)
    source, target = typical_pair(look(), bare)
    assert np.allclose(np.linalg.norm(source, axis=1), np.linalg.norm(target, axis=1))


def test_what_is_typical_of_background_staining_is_not_taken_for_the_stain():
    """DAB in one focus: its typical pixels are pale, but its M is as dark as the reference's."""
    pale = dataclasses.replace(look(), typical=(look().typical[0], (0.05, 0.06, 0.06)))
    source, target = typical_pair(pale, look())
    assert np.linalg.norm(target[1]) == pytest.approx(np.linalg.norm(source[1]), rel=1e-5)
    assert np.allclose(source[1] / np.linalg.norm(source[1]), pale.stain_matrix[1], atol=1e-5)
    assert np.allclose(source[0], look().typical_od[0])


def test_typical_colours_are_medians_of_a_stain_s_own_pixels():
    rng = np.random.default_rng(0)
    rows = look().stain_matrix
    amounts = np.zeros((2, 9000), np.float32)
    amounts[0, :3000] = rng.uniform(0.4, 0.6, 3000)
    amounts[1, 3000:6000] = rng.uniform(0.7, 0.9, 3000)
    amounts[:, 6000:] = 0.01
    od = np.einsum("np,nc->cp", amounts, rows) + 0.02
    around = amounts.sum(0)
    found = measure_sample(od, amounts, np.full(2, 0.05), around)
    assert np.allclose(found["typical_od"][0], 0.5 * rows[0] + 0.02, atol=0.01)
    assert np.allclose(found["typical_od"][1], 0.8 * rows[1] + 0.02, atol=0.01)
    assert found["percentiles"]["50"] == pytest.approx(np.median(amounts, 1).tolist(), abs=1e-3)
    # twice as much glass, or half as many cells: the same look
    fewer = np.r_[0:1500, 3000:9000]
    again = measure_sample(od[:, fewer], amounts[:, fewer], np.full(2, 0.05), around[fewer])
    assert np.allclose(again["typical_od"], found["typical_od"], atol=0.01)
    absent = measure_sample(od[:, :3000], amounts[:, :3000], np.full(2, 0.05), around[:3000])
    assert absent["typical_od"][1] is None
    nothing = measure_sample(np.zeros((3, 0)), np.zeros((2, 0)), np.full(2, 0.05), np.zeros(0))
    assert nothing["typical_od"] == [None, None]
    assert nothing["palest_od"] is None


def test_what_is_palest_in_tissue_leaves_gaps_out():
    rng = np.random.default_rng(0)
    amounts = np.zeros((2, 9000), np.float32)
    amounts[0, 6000:] = rng.uniform(0.4, 0.6, 3000)
    od = np.einsum("np,nc->cp", amounts, look().stain_matrix)
    od[:, 3000:] += np.array([0.03, 0.02, 0.025])[:, None]  # under all tissue, not under gaps
    around = np.repeat([0.0, 0.2, 0.4], 3000)
    found = measure_sample(od, amounts, np.full(2, 0.05), around)
    assert np.allclose(found["palest_od"], [0.03, 0.02, 0.025], atol=1e-3)


def test_what_is_palest_arrives_within_bounds_and_typical_colours_all_the_same():
    own = dataclasses.replace(look(), palest=(0.030, 0.025, 0.020))
    other = dataclasses.replace(look(2, 1.4, 0.1, 0.05), palest=(0.035, 0.030, 0.200))
    fields = constant_fields(own)
    transfer = make_transfer(fields, own, other, tile=TILE)
    od = np.vstack([own.typical_od, own.palest]) + np.float32(own.background)
    found = changed(transfer, np.ascontiguousarray(od_to_rgb(od)[None]))[0]
    glass = np.float32(other.background)
    wanted = od_to_rgb(other.typical_od + glass)
    assert np.abs(found[:2].astype(int) - wanted.astype(int)).max() <= 2
    palest = od_to_rgb(np.array(other.palest, np.float32) + glass)
    assert np.abs(found[2, :2].astype(int) - palest[:2]).max() <= 2  # r and g arrive
    assert int(found[2, 2]) - int(palest[2]) > 30  # 0.2 OD would be another tissue
    outside = changed(transfer, np.ascontiguousarray(od_to_rgb(od)[None]), weight=0.0)[0]
    kept = make_transfer(fields, own, other, tile=TILE, keep_amounts=True)
    assert (outside == changed(kept, np.ascontiguousarray(od_to_rgb(od)[None]), weight=0.0)).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_black_stays_black_and_layers_alone_say_the_same(n):
    own, other = look(n), look(n, 0.6, 0.2, 0.05)
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    glass = np.float32(own.background)
    black = glass + np.float32([1.3, 1.35, 1.32])
    out = changed(transfer, np.ascontiguousarray(od_to_rgb(black[None])[None]))
    y = rgb_to_od(out[0, 0]) - np.float32(other.background)
    assert np.ptp(y) < 0.06  # no hue
    assert y.mean() < 1.2  # but as pale as the reference is
    # every OD on the way there: no step
    ramp = np.linspace(0.3, 1.6, 600, dtype=np.float32)[:, None] * np.float32([0.9, 1.0, 1.1])
    mapped = ramp @ (transfer.change[0, 0].T + np.eye(3, dtype=np.float32))
    kept = keep_black(ramp.T[:, None], mapped.T[:, None])
    assert np.abs(np.diff(kept, axis=-1)).max() < 0.02
    place = PixelGrid((0, 0), (1, 600), (1, 1))
    q = np.linspace(0, 2, 600, dtype=np.float32) * np.ones((n, 1, 1), np.float32)
    alone = transfer.render(q, place, even_weight(1.0, 0.0, (1, 600)))
    y = transfer.model(q, place) + glass[:, None, None]
    rgb = np.ascontiguousarray(od_to_rgb(y.transpose(1, 2, 0)))
    found = changed(transfer, rgb, place)
    light = (y < 1.2).all(0)[0]  # beyond, a count is a large step of OD
    wanted = od_to_rgb(alone.transpose(1, 2, 0))
    assert np.abs(found.astype(int) - wanted)[:, light].max() <= 5


def test_what_is_no_solid_tissue_is_not_lifted():
    glass = np.full((1, 1, 3), 240, np.uint8)
    clear = tuple(float(v) for v in rgb_to_od(glass[0, 0]))
    own = dataclasses.replace(look(), background=clear, palest=(0.030, 0.025, 0.020))
    other = dataclasses.replace(look(2, 1.4, 0.1, 0.05), palest=(0.035, 0.030, 0.025))
    transfer = make_transfer(constant_fields(own), own, other, tile=TILE)
    place = PixelGrid((0, 0), (1, 1), (1, 1))
    for solid in (0.0, 1.0):
        found = glass.copy()
        transfer.recolour(found, place, even_weight(1.0, solid, (1, 1)))
        wanted = np.float32(other.background) + np.float32(solid) * transfer.lift
        assert np.abs(found[0, 0] - 255 * 10**-wanted).max() < 0.6
        alone = transfer.render(np.zeros((2, 1, 1)), place, even_weight(1.0, solid, (1, 1)))
        assert np.allclose(alone[:, 0, 0], wanted, atol=1e-6)
    assert np.abs(transfer.lift).max() > 0.003


def test_colours_spread_off_the_plane_of_two_stains_as_the_reference_s_do():
    own = dataclasses.replace(look(), off_plane=0.01)
    other = dataclasses.replace(look(2, 1.4, 0.1, 0.05), off_plane=0.02)
    pair = typical_pair(own, other)
    fields = constant_fields(own)
    maps = make_transfer(fields, own, other, tile=TILE).change[0, 0] + np.eye(3)
    normal, wanted = (np.cross(*rows) for rows in pair)
    normal, wanted = normal / np.linalg.norm(normal), wanted / np.linalg.norm(wanted)
    assert np.allclose(maps @ normal, 2.0 * wanted, atol=2e-3)
    assert np.allclose(maps @ pair[0].T, pair[1].T, atol=2e-3)  # the stains' own are as before
    # blood on one slide is not the other camera's colour
    odd = dataclasses.replace(other, off_plane=0.2)
    assert off_plane_gain(own, odd, *pair) == pytest.approx(1.4 * MAX_OFF_PLANE, rel=1e-3)
    kept = make_transfer(fields, own, odd, tile=TILE, keep_amounts=True)
    plain = make_transfer(fields, own, look(2, 1.4, 0.1, 0.05), tile=TILE, keep_amounts=True)
    assert np.allclose(kept.change, plain.change)
    assert off_plane_gain(own, look(), *pair) is None


@pytest.mark.parametrize(("degrees", "believed"), [(4, 0.0257), (9.936, 0.5), (40, 0.996)])
def test_typical_colours_that_lie_close_say_little_of_what_lies_beyond(degrees, believed):
    """Two stains, one of which is to be four times as dark: how much of that is done."""
    half = np.radians(degrees) / 2
    middle, across = np.array([0.6, 0.64, 0.48]), np.array([0.8, -0.48, -0.36])
    rows = np.stack([np.cos(half) * middle + sign * np.sin(half) * across for sign in (1, -1)])
    target = np.array([[1.0], [4.0]]) * rows
    # both by the gain they share but for what their difference says
    said = (target[0] - target[1]) / (2 * np.sin(half)) - 2 * across
    turned = linear_map(rows, target) - 2 * np.eye(3)
    assert np.linalg.norm(turned @ across) / np.linalg.norm(said) == pytest.approx(
        believed, rel=0.02
    )
    # what both are, is as it was said
    assert np.allclose(linear_map(rows, target) @ rows.sum(0), target.sum(0), rtol=1e-3)


def test_the_spread_off_the_plane_is_of_tissue_and_not_of_its_tails():
    rng = np.random.default_rng(0)
    rows = look().stain_matrix
    amounts = np.zeros((2, 8000), np.float32)
    amounts[0, :4000], amounts[1, 4000:] = 0.5, 0.5
    normal = np.cross(*rows) / np.linalg.norm(np.cross(*rows))
    off = rng.normal(0, 0.02, 8000)
    off[::100] = 1.0  # a pigment
    od = np.einsum("np,nc->cp", amounts, rows) + normal[:, None] * off
    found = measure_sample(od, amounts, np.full(2, 0.05), amounts.sum(0))
    assert found["off_plane_od"] == pytest.approx(0.02, rel=0.1)
    alone = measure_sample(
        od[:, :4000], amounts[:, :4000], np.full(2, 0.05), amounts[:, :4000].sum(0)
    )
    assert alone["off_plane_od"] is None  # one colour has no plane


@pytest.mark.parametrize("method", ["typical", "augmented"])
def test_of_a_slide_that_knows_vectors_alone_glass_and_amounts_stay(method):
    bare = dataclasses.replace(look(), background=None, spectral_correction=None, typical=())
    other = look(2, 1.4, 0.0, 0.05)
    transfer = make_transfer(constant_fields(bare), bare, other, tile=TILE, method=method)
    rgb = np.full((4, 4, 3), 244, np.uint8)
    assert (changed(transfer, rgb, weight=0.0) == rgb).all()
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


def test_a_view_of_one_stain_knows_the_ways_too():
    own = look()
    with pytest.raises(SettingsError, match="unknown method"):
        single_stain(constant_fields(own), own, None, "A", tile=TILE, method="best")
