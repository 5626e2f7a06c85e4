from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.optics.physics import od_to_rgb, rgb_to_od
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.tiles.blocks import plan_blocks
from wsi_pgdips.tiles.gaps import palest
from wsi_pgdips.tiles.maskers import dark_mask
from wsi_pgdips.tiles.tissue import BACKGROUND_ASSUMED, dilated, filled, find_tissue
from wsi_pgdips.tiles.tissue_map import TissueMap

GLASSES = {
    "grey": (240, 240, 240),
    "tinted": (225, 235, 228),
    "yellowish": (245, 240, 215),
    "dim": (190, 190, 190),
    "nearly white": (253, 253, 252),
}


@pytest.mark.parametrize("glass", GLASSES.values(), ids=GLASSES.keys())
def test_tissue_is_found_on_any_glass_without_holes_in_pale_parts(as_source, paint, glass):
    scene = paint(glass)
    found = find_tissue(as_source(scene.rgb))
    assert found.flags == ()
    assert found.coverage > 0.999
    assert found.left_out == {}
    assert not (scene.tissue & ~found.core).sum() > 0.002 * scene.tissue.sum()
    assert found.core[scene.pale].all()
    assert not (found.core & ~dilated(scene.tissue, 2)).any()
    assert found.glass.sum() > 0.8 * (~dilated(scene.tissue, 6)).sum()


@pytest.mark.parametrize("masker", ["otsu", "morphological"])
def test_a_masker_of_tiatoolbox_decides_alone(as_source, paint, masker):
    scene = paint()
    found = find_tissue(as_source(scene.rgb), masker=masker)
    alone = dark_mask(scene.rgb, masker, 8.0)
    np.testing.assert_array_equal(found.core, filled(alone, 8.0))
    assert not found.core[scene.pale].all()
    # what it misses is told, and is no glass either
    assert found.coverage < 0.95
    assert found.left_out["pale"] > 0.1
    assert not (found.glass & scene.pale).any()


@pytest.mark.parametrize("overexposed", [False, True])
@pytest.mark.parametrize("amount", [0.02, 0.03, 0.06])
def test_very_pale_tissue_is_tissue_and_never_glass(as_source, amount, overexposed):
    rng = np.random.default_rng(0)
    rough = ndimage.gaussian_filter(rng.normal(size=(240, 320)), 1.0)
    y, x = np.mgrid[:240, :320]
    tissue = (y - 120) ** 2 + (x - 160) ** 2 < 100**2
    q = (amount * (1 + 0.4 * rough / rough.std())).clip(0) * tissue
    od = q[..., None] * np.array([0.65, 0.70, 0.29]) + (0.0 if overexposed else 0.01)
    counts = od_to_rgb(od) + rng.normal(0, 0.1, od.shape) + 2 * overexposed
    rgb = np.rint(counts).clip(0, 255).astype(np.uint8)
    found = find_tissue(as_source(rgb))
    assert ("glass_saturated" in found.flags) == overexposed
    assert found.core[tissue].mean() > 0.97
    assert not (found.glass & tissue).any()
    assert not (found.core & ~dilated(tissue, 2)).any()
    assert found.glass[~dilated(tissue, 8)].mean() > 0.9


def test_margins(as_source, paint):
    scene = paint()
    found = find_tissue(as_source(scene.rgb))
    np.testing.assert_array_equal(found.mask, dilated(found.core, 4))  # 32 um of 8 um pixels
    assert not (found.glass & dilated(scene.tissue, 4)).any()  # 40 um, of what is found
    np.testing.assert_array_equal(found.glass_od, rgb_to_od(scene.rgb))


def test_drifting_light_is_neither_tissue_nor_lost_glass(as_source, paint):
    scene = paint((210, 210, 210), drift=0.04)
    found = find_tissue(as_source(scene.rgb))
    assert not (found.core & ~dilated(scene.tissue, 2)).any()
    for corner in np.s_[:20, :20], np.s_[:20, -20:], np.s_[-20:, :20], np.s_[-20:, -20:]:
        assert found.glass[corner].mean() > 0.8


