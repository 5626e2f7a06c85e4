from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import Artifact
from wsi_pgdips.tiles.masks import file_digest, load_mask, load_roi
from wsi_pgdips.tiles.tissue import find_tissue

# 2 level-0 pixels an output pixel, 8 output pixels an overview pixel
GRID, SHAPE, SCALE = OutputGrid((1280, 1920), 2.0, 1.0, 256, 1024), (80, 120), 8.0
STEP = 16
GREEN = (30, 120, 80)
STAINS = load_stains("he").libraries


def ring(y0, x0, y1, x1):
    """A closed rectangle in level-0 (x, y), given in overview pixels."""
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return [[x * STEP, y * STEP] for x, y in corners]


def write(path, content):
    path.write_text(json.dumps(content) if not isinstance(content, str) else content)
    return path


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def expected(*boxes, holes=()):
    out = np.zeros(SHAPE, bool)
    for y0, x0, y1, x1 in boxes:
        out[y0:y1, x0:x1] = True
    for y0, x0, y1, x1 in holes:
        out[y0:y1, x0:x1] = False
    return out


def differs_only_at_edges(a, b):
    from scipy import ndimage

    edge = ndimage.binary_dilation(b, np.ones((3, 3))) & ~ndimage.binary_erosion(b, np.ones((3, 3)))
    return not ((a != b) & ~edge).any()


FORMS = {
    "polygon": polygon(ring(10, 20, 40, 60)),
    "feature": {"type": "Feature", "geometry": polygon(ring(10, 20, 40, 60)), "properties": {}},
    "multi": {"type": "MultiPolygon", "coordinates": [[ring(10, 20, 40, 60)]]},
    "collection": {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": None},
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}},
            {"type": "Feature", "geometry": polygon(ring(10, 20, 40, 60))},
        ],
    },
    "geometries": {"type": "GeometryCollection", "geometries": [polygon(ring(10, 20, 40, 60))]},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_geojson_forms_in_level_0_pixels(tmp_path, form):
    mask = load_mask(write(tmp_path / "m.geojson", form), GRID, SHAPE, SCALE)
    assert differs_only_at_edges(mask, expected((10, 20, 40, 60)))
    assert abs(mask.sum() - 30 * 40) <= 30 + 40 + 1  # PIL draws outlines, half a pixel at most


def test_holes_and_overlaps(tmp_path):
    form = {
        "type": "MultiPolygon",
        "coordinates": [
            [ring(5, 5, 60, 60), ring(20, 20, 40, 40)],
            [ring(25, 25, 35, 35)],  # an island in the hole
        ],
    }
    mask = load_mask(write(tmp_path / "m.json", form), GRID, SHAPE, SCALE)
    assert not mask[22:24, 22:38].any()
    assert mask[27:33, 27:33].all()
    assert mask[7:18, 7:58].all()


def test_what_reaches_beyond_the_slide_is_cut(tmp_path):
    form = polygon(ring(-500, -500, 40, 60))
    mask = load_roi(write(tmp_path / "r.geojson", form), GRID, SHAPE, SCALE)
    assert mask[:39, :59].all()
    assert not mask[42:].any()
    assert not mask[:, 62:].any()


