"""Ink on the overview: dense, flat, and of a colour that the tissue does not have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.tiles.artifacts import find_ink

MPP, SHAPE = 8.0, (220, 260)
HE = load_stains("he").stain_matrix
STAINS = load_stains("he").libraries
INKS = {"blue": (40, 60, 170), "green": (30, 120, 80), "black": (12, 12, 14), "red": (190, 30, 40)}
ALL = np.ones(SHAPE, bool)


def tissue(seed: int = 0) -> tuple[FloatArray, BoolArray]:
    """Textured H&E in a disk on glass, as an overview shows it: (H, W, 3) OD above glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disk = (y - 110) ** 2 + (x - 90) ** 2 < 70**2
    fields = ndimage.gaussian_filter(rng.normal(size=(2, *SHAPE)), (0, 0.8, 0.8))
    q = np.maximum(0.15 + 0.25 * fields, 0.01) * disk
    od = np.einsum("nhw,nc->hwc", q, HE) + rng.normal(0, 0.002, (*SHAPE, 3))
    return np.asarray(od, np.float32), disk


def stroke(od: FloatArray, ink: str, columns: slice) -> tuple[FloatArray, BoolArray]:
    """A band of ink from top to bottom with soft edges, over what is there."""
    cover = np.zeros(SHAPE)
    cover[10:210, columns] = 1
    cover = ndimage.gaussian_filter(cover, 0.8)
    rng = np.random.default_rng(3)
    streaks = 1 + 0.02 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    density = -np.log10(np.array(INKS[ink]) / 245.0)
    out = od + (cover * streaks)[..., None] * density
    return np.asarray(out, np.float32), cover > 0.5


@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_beside_tissue_is_ink_and_tissue_is_not(ink: str) -> None:
    od, disk = tissue()
    inked, under = stroke(od, ink, slice(200, 222))
    found = find_ink(inked, ALL, MPP, STAINS)[0]
    assert found[under].mean() > 0.98
    assert found[disk].mean() < 0.01
    assert found[~ndimage.binary_dilation(under, iterations=6)].mean() < 0.01


@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_is_followed_over_tissue(ink: str) -> None:
    od, disk = tissue()
    inked, under = stroke(od, ink, slice(80, 100))  # across the middle of the disk
    found, lost = find_ink(inked, ALL, MPP, STAINS)
    assert found[under].mean() > 0.95
    assert found[disk & ~ndimage.binary_dilation(under, iterations=6)].mean() < 0.01
    assert not lost


def test_ink_that_is_too_pale_to_be_followed_over_tissue_is_told() -> None:
    od, disk = tissue()
    clean = od + np.where(disk, 0.15, 0)[..., None]  # denser tissue
    inked, under = stroke(clean, "blue", slice(80, 100))
    pale = clean + (inked - clean) * 0.25
    found, lost = find_ink(np.asarray(pale, np.float32), ALL, MPP, STAINS)
    assert lost
    assert found[under & ~disk].mean() > 0.9
    assert found[disk & ~ndimage.binary_dilation(under, iterations=6)].mean() < 0.01


def test_clean_tissue_holds_no_ink() -> None:
    for seed in range(3):
        assert not find_ink(tissue(seed)[0], ALL, MPP, STAINS)[0].any()


def test_flat_tissue_of_the_tissues_own_colour_is_tissue() -> None:
    """Colloid: as flat as ink, in the colour of the eosin around it."""
    od, _ = tissue()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    lake = (y - 110) ** 2 + (x - 90) ** 2 < 12**2
    usual = od[(y - 110) ** 2 + (x - 90) ** 2 < 60**2].mean(0)
    od[lake] = 1.5 * usual
    assert not find_ink(od, ALL, MPP, STAINS)[0].any()
    od[lake] = -np.log10(np.array(INKS["green"]) / 245.0)
    assert find_ink(od, ALL, MPP, STAINS)[0][lake].all()


def test_fill_is_not_ink() -> None:
    od, _ = tissue()
    scanned = ALL.copy()
    scanned[:, 200:] = False
    od[~scanned] = 2.4
    assert not find_ink(od, scanned, MPP, STAINS)[0].any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 40)])
def test_a_picture_without_anything_holds_no_ink(shape: tuple[int, int]) -> None:
    found = find_ink(np.zeros((*shape, 3), np.float32), np.ones(shape, bool), MPP, STAINS)[0]
    assert found.shape == shape
    assert not found.any()


def test_a_picture_of_ink_alone_is_ink() -> None:
    od, under = stroke(np.zeros((*SHAPE, 3), np.float32), "blue", slice(100, 150))
    found = find_ink(od, ALL, MPP, STAINS)[0]
    assert found[under].mean() > 0.98
    assert found.mean() < 0.4


@settings(max_examples=10)
@given(turns=st.integers(0, 3), mirrored=st.booleans())
def test_how_a_slide_lies_does_not_matter(turns: int, mirrored: bool) -> None:
    inked, _ = stroke(tissue()[0], "blue", slice(200, 222))
    found = find_ink(inked, ALL, MPP, STAINS)[0]

    def laid(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(a[:, ::-1] if mirrored else a, turns))

    other = find_ink(laid(inked), laid(ALL), MPP, STAINS)[0]
    assert (other != laid(found)).mean() < 0.01