@pytest.mark.parametrize("fill", [255, 0])
def test_what_was_never_scanned_is_neither_tissue_nor_glass(as_source, paint, fill):
    scene = paint()
    rgb = scene.rgb.copy()
    rgb[:60], rgb[:, :50] = fill, fill
    padding = np.zeros(scene.tissue.shape, bool)
    padding[:60], padding[:, :50] = True, True
    found = find_tissue(as_source(rgb))
    assert not (found.mask & padding).any()
    assert not (found.glass & padding).any()
    assert found.glass.any()
    assert "fill" not in found.left_out  # what surrounds a scan
    assert found.core[scene.tissue & ~padding].mean() > 0.998
    level = np.median(found.glass_od[found.glass], axis=0)
    np.testing.assert_allclose(level, -np.log10(240 / 255), atol=0.002)


def test_saturated_glass_is_glass_and_flagged(as_source, paint):
    scene = paint((255, 255, 255))
    found = find_tissue(as_source(scene.rgb))
    assert found.flags == ("glass_saturated", BACKGROUND_ASSUMED)
    np.testing.assert_allclose(found.assumed, 0.02)
    np.testing.assert_allclose(found.raised, 0.02)  # all of it is the floor, nothing was seen
    assert found.core[scene.tissue].mean() > 0.99
    assert not (found.core & ~dilated(scene.tissue, 2)).any()
    assert found.glass.any()


def test_without_glass_nothing_is_split(as_source, paint):
    scene = paint()
    inside = np.s_[90:150, 110:210]  # dense and pale tissue, no glass
    assert scene.tissue[inside].all()
    assert scene.pale[inside].any()
    found = find_tissue(as_source(np.ascontiguousarray(scene.rgb[inside])))
    assert found.flags == ("no_glass", BACKGROUND_ASSUMED)
    assert found.core.all()
    assert found.mask.all()
    assert not found.glass.any()


def test_a_second_pane_of_glass_is_glass(as_source, paint):
    scene = paint((230, 225, 230))
    od = rgb_to_od(scene.rgb)
    od[:, 160:] += np.array([0.02, 0.03, 0.02])
    found = find_tissue(as_source(od_to_rgb(od)))
    assert (found.core & ~dilated(scene.tissue, 2)).mean() < 0.005
    assert found.core[scene.tissue].mean() > 0.99
    bare = ~dilated(scene.tissue, 8)
    assert found.glass[:, 170:][bare[:, 170:]].mean() > 0.9
    assert found.glass[:, :150][bare[:, :150]].mean() > 0.9


def test_pale_tissue_of_a_stain_s_colour_is_no_pane_of_glass(as_source, paint):
    scene = paint((230, 225, 230))
    od = rgb_to_od(scene.rgb)
    od[:, :40] += np.array([0.0, 0.12, 0.0])
    found = find_tissue(as_source(od_to_rgb(od)))
    assert not found.glass[:, :38].any()


def test_tinted_glass_is_believed_where_there_is_much_of_it(as_source, paint):
    scene = paint((212, 194, 154))
    found = find_tissue(as_source(scene.rgb))
    assert found.flags == ()
    level = np.median(found.glass_od[found.glass], axis=0)
    np.testing.assert_allclose(level, rgb_to_od(np.uint8([[[212, 194, 154]]]))[0, 0], atol=0.003)


def gappy(lumens: int, seed: int = 0):
    """1024 x 1024 pixels of 2 um: rough tissue without a border of glass, with round gaps."""
    rng = np.random.default_rng(seed)
    amount = 0.35 + 0.1 * ndimage.gaussian_filter(rng.normal(size=(1024, 1024)), 1.5) / 0.19
    y, x = np.mgrid[:1024, :1024]
    for cy, cx in rng.uniform(30, 990, (lumens, 2)):
        amount[(y - cy) ** 2 + (x - cx) ** 2 < 10**2] = 0
    glass = np.array([0.04, 0.06, 0.03])
    rgb = od_to_rgb(amount.clip(0)[..., None] * np.array([0.65, 0.70, 0.29]) + glass)
    noisy = rgb + rng.normal(0, 0.5, rgb.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), glass


