"""Foreign pixels of a normalised slide keep their hue, and tissue beside them changes fully."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from support.foreign import Specked
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.foreign_pixels import ForeignPixels, packed, unpacked
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.looks.reference import Reference, rows_of
from wsi_pgdips.looks.slide_look import measure_look, slide_look
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import Artifact, ByteArray
from wsi_pgdips.slide.reader import open_source


@pytest.fixture(scope="module")
def target(specked_layers: Layers) -> Reference:
    """A look of other colours, on other glass, of the same tissue."""
    own = slide_look(specked_layers)
    return dataclasses.replace(
        own,
        background=(0.05, 0.03, 0.04),
        matrix=rows_of(np.asarray(own.stain_matrix)[:, [1, 2, 0]]),
        tissue_od=rows_of(1.3 * np.asarray(own.tissue_od)[:, [1, 2, 0]]),
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


def test_shares_are_one_on_foreign_pixels_and_the_same_in_any_window() -> None:
    shape = (160, 240)
    found = np.zeros(shape, np.uint8)
    found[60:90, 100:150] = Artifact.FOREIGN
    label = label_of(shape, found)
    whole = label.share(PixelGrid((0, 0), shape, (1, 1)))
    assert whole[64:86, 104:146].min() == 1
    assert whole[~ndimage.binary_dilation(found > 0, iterations=5)].max() == 0
    part = label.share(PixelGrid((50, 90), (50, 70), (1, 1)))
    np.testing.assert_allclose(part, whole[50:100, 90:160], atol=1e-6)
    assert label.share(PixelGrid((100, 0), (40, 60), (1, 1))) is None
    coarse = label.share(PixelGrid((0, 0), (40, 60), (4, 4)))
    assert coarse[16:21, 27:36].min() == 1
    assert coarse[:12].max() == 0


def test_saturated_pixels_change_as_tissue_does() -> None:
    found = np.full((160, 240), Artifact.SATURATED, np.uint8)
    share = label_of(found.shape, found).share(PixelGrid((40, 40), (30, 30), (1, 1)))
    assert share is None or share.max() == 0


def test_a_look_holds_its_foreign_pixels() -> None:
    mask = np.zeros((30, 41), bool)
    mask[10:20, 15:30] = True
    assert packed(np.zeros_like(mask), 16.0) == {}
    assert unpacked({}) is None
    label = unpacked(packed(mask, 16.0))
    assert label is not None
    share = label.share(PixelGrid((0, 0), (480, 656), (1, 1)))
    assert share[190:290, 270:450].min() == 1
    far = ~ndimage.binary_dilation(np.kron(mask, np.ones((16, 16))) > 0, iterations=40)
    assert share[far].max() == 0


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
        )

    dirty, clean = map(look, (specked.slide.path, specked.slide.path.with_name("tiny.tiff")))
    np.testing.assert_allclose(dirty["tissue_od"], clean["tissue_od"], atol=0.01)
    np.testing.assert_allclose(dirty["texture"], clean["texture"], atol=0.02)