BAD = {
    "not json": ("{", "not valid GeoJSON"),
    "a list": ([1, 2], "invalid structure"),
    "unknown type": ({"type": "Circle"}, "invalid structure"),
    "features missing": ({"type": "FeatureCollection"}, "invalid structure"),
    "short ring": (polygon([[0, 0], [9, 9]]), "invalid structure"),
    "no ring": (polygon(), "invalid structure"),
    "words": (polygon([["a", "b"], [1, 1], [2, 2]]), "invalid structure"),
    "infinite": ('{"type":"Polygon","coordinates":[[[NaN,0],[1,1],[2,2]]]}', "invalid structure"),
    "no area": ({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}, "holds no area"),
    "empty": ({"type": "FeatureCollection", "features": []}, "holds no area"),
    "outside": (polygon(ring(500, 500, 600, 600)), "marks nothing on this slide"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_geojson_that_cannot_be_used(tmp_path, content, message):
    path = write(tmp_path / "bad.geojson", content)
    for load in (load_mask, load_roi):
        with pytest.raises(SettingsError, match=message) as caught:
            load(path, GRID, SHAPE, SCALE)
        assert "bad.geojson" in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    for name in ("none.geojson", "none.png"):
        with pytest.raises(SettingsError, match="cannot be read"):
            load_mask(tmp_path / name, GRID, SHAPE, SCALE)
    with pytest.raises(SettingsError, match="cannot be read"):
        file_digest(tmp_path / "none.png")
    with pytest.raises(SettingsError, match="unknown format") as caught:
        load_mask(tmp_path / "mask.tiff", GRID, SHAPE, SCALE)
    assert ".tiff" in str(caught.value)


@pytest.mark.parametrize("factor", [0.5, 1, 4])
@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "I;16"])
def test_png_of_any_size_and_mode(tmp_path, factor, mode):
    truth = expected((10, 20, 40, 60))
    size = round(SHAPE[1] * factor), round(SHAPE[0] * factor)
    grey = Image.fromarray(truth.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    if mode == "I;16":
        picture = Image.fromarray((np.asarray(grey) > 0).astype(np.uint16))
    else:
        picture = grey.convert(mode)
    path = tmp_path / "mask.png"
    picture.save(path)
    np.testing.assert_array_equal(load_mask(path, GRID, SHAPE, SCALE), truth)


def test_png_that_cannot_be_used(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (120, 90), 255).save(path)
    with pytest.raises(SettingsError, match="aspect ratio"):
        load_mask(path, GRID, SHAPE, SCALE)
    Image.new("L", (120, 80), 0).save(path)
    with pytest.raises(SettingsError, match="marks nothing"):
        load_mask(path, GRID, SHAPE, SCALE)
    path.write_bytes(b"not a picture")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_mask(path, GRID, SHAPE, SCALE)


def test_digest(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(b"abc" * 1000)
    assert file_digest(path) == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_mask_file_is_not_dilated_and_other_tissue_is_not_glass(tmp_path, as_source, paint):
    scene = paint()
    drawn = np.zeros(scene.tissue.shape, bool)
    drawn[100:140, 140:180] = True
    path = tmp_path / "mask.png"
    Image.fromarray(drawn.astype(np.uint8)).save(path)
    found = find_tissue(as_source(scene.rgb), mask_file=path)
    assert found.flags == ("mask_from_file",)
    np.testing.assert_array_equal(found.mask, drawn)
    np.testing.assert_array_equal(found.core, drawn)
    assert found.glass.any()
    assert not (found.glass & scene.tissue).any()


def inked(paint) -> tuple[np.ndarray, np.ndarray]:
    """A disk of tissue on glass beside a stroke of a green pen; and where the stroke lies."""
    rgb = paint().rgb
    rng = np.random.default_rng(1)
    pen = np.zeros(rgb.shape[:2], bool)
    pen[20:220, 20:42] = True
    rgb[pen] = np.rint(np.array(GREEN) + rng.normal(0, 0.4, (pen.sum(), 3))).astype(np.uint8)
    return rgb, pen


def test_ink_and_fill_are_taken_out_of_a_mask_file(tmp_path, as_source, paint):
    rgb, pen = inked(paint)
    rgb[100:116, 150:166] = 0
    drawn = np.zeros(pen.shape, bool)
    drawn[60:180, 10:220] = True
    path = tmp_path / "mask.png"
    Image.fromarray(drawn.astype(np.uint8)).save(path)
    found = find_tissue(as_source(rgb), mask_file=path, stains=STAINS)
    ink, fill = (found.artifact == c for c in (Artifact.INK, Artifact.FILL))
    assert ink[pen].mean() > 0.95
    assert fill[100:116, 150:166].all()
    np.testing.assert_array_equal(found.mask, drawn & ~ink & ~fill)
    np.testing.assert_array_equal(found.core, found.mask)


def test_a_mask_of_ink_and_fill_alone_is_refused_by_their_area(tmp_path, as_source, paint):
    rgb, _ = inked(paint)
    rgb[100:116, 150:166] = 0
    drawn = np.zeros(rgb.shape[:2], bool)
    drawn[100:116, 24:40] = drawn[100:116, 150:166] = True
    path = tmp_path / "mask.png"
    Image.fromarray(drawn.astype(np.uint8)).save(path)
    with pytest.raises(SlideError, match="no tissue found") as caught:
        find_tissue(as_source(rgb), mask_file=path, stains=STAINS)
    said = str(caught.value)
    assert "fill, 0.0164 mm2 (50 % of the mask); ink, 0.0164 mm2 (50 % of the mask)" in said
    assert "--masker" not in said


def test_a_slide_of_ink_alone_says_so(as_source, paint):
    rgb, pen = inked(paint)
    clean = paint().tissue
    rgb[clean] = paint().rgb[:40, :40].reshape(-1, 3).mean(0).round().astype(np.uint8)
    rgb[clean] += np.random.default_rng(2).integers(0, 2, (clean.sum(), 3), np.uint8)
    with pytest.raises(SlideError, match="no tissue found") as caught:
        find_tissue(as_source(rgb), stains=STAINS)
    found = re.search(r"ink, ([\d.]+) mm2 \(([\d.]+) % of the slide\)", str(caught.value))
    assert found is not None
    assert float(found[1]) == pytest.approx(pen.sum() * 64e-6, rel=0.4)
    assert float(found[2]) == pytest.approx(100 * pen.mean(), rel=0.4)
    assert "fill" not in str(caught.value)


def test_a_region_of_interest_restricts_tissue_but_not_glass(tmp_path, as_source, paint):
    scene = paint()
    box = [[0, 0], [160 * 16, 0], [160 * 16, 240 * 16], [0, 240 * 16]]
    path = write(tmp_path / "roi.geojson", polygon(box))
    whole = find_tissue(as_source(scene.rgb))
    found = find_tissue(as_source(scene.rgb), roi_file=path)
    assert found.flags == ("roi",)
    np.testing.assert_array_equal(found.glass, whole.glass)
    np.testing.assert_array_equal(found.core[:, :159], whole.core[:, :159])
    assert not found.mask[:, 161:].any()
    corner = [[0, 0], [160, 0], [160, 160], [0, 160]]
    with pytest.raises(SlideError, match="no tissue found") as caught:
        find_tissue(as_source(scene.rgb), roi_file=write(path, polygon(corner)))
    assert "ROI" in str(caught.value)
