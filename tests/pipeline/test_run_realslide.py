"""Real slides: in register to the pixel, and all dense tissue measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_products import best_shift

from support.cheap_runs import CHEAP, Slide
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.slide.reader import open_source

pytestmark = pytest.mark.realslide
CMU, TCGA = "CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"
OPTIONS = {**CHEAP, "preset": "fast", "tile": 512, "block": 2048}
TCGA_MPP = 0.25  # the file is silent
PIECE_UM = 50.0


@pytest.fixture(scope="module")
def cmu(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    output = tmp_path_factory.mktemp("cmu") / "out.ome.zarr"
    assert Slide(data_dir / "slides" / CMU, Path("he")).run(output, **OPTIONS).exit_code == 0
    return open_layers(output)


def level_0(slide: Path, region_l0: Region) -> np.ndarray:
    """Level-0 pixels straight from OpenSlide."""
    import openslide

    with openslide.OpenSlide(slide) as opened:
        where, size = (region_l0.x, region_l0.y), (region_l0.w, region_l0.h)
        return np.asarray(opened.read_region(where, 0, size).convert("RGB"))


def both(layers: Layers, od: np.ndarray, y: int, x: int, side: int) -> list[np.ndarray] | None:
    """OD and sum of q in a window, with their means at a few foreign pixels.

    None where more is not measured, or where there is nothing to see.
    """
    q, window = layers.read(y, x, side, side).sum(0), od[y : y + side, x : x + side]
    found = np.isfinite(q)
    if found.mean() < 0.99 or window.std() <= 0.1:
        return None
    return [np.where(found, values, values[found].mean()) for values in (window, q)]


def test_level_0_lies_on_the_slide(cmu: Layers, data_dir: Path) -> None:
    h, w = cmu.grid.shape_l0
    assert cmu.grid.shape == (h, w)  # 0.499 um snaps to 0.5
    rgb = level_0(data_dir / "slides" / CMU, Region(0, 0, h, w))
    od = -np.log10(np.maximum(rgb, 1) / 255).sum(-1)
    tried = 0
    side = 128
    for y in (*range(0, h - side, 311), h - side):
        for x in (*range(0, w - side, 311), w - side):
            pair = both(cmu, od, y, x, side)
            if pair is not None:
                assert best_shift(*pair) == (0, 0), (y, x)
                tried += 1
    assert tried >= 20


def test_at_half_the_resolution_too(data_dir: Path, output: Path) -> None:
    slide = data_dir / "slides" / CMU
    Slide(slide, Path("he")).run(output, **{**OPTIONS, "mpp": 1.0})
    layers = open_layers(output)
    h, w = layers.grid.shape
    rgb = level_0(slide, Region(0, 0, 2 * h, 2 * w))
    small = rgb.reshape(h, 2, w, 2, 3).mean((1, 3))
    od = -np.log10(np.maximum(small, 1) / 255).sum(-1)
    tried = 0
    for y in range(0, h - 96, 151):
        for x in range(0, w - 96, 151):
            pair = both(layers, od, y, x, 96)
            if pair is not None:
                assert best_shift(*pair) == (0, 0), (y, x)
                tried += 1
    assert tried >= 20


@pytest.mark.parametrize("name", [CMU, TCGA])
def test_dense_tissue_is_measured(
    name: str, data_dir: Path, output: Path, request: pytest.FixtureRequest
) -> None:
    slide = data_dir / "slides" / name
    if name == CMU:
        layers: Layers = request.getfixturevalue("cmu")
    else:
        options = {**OPTIONS, "mpp_source": TCGA_MPP}
        assert Slide(slide, Path("he")).run(output, **options).exit_code == 0
        layers = open_layers(output)
    source = open_source(slide, mpp_source=None if name == CMU else TCGA_MPP)
    level = 2
    rgb, scale = source.overview(source.grid.mpp * (1 << level))
    assert scale == 1 << level
    dense = -np.log10(np.maximum(rgb, 1) / 255).sum(-1) > 0.3
    labels, _ = ndimage.label(dense, np.ones((3, 3)))
    width = PIECE_UM / (source.grid.mpp * scale)
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        if min(s.stop - s.start for s in box) <= width:
            dense[labels == k] = False
    measured = np.asarray(layers.codes(level)[0]) > 0
    assert dense.sum() > 10_000
    assert measured[dense].mean() >= 0.99