def test_glass_in_gaps_of_the_tissue_is_seen_on_a_finer_overview():
    rgb, glass = gappy(40)
    found = find_tissue(ArraySource(rgb, mpp=2.0, tile=256, block=1024))
    assert found.flags == ("glass_in_lumens",)
    assert found.core.all()
    np.testing.assert_allclose(np.median(found.glass_od[found.glass], 0), glass, atol=0.003)


def test_without_gaps_no_glass_is_made_up():
    rgb, glass = gappy(0)
    found = find_tissue(ArraySource(rgb, mpp=2.0, tile=256, block=1024))
    assert found.flags == ("no_glass", BACKGROUND_ASSUMED)
    assert not found.glass.any()
    nothing = np.zeros(rgb.shape[:2], bool)
    # pale tissue bounds it from above: half of that is between none and all
    np.testing.assert_allclose(found.assumed, palest(rgb, nothing, False) / 2)
    assert (glass < palest(rgb, nothing, False)).all()
    assert (found.assumed > 0.02).all()
    np.testing.assert_array_equal(found.raised, 0)


def test_flat_places_are_no_glass_where_the_tissue_is_brighter():
    rgb, glass = gappy(40)
    od = rgb_to_od(rgb)
    rough = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(100, 1024)), 4)
    od[:100] = 0.6 * glass + 0.01 * (rough / rough.std()).clip(-1.5, 1.5)[..., None]
    found = find_tissue(ArraySource(od_to_rgb(od), mpp=2.0, tile=256, block=1024))
    assert found.flags == ("no_glass", BACKGROUND_ASSUMED)


def test_fill_has_no_say_in_the_palest():
    rgb, _ = gappy(0)
    filled = rgb.copy()
    filled[:100], filled[-100:] = 255, 0
    nothing = np.zeros(rgb.shape[:2], bool)
    expected = palest(rgb[100:-100], nothing[100:-100], False)
    np.testing.assert_array_equal(palest(filled, nothing, False), expected)
    np.testing.assert_array_equal(palest(filled, nothing, True), 0)
    grey = rgb.copy()
    grey[:100] = 250
    fill = nothing.copy()
    fill[:100] = True
    expected = palest(rgb[100:], nothing[100:], True)
    np.testing.assert_array_equal(palest(grey, fill, True), expected)


def test_holes_are_filled_up_to_a_size(as_source, paint):
    scene = paint()
    rgb = scene.rgb.copy()
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    small = (y - 70) ** 2 + (x - 160) ** 2 <= 8**2  # 130 um
    large = (y - 165) ** 2 + (x - 160) ** 2 <= 18**2  # 290 um, truly glass
    rgb[small | large] = 240
    found = find_tissue(as_source(rgb))
    assert found.core[small].all()
    assert not found.core[large].any(where=(y[large] - 165) ** 2 + (x[large] - 160) ** 2 < 14**2)


def test_dust_is_left_out_but_a_small_piece_is_kept(as_source, paint):
    rgb = paint().rgb.copy()
    rgb[10:12, 10:12] = 100  # 16 um
    rgb[10:17, 290:297] = np.random.default_rng(0).integers(90, 110, (7, 7, 1))  # 56 um
    found = find_tissue(as_source(rgb))
    assert not found.mask[:30, :30].any()
    assert found.core[10:17, 290:297].all()
    assert found.left_out == {"dust": pytest.approx(4 * 64e-6)}
    assert found.flags == ()


