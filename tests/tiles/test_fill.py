"""Pixels that no scanner wrote have no say; glass that looks like them has."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.tiles.fill import beyond, find_fill
from wsi_pgdips.tiles.tissue import find_tissue
from wsi_pgdips.tiles.tissue_map import TissueMap

COLOURS = {"black": 0, "white": 255, "grey": 128, "like glass": 235}
SIDE = 512
TILE = np.s_[192:320, 160:288]  # on the grid of the overview, which has a sixteenth of the pixels
SKEW = np.s_[197:325, 155:283]


@pytest.fixture(scope="module")
def clean() -> ByteArray:
    """1024 x 1024 pixels of 0.5 um: tissue on glass with noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: 2 * SIDE, : 2 * SIDE]
    inside = (y - 400) ** 2 + (x - 400) ** 2 < 380**2
    rough = ndimage.gaussian_filter(rng.normal(size=inside.shape), 12)
    fine = ndimage.gaussian_filter(rng.normal(size=inside.shape), 1)
    q = (0.4 + 0.15 * rough / rough.std() + 0.1 * fine / fine.std()).clip(0) * inside
    rgb = od_to_rgb(q[..., None] * np.array([0.65, 0.70, 0.29]) + 0.02)
    return np.rint(rgb + rng.normal(0, 1, rgb.shape)).clip(0, 255).astype(np.uint8)


def tissue(rgb: ByteArray) -> TissueMap:
    return find_tissue(ArraySource(rgb, mpp=0.5, tile=256, block=1024))


def jpeg(rgb: ByteArray, quality: int) -> ByteArray:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def on_overview(where: tuple[slice, slice]) -> tuple[slice, slice]:
    """The overview pixels that a window touches."""
    rows, columns = (slice(s.start // 16, -(-s.stop // 16)) for s in where)
    return rows, columns


@pytest.mark.parametrize("where", [TILE, SKEW], ids=["aligned", "skew"])
@pytest.mark.parametrize("quality", [None, 70])
@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS.keys())
def test_an_unwritten_tile_is_neither_tissue_nor_glass(clean, colour, quality, where):
    rgb = clean.copy()
    rgb[where] = colour
    if quality is not None:
        clean, rgb = jpeg(clean, quality), jpeg(rgb, quality)
    before, found = tissue(clean), tissue(rgb)
    rows, columns = on_overview(where)
    for mask in (found.mask, found.core, found.glass):
        assert not mask[rows, columns].any()
    around = np.zeros(found.mask.shape, bool)
    around[rows.start - 2 : rows.stop + 2, columns.start - 2 : columns.stop + 2] = True
    for name in ("mask", "core", "glass"):
        changed = (getattr(before, name) != getattr(found, name)) & ~around
        assert changed.sum() <= 2
    assert found.flags == ("unwritten_tiles",)
    assert 49 <= found.left_out["fill"] / 64e-6 <= around.sum()


def test_a_tile_of_fill_that_ends_with_overview_pixels_spoils_none_beside_it(clean):
    rgb = clean.copy()
    rgb[TILE] = 0
    source = ArraySource(rgb, mpp=0.5, tile=256, block=1024)
    overview, scale = source.overview(8.0)
    certain = find_fill(source, overview, scale).certain
    expected = np.zeros_like(certain)
    expected[on_overview(TILE)] = True
    np.testing.assert_array_equal(certain, expected)


@pytest.mark.parametrize("window", [np.s_[:, :], np.s_[100:740, 160:832]], ids=["glass", "none"])
@pytest.mark.parametrize("colour", [255, 0, 128])
def test_a_surround_changes_nothing(clean, colour, window):
    alone = np.ascontiguousarray(clean[window][:640, :640])
    large = np.full((4096, 3072, 3), colour, np.uint8)
    large[1024:1664, 512:1152] = alone
    first, second = tissue(alone), tissue(large)
    for name in ("mask", "core", "glass"):
        part = getattr(second, name)[64:104, 32:72]
        np.testing.assert_array_equal(part, getattr(first, name))
        assert part.sum() == getattr(second, name).sum()
    assert first.flags == second.flags
    assert second.left_out == first.left_out
    if first.assumed is not None:
        np.testing.assert_allclose(second.assumed, first.assumed)


def test_black_corners_of_a_rotated_picture_are_fill(clean):
    y, x = np.mgrid[: 2 * SIDE, : 2 * SIDE]
    rgb = clean.copy()
    corner = (y + x < 500) | (y + x > 1700)
    rgb[corner] = 0
    found, before = tissue(jpeg(rgb, 80)), tissue(jpeg(clean, 80))
    touched = corner.reshape(64, 16, 64, 16).any((1, 3))
    assert not (found.mask & touched).any()
    assert not (found.glass & touched).any()
    far = ~ndimage.binary_dilation(touched, iterations=3)
    np.testing.assert_array_equal(found.core[far], before.core[far])


def test_flat_glass_is_no_fill(clean):
    # a scanner that flattens glass, and one whose glass is overexposed
    od = -np.log10(clean / 255.0).sum(2)
    glass = ndimage.gaussian_filter(od, 3) < 0.1
    for colour in (243, 255):
        rgb = clean.copy()
        rgb[glass] = colour
        source = ArraySource(rgb, mpp=0.5, tile=256, block=1024)
        overview, scale = source.overview(8.0)
        found = find_fill(source, overview, scale)
        assert not found.certain.any()
        assert not found.like_glass.any()
        assert tissue(rgb).glass.sum() > 1000


def test_beyond_repeats_the_nearest_scanned_pixel():
    picture = np.arange(20).reshape(4, 5)
    fill = np.zeros((4, 5), bool)
    fill[:, 3:] = True
    np.testing.assert_array_equal(beyond(picture, fill)[:, 2:], picture[:, [2, 2, 2]])
    np.testing.assert_array_equal(beyond(picture, np.ones_like(fill)), picture)
