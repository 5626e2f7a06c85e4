"""Masks against the truth of phantoms, and against what is stained on real slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mask_coverage import measure
from scipy import ndimage

from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.phantom.config import load_phantom_config, make_phantom_config
from wsi_pgdips.phantom.phantom import Phantom
from wsi_pgdips.records import Artifact
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.tiles.tissue import DILATION_UM, find_tissue

PHANTOMS = Path(__file__).parents[1] / "phantoms"
SIDE = 1024


@pytest.mark.parametrize("name", ["he_flat", "hdab_drift", "three_flat"])
def test_tissue_of_a_phantom_is_in_the_mask_and_glass_is_not(name: str) -> None:
    config = load_phantom_config(PHANTOMS / f"{name}.toml")
    config = make_phantom_config({**config.model_dump(), "shape": (SIDE, SIDE)}, name)
    pixels = Phantom.make(config).window(0, 0, SIDE, SIDE)
    found = find_tissue(ArraySource(pixels.rgb, mpp=0.5, tile=256, block=1024))
    side = round(found.scale)
    share = pixels.tissue.reshape(SIDE // side, side, SIDE // side, side).mean((1, 3))
    assert (share * ~found.mask).sum() < 0.001 * share.sum()
    assert (share * ~found.core).sum() < 0.005 * share.sum()
    assert not found.glass[share > 0].any()
    bare = share == 0
    far = ndimage.distance_transform_edt(bare) > DILATION_UM / (0.5 * side) + 0.5
    assert far[found.mask].mean() < 0.03
    assert found.coverage > 0.999


@pytest.mark.realslide
@pytest.mark.parametrize(
    ("name", "glass"),
    [
        ("failing/faint_ihc_mask.svs", 1.0),  # half of this tissue is too pale to count as stained
        ("failing/dab_saturated.svs", 0.05),
        ("failing/hdab_neon.svs", 0.05),
        ("failing/pas_purple.tiff", 0.05),
        ("failing/pen_cytology_lattice.svs", 0.05),
        ("slides/CMU-1-Small-Region.svs", 0.05),
        ("slides/CK7p40_dualIHC_crop_40x_AT2.svs", 0.05),
        ("slides/metaplasia_trypsin_DAB_20x.svs", 0.05),
    ],
)
def test_what_is_stained_is_in_the_mask(data_dir: Path, name: str, glass: float) -> None:
    found = measure(data_dir / name)
    assert found["coverage"] > 0.9
    assert found["own_coverage"] > 0.95
    assert found["glass"] < glass
    assert "tissue_left_out" not in found["flags"]


@pytest.mark.realslide
def test_a_pen_over_a_smear_is_ink_and_the_smear_is_tissue(data_dir: Path) -> None:
    from wsi_pgdips.slide.reader import open_source

    source = open_source(data_dir / "failing" / "pen_cytology_lattice.svs")
    found = find_tissue(source, stains=load_stains("he").libraries)
    rgb, scale = source.overview(8.0)
    assert scale == found.scale
    black = rgb.max(2) < 90
    ink = found.artifact == Artifact.INK
    assert black.mean() > 0.2
    assert ink[black].mean() > 0.99
    assert not (found.mask & ink).any()
    assert found.left_out["ink"] > 1  # mm2
    red = (rgb[..., 0] > 190) & (rgb[..., 1] < 160)
    assert red.sum() > 500
    assert found.mask[red].mean() > 0.95
    assert found.coverage > 0.95


@pytest.mark.realslide
def test_glass_beside_a_pale_core_is_glass(data_dir: Path) -> None:
    from wsi_pgdips.slide.reader import open_source

    source = open_source(data_dir / "failing" / "faint_ihc_mask.svs")
    rgb, _ = source.overview(8.0)
    found = find_tissue(source)
    bare = (np.abs(rgb.astype(int) - 250) <= 1).all(2)  # this scanner flattens it
    bare = ndimage.binary_opening(bare, np.ones((5, 5)))
    assert bare.sum() > 1000
    assert bare[found.core].mean() < 0.01
    assert found.glass[bare].mean() > 0.5
    assert not (found.glass & ~ndimage.binary_dilation(bare, iterations=2)).any()


@pytest.mark.realslide
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("failing/faint_ihc_mask.svs", 0.7),
        ("failing/hdab_neon.svs", 0.15),
        ("slides/CMU-1-Small-Region.svs", 0.1),
    ],
)
def test_a_slide_that_is_paler_still_keeps_its_mask(
    data_dir: Path, name: str, share: float
) -> None:
    from wsi_pgdips.optics.physics import od_to_rgb, rgb_to_od
    from wsi_pgdips.slide.reader import open_source

    source = open_source(data_dir / name)
    before = find_tissue(source)
    rgb = source.read(0, 0, *source.grid.shape)
    glass = np.median(before.glass_od[before.glass], axis=0)
    counts = od_to_rgb(glass + share * (rgb_to_od(rgb) - glass)) + np.random.default_rng(0).normal(
        0, 1, rgb.shape
    )
    pale = np.rint(counts).clip(0, 255).astype(np.uint8)
    found = find_tissue(ArraySource(pale, mpp=source.grid.mpp))
    both, either = found.mask & before.mask, found.mask | before.mask
    assert both.sum() > 0.93 * either.sum()