def smear() -> np.ndarray:
    """An overview of 8 um pixels with single cells of four pixels on glass."""
    rgb = 240 + np.random.default_rng(0).normal(0, 0.4, (240, 320, 3))
    for y in range(6, 230, 14):
        for x in range(6, 310, 12):
            rgb[y : y + 2, x : x + 2] = (150, 110, 170)
            rgb[y, x : x + 2] += 40
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def test_cells_of_a_smear_are_dust_beside_tissue_and_kept_in_cytology(as_source, paint):
    rgb = smear()
    cells = rgb[..., 1] < 200
    with pytest.raises(SlideError, match="no tissue found") as caught:
        find_tissue(as_source(rgb))
    assert "--specimen cytology" in str(caught.value)
    found = find_tissue(as_source(rgb), specimen="cytology")
    assert found.mask[cells].all()
    assert found.coverage > 0.99
    assert "dust" not in found.left_out
    # beside a small piece of tissue
    rgb[20:40, 20:40] = paint().rgb[60:80, 120:140]
    found = find_tissue(as_source(rgb))
    assert {"perhaps_cytology", "tissue_left_out"} <= set(found.flags)
    assert found.coverage < 0.9
    assert found.left_out["dust"] == pytest.approx(cells.sum() * 64e-6, rel=0.3)
    assert "perhaps_cytology" not in find_tissue(as_source(rgb), specimen="cytology").flags


def test_no_tissue_is_an_error_with_a_way_out(as_source):
    rng = np.random.default_rng(0)
    blank = (240 + rng.normal(0, 0.5, (80, 90, 3))).round().astype(np.uint8)
    with pytest.raises(SlideError, match="no tissue found") as caught:
        find_tissue(as_source(blank))
    assert "--masker" in str(caught.value)
    assert "--mask" in str(caught.value)
    with pytest.raises(SlideError, match="no tissue found") as caught:
        find_tissue(as_source(np.zeros((80, 90, 3), np.uint8)))
    assert "fill, 0.461 mm2 (100 % of the slide)" in str(caught.value)
    with pytest.raises(SlideError, match="no tissue found"):
        find_tissue(as_source(np.full((80, 90, 3), 255, np.uint8)))


def test_unknown_masker(as_source, paint):
    with pytest.raises(SettingsError, match="masker is unknown"):
        find_tissue(as_source(paint().rgb), masker="watershed")


def random_map(seed: int, scale: float, density: float) -> TissueMap:
    rng = np.random.default_rng(seed)
    core = rng.random((13, 17)) < density
    shape = round(13 * scale) - 1, round(17 * scale) - 2
    od = np.zeros((13, 17, 3), np.float32)
    return TissueMap(dilated(core, 1), core, ~core, od, scale, shape)


