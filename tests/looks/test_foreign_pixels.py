"""Foreign pixels of a normalised slide keep their hue, and tissue beside them changes fully."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from support.foreign import Specked
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.slide_look import measure_look, slide_look
from wsi_pgdips.looks.weight import ForeignPixels, TissueWeight
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import Artifact, ByteArray
from wsi_pgdips.slide.reader import open_source


@pytest.fixture(scope="module")
def target(specked_layers: Layers) -> Reference:
    """A look of other colours, on other glass."""
    own = slide_look(specked_layers)
    rows = np.asarray(own.stain_matrix)[:, [1, 2, 0]]
    typical = 1.3 * np.linalg.norm(own.typical_od, axis=1, keepdims=True) * rows
    return Reference(
        "other",
        own.labels,
        own.colors,
        tuple(tuple(map(float, row)) for row in rows),  # type: ignore[arg-type]
        (0.05, 0.03, 0.04),
        tuple(1.3 * m for m in own.spectral_correction),
        tuple(tuple(map(float, row)) for row in typical),  # type: ignore[arg-type]
    )


def normalised(specked: Specked, layers: Layers, target: Reference, level: int = 0) -> ByteArray:
    with NormalizedSlide(specked.slide.path, layers, target) as ours:
        return np.asarray(ours.read_region((0, 0), level, ours.level_dimensions[level]))[..., :3]


def test_foreign_pixels_take_the_change_of_glass_alone(
    specked: Specked, specked_layers: Layers, target: Reference
) -> None:
    after = rgb_to_od(normalised(specked, specked_layers, target))
    before = rgb_to_od(specked.rgb)
    glass = np.asarray(target.background) - np.asarray(specked_layers.provenance["background"])
    inner = ndimage.binary_erosion(specked.pigment, iterations=5)
    assert inner.any()
    change = (after - before)[inner]
    np.testing.assert_allclose(np.median(change, 0), glass, atol=0.03)  # of seven counts
    above = after[inner] - np.asarray(target.background)
    own = before[inner] - np.asarray(specked_layers.provenance["background"])
    cosine = (above * own).sum(1) / np.linalg.norm(above, axis=1) / np.linalg.norm(own, axis=1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 4


def test_tissue_beside_them_changes_as_it_does_elsewhere(
    specked: Specked, specked_layers: Layers, target: Reference
) -> None:
    """No halo: as on the same slide without pigment."""
    after = rgb_to_od(normalised(specked, specked_layers, target))
    before = rgb_to_od(specked.rgb)
    with NormalizedSlide(
        specked.slide.path.with_name("tiny.tiff"), specked_layers, target
    ) as other:
        size = other.level_dimensions[0]
        clean = rgb_to_od(np.asarray(other.read_region((0, 0), 0, size))[..., :3])
    moved, without = after - before, clean - rgb_to_od(specked.clean)
    label = specked_layers.artifact().compute() > 0
    ring = ndimage.binary_dilation(label, iterations=14)
    ring &= ~ndimage.binary_dilation(label | specked.pigment, iterations=4)
    ring &= specked_layers.tissue().compute()
    assert ring.sum() > 500
    np.testing.assert_allclose(moved[ring], without[ring], atol=0.03)


def test_levels_and_windows_agree_at_foreign_pixels(
    specked: Specked, specked_layers: Layers, target: Reference
) -> None:
    whole = normalised(specked, specked_layers, target).astype(int)
    with NormalizedSlide(specked.slide.path, specked_layers, target) as ours:
        part = np.asarray(ours.read_region((270, 150), 0, (90, 80)))[..., :3].astype(int)
    difference = np.abs(part - whole[150:230, 270:360])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def label_of(shape: tuple[int, int], found: np.ndarray) -> ForeignPixels:
    side = 8

    def read(level: int, region: Region) -> ByteArray:
        step = 1 << level
        h, w = (-(-n // step) for n in found.shape)
        wide = np.zeros((h * step, w * step), np.uint8)
        wide[: found.shape[0], : found.shape[1]] = found
        return wide.reshape(h, step, w, step).max((1, 3))[region.slices]

    coarse = found.reshape(shape[0] // side, side, shape[1] // side, side).max((1, 3)) > 0
    shapes = [tuple(-(-n >> k) for n in shape) for k in range(4)]
    return ForeignPixels(coarse, float(side), read, shapes)  # type: ignore[arg-type]


def test_weights_are_zero_on_foreign_pixels_and_the_same_in_any_window() -> None:
    shape = (160, 240)
    found = np.zeros(shape, np.uint8)
    found[60:90, 100:150] = Artifact.FOREIGN
    mask = np.ones((20, 30), bool)
    plain = TissueWeight(mask, 8.0, 1.0, np.ones(mask.shape))
    weight = TissueWeight(mask, 8.0, 1.0, np.ones(mask.shape), label_of(shape, found))
    whole = weight.at(PixelGrid((0, 0), shape, (1, 1))).pixels()
    assert whole[:, 64:86, 104:146].max() == 0
    far = ~ndimage.binary_dilation(found > 0, iterations=5)
    np.testing.assert_array_equal(
        whole[:, far], plain.at(PixelGrid((0, 0), shape, (1, 1))).pixels()[:, far]
    )
    part = weight.at(PixelGrid((50, 90), (50, 70), (1, 1))).pixels()
    np.testing.assert_allclose(part, whole[:, 50:100, 90:160], atol=1e-6)
    away = weight.at(PixelGrid((100, 0), (40, 60), (1, 1))).pixels()
    assert away.min() == 1
    coarse = weight.at(PixelGrid((0, 0), (40, 60), (4, 4))).pixels()
    assert coarse[:, 16:21, 27:36].max() == 0
    assert coarse[:, :12].min() == 1


def test_saturated_pixels_change_as_tissue_does() -> None:
    found = np.full((160, 240), Artifact.SATURATED, np.uint8)
    mask = np.ones((20, 30), bool)
    weight = TissueWeight(mask, 8.0, 1.0, np.ones(mask.shape), label_of(found.shape, found))
    assert weight.at(PixelGrid((40, 40), (30, 30), (1, 1))).pixels().min() == 1


def test_a_look_is_measured_without_foreign_pixels(
    specked: Specked, specked_layers: Layers
) -> None:
    tissue = specked_layers.tissue().compute() | specked.pigment
    own = specked_layers.provenance
    index = (specked_layers.tiles[name].to_pylist() for name in ("tile_y", "tile_x"))
    tiles = sorted(zip(*index, strict=True))

    def look(path) -> dict:
        return measure_look(
            open_source(path, mpp_source=0.5, tile=256, block=1024),
            specked_layers.grid,
            specked_layers.fields,
            np.asarray(own["stain_matrix"], np.float32),
            lambda r: tissue[r.slices],
            tiles,
            np.asarray(own["prior"]["presence"], np.float32),
        )

    dirty, clean = map(look, (specked.slide.path, specked.slide.path.with_name("tiny.tiff")))
    np.testing.assert_allclose(dirty["typical_od"], clean["typical_od"], atol=0.005)
    top = [np.asarray(found["percentiles"]["99.9"]) for found in (dirty, clean)]
    np.testing.assert_allclose(*top, rtol=0.05)
