"""Unwritten tiles and an unscanned surround leave vectors, background and look of a slide alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from support.cheap_runs import Slide
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.records import ByteArray

pytestmark = pytest.mark.realslide
OPTIONS = {"preset": "fast", "device": "cpu", "mpp_source": 0.5}
UNWRITTEN = np.s_[1280:1536, 768:1024]
AT = np.s_[2048:5008, 1024:3232]


@pytest.fixture(scope="module")
def cmu(data_dir: Path) -> ByteArray:
    """The slide, cut to whole overview pixels."""
    import openslide

    with openslide.OpenSlide(data_dir / "slides" / "CMU-1-Small-Region.svs") as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    return rgb[:2960, :2208]


def layers(rgb: ByteArray, folder: Path) -> Layers:
    tifffile.imwrite(folder / "a.tif", rgb, photometric="rgb", tile=(256, 256), compression="zlib")
    run = Slide(folder / "a.tif", Path("he")).run(folder / "a.ome.zarr", **OPTIONS)
    assert run.exit_code == 0
    return open_layers(folder / "a.ome.zarr")


@pytest.fixture(scope="module")
def clean(cmu: ByteArray, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    return layers(cmu, tmp_path_factory.mktemp("clean"))


def assert_agree(one: Layers, other: Layers, degrees: float, look: float) -> None:
    a, b = one.provenance, other.provenance
    np.testing.assert_allclose(a["background"], b["background"], atol=0.002)
    cosine = (np.array(a["stain_matrix"]) * np.array(b["stain_matrix"])).sum(1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < degrees
    colours = (np.array(p["look"]["tissue_od"]) for p in (a, b))
    np.testing.assert_allclose(*(np.linalg.norm(t, axis=1).mean() for t in colours), rtol=look)


def test_an_unwritten_tile_has_no_say(cmu: ByteArray, clean: Layers, tmp_path: Path) -> None:
    rgb = cmu.copy()
    rgb[UNWRITTEN] = 0
    found = layers(rgb, tmp_path)
    assert_agree(clean, found, degrees=0.5, look=0.03)
    tissue = np.asarray(found.tissue().compute(), bool)
    assert not tissue[UNWRITTEN].any()
    before = np.asarray(clean.tissue().compute(), bool)
    both = before & tissue
    amounts = (np.asarray(m.concentration().compute())[:, both].mean(1) for m in (clean, found))
    np.testing.assert_allclose(*amounts, rtol=0.01)
    assert found.provenance["left_out_mm2"]["fill"] == pytest.approx(0.0164, rel=0.01)
    assert found.provenance["tissue_flags"] == ["unwritten_tiles"]
    assert found.provenance["coverage"] > 0.99


def test_an_unscanned_surround_has_no_say(cmu: ByteArray, clean: Layers, tmp_path: Path) -> None:
    rgb = np.full((6144, 5120, 3), 255, np.uint8)
    rgb[AT] = cmu
    found = layers(rgb, tmp_path)
    assert_agree(clean, found, degrees=0.5, look=0.01)
    tissue = np.asarray(found.tissue().compute(), bool)
    assert (tissue[AT] != np.asarray(clean.tissue().compute(), bool)).mean() < 0.001
    assert tissue[AT].sum() == tissue.sum()
    assert "left_out_mm2" in found.provenance
    assert found.provenance["tissue_flags"] == []