maps = st.builds(
    random_map,
    st.integers(0, 1000),
    st.sampled_from([1.0, 3.0, 7.9, 16.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
regions = st.builds(
    Region, st.integers(-40, 250), st.integers(-40, 300), st.integers(1, 90), st.integers(1, 90)
)


@given(maps, regions)
def test_a_window_is_the_mask_at_the_centre_of_each_pixel(tissue, region):
    got = tissue.window(region.y, region.x, region.h, region.w)
    assert got.shape == (region.h, region.w)
    for i in {0, region.h // 2, region.h - 1}:
        for j in {0, region.w // 2, region.w - 1}:
            y, x = region.y + i, region.x + j
            inside = 0 <= y < tissue.shape[0] and 0 <= x < tissue.shape[1]
            index = int((y + 0.5) / tissue.scale), int((x + 0.5) / tissue.scale)
            assert got[i, j] == (inside and tissue.mask[index])


@given(maps, regions)
def test_fraction_and_touch_agree_with_the_windows(tissue, region):
    window = tissue.window(region.y, region.x, region.h, region.w)
    assert tissue.touches(region) == window.any()
    undilated = TissueMap(
        tissue.core, tissue.core, tissue.glass, tissue.glass_od, tissue.scale, tissue.shape
    )
    share = undilated.window(region.y, region.x, region.h, region.w).mean()
    assert tissue.fraction(region) == pytest.approx(share)


@given(maps, maps, st.floats(0, 4), st.floats(0, 4))
def test_dilation_is_monotone(a, b, r, s):
    small, large = a.core & b.core, a.core
    lower, upper = min(r, s), max(r, s)
    assert (large <= dilated(large, lower)).all()
    assert (dilated(small, r) <= dilated(large, r)).all()
    assert (dilated(large, lower) <= dilated(large, upper)).all()


@given(maps)
def test_filling_only_adds(tissue):
    assert (tissue.core <= filled(tissue.core, 8.0)).all()


@pytest.mark.realslide
@pytest.mark.parametrize(
    ("name", "mpp"), [("CMU-1-Small-Region.svs", 0.499), ("TCGA-CR-7395-01A-01-TS1.svs", 0.25)]
)
def test_99_percent_of_dense_pieces_lie_in_rendered_tiles(data_dir, name, mpp, as_source):
    import openslide
    from scipy import ndimage

    factor, side = round(0.5 / mpp), round(8 / mpp)
    with openslide.OpenSlide(str(Path(data_dir) / "slides" / name)) as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    h, w = rgb.shape[0] // side, rgb.shape[1] // side
    pooled = rgb[: h * side, : w * side].reshape(h, side, w, side, 3).mean((1, 3))
    source = as_source(np.rint(pooled).astype(np.uint8))
    found = find_tissue(source)
    grid = OutputGrid((h * side, w * side), float(factor), mpp * factor, 256, 1024)
    assert grid.shape == source.grid.shape
    rendered = np.zeros(grid.tile_grid, bool)
    for plan in plan_blocks(grid, found, 0.05):
        rendered[tuple(np.transpose(plan.render))] = True
    tiles = np.kron(rendered, np.ones((16, 16), bool))[:h, :w]  # 16 overview pixels a tile
    glass = np.median(found.glass_od[found.glass], axis=0).sum()
    for offset in (0.0, glass):
        dense = found.glass_od.sum(2) - offset > 0.3
        labels, _ = ndimage.label(dense, np.ones((3, 3)))
        wide = [False]
        for rows, columns in ndimage.find_objects(labels):
            wide.append(max(rows.stop - rows.start, columns.stop - columns.start) * 8 > 50)
        pieces = np.array(wide)[labels]
        assert pieces.sum() > 1000
        assert tiles[pieces].mean() >= 0.99


def test_the_maskers_of_tiatoolbox_leave_the_log_alone_and_keep_the_threshold_itself():
    import logging

    before = logging.getLogger().handlers[:], logging.getLogger().level
    rgb = np.full((60, 60, 3), 240, np.uint8)
    rgb[20:40, 20:40] = 120  # two grey levels: Otsu's threshold is 120 itself
    np.testing.assert_array_equal(dark_mask(rgb, "otsu", 8.0), rgb[..., 0] == 120)
    assert (logging.getLogger().handlers, logging.getLogger().level) == before


@pytest.mark.parametrize("glass", [(150, 150, 150), (80, 80, 80)], ids=["dark", "very dark"])
def test_dark_glass_is_glass_if_nothing_is_brighter(as_source, paint, glass):
    scene = paint(glass)
    found = find_tissue(as_source(scene.rgb))
    assert found.flags == ()
    assert found.core[scene.tissue].mean() > 0.99
    assert not (found.core & ~dilated(scene.tissue, 2)).any()
    level = np.median(found.glass_od[found.glass], axis=0)
    np.testing.assert_allclose(level, scene.background[0, 0], atol=0.005)
    # flat and dark amid something brighter, as a pen stroke is
    rgb = scene.rgb.copy()
    rgb[:40] = np.random.default_rng(0).integers(180, 240, (40, 320, 1))
    assert "no_glass" in find_tissue(as_source(rgb)).flags
