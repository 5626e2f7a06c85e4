"""Slides that were wrong without a word: own vectors, PAS, black DAB, carbon, pens, black tiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.optics.physics import angle_deg, rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.records import Artifact, BoolArray, ByteArray, FloatArray
from wsi_pgdips.slide.reader import open_source

pytestmark = pytest.mark.realslide
Run = Callable[..., Layers]
PEN = [(150, 2700), (250, 1500), (500, 900), (900, 200), (1500, 100), (1750, 700), (2050, 2700)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a file, or pixels of 0.5 um."""

    def make(slide: Path | ByteArray, stains: str | Path, **options: Any) -> Layers:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.ome.zarr"
        if not isinstance(slide, Path):
            pixels, slide = slide, output.with_suffix(".tif")
            tifffile.imwrite(slide, pixels, photometric="rgb", tile=(256, 256), compression="zlib")
            options = {"mpp_source": 0.5, **options}
        made = deconvolve_slide(slide, output, stains=str(stains), preset="fast", **options)
        assert made.exit_code == 0
        return open_layers(output)

    return make


def pixels_of(slide: Path, x: int, y: int, w: int, h: int) -> ByteArray:
    import openslide

    with openslide.OpenSlide(slide) as opened:
        return np.array(opened.read_region((x, y), 0, (w, h)).convert("RGB"))


def vectors(layers: Layers) -> FloatArray:
    return np.asarray(layers.provenance["stain_matrix"], np.float32)


def amounts(layers: Layers) -> FloatArray:
    return np.asarray(layers.concentration().compute())


def test_the_users_own_vectors_are_kept(data_dir: Path, run: Run) -> None:
    stains = data_dir / "failing" / "amyloid_vector.toml"
    layers = run(data_dir / "failing" / "amyloid_vector.tiff", stains, mpp_source=0.25)
    own = load_stains(stains).stain_matrix
    np.testing.assert_allclose(vectors(layers), own, atol=1e-6)
    field = layers.fields.stain_matrix
    np.testing.assert_allclose(field, np.broadcast_to(own, field.shape), atol=1e-6)
    asked = layers.provenance["stain_vectors"]
    assert [v["asked"] for v in asked] == ["fixed", "fixed"]
    assert [v["used"] for v in asked] == ["of the set", "of the set"]


def test_an_ordinary_pas_is_separated(data_dir: Path, run: Run) -> None:
    layers = run(data_dir / "failing" / "pas_purple.tiff", "pas", mpp_source=0.25)
    k = next(i for i, label in enumerate(layers.stains.labels) if "pas" in label.lower())
    assert angle_deg(vectors(layers)[k], [0.40, 0.87, 0.28]) < 6
    assert all(layers.provenance["prior"]["measured"])
    assert layers.verdict.status != "fail"


def test_black_is_dab_and_not_hematoxylin(data_dir: Path, run: Run) -> None:
    slide = data_dir / "failing" / "dab_saturated.svs"
    layers = run(slide, "hdab")
    q = amounts(layers)
    h, w = q.shape[1:]
    rgb = open_source(slide).read(0, 0, h, w)
    y = rgb_to_od(rgb) - np.asarray(layers.provenance["background"])
    measured = np.isfinite(q[0])
    black = (y.min(-1) > 0.9) & measured
    blue = (y[..., 0] - y[..., 2] > 0.1) & (y[..., 0] > 0.2) & measured
    assert min(black.sum(), blue.sum()) > 1000
    assert np.median(q[0][black]) <= np.median(q[0][blue])
    assert np.median(q[1][black]) >= 1.22
    assert layers.verdict.status == "review"
    assert any("black of DAB" in reason for reason in layers.verdict.reasons)


def with_carbon(rgb: ByteArray, share: float) -> tuple[ByteArray, BoolArray]:
    """Black grains over a share of the tissue, in clusters, as in the lungs of a smoker."""
    rng = np.random.default_rng(1)
    tissue = ndimage.uniform_filter(255 - rgb.min(2).astype(float), 31) > 40
    noise = ndimage.gaussian_filter(rng.standard_normal(rgb.shape[:2]), 2.2)
    noise += 1.2 * ndimage.gaussian_filter(rng.standard_normal(rgb.shape[:2]), 60) * 12
    noise[~tissue] = -9
    grains = noise > np.quantile(noise[tissue], 1 - share)
    od = ndimage.gaussian_filter(grains.astype(float), 0.8)[..., None] * [1.15, 1.18, 1.2]
    return np.clip(rgb * 10**-od, 0, 255).astype(np.uint8), grains


def test_carbon_is_not_dab(data_dir: Path, run: Run) -> None:
    slide = data_dir / "slides" / "metaplasia_trypsin_DAB_20x.svs"
    rgb = pixels_of(slide, 2000, 2000, 2048, 2048)
    dirty, grains = with_carbon(rgb, 0.02)
    one, other = (run(pixels, "hdab") for pixels in (rgb, dirty))
    assert angle_deg(vectors(one), vectors(other)).max() < 2
    away = ~ndimage.binary_dilation(grains, iterations=12)
    a, b = (amounts(layers)[1][away] for layers in (one, other))
    both = np.isfinite(a) & np.isfinite(b)
    top = [float(np.percentile(values[both], 99)) for values in (a, b)]
    assert top[1] - top[0] < 0.02


def with_pen(rgb: ByteArray, colour: tuple[int, int, int]) -> tuple[ByteArray, BoolArray]:
    """A stroke beside the tissue and over some of it."""
    h, w = rgb.shape[:2]
    drawn = Image.new("L", (w, h), 0)
    ImageDraw.Draw(drawn).line(PEN, fill=255, width=150, joint="curve")
    cover = np.asarray(drawn.filter(ImageFilter.GaussianBlur(6)), float)[..., None] / 255
    streaks = 1 + 0.06 * np.random.default_rng(0).standard_normal((h, w, 1))
    through = np.clip(np.array(colour) / 245.0 * streaks, 0, 1)
    inked = rgb * ((1 - cover) + cover * through)
    return np.clip(inked, 0, 255).astype(np.uint8), cover[..., 0] > 0.01


@pytest.fixture(scope="module")
def cmu(data_dir: Path) -> ByteArray:
    return pixels_of(data_dir / "slides" / "CMU-1-Small-Region.svs", 0, 0, 2220, 2967)


@pytest.fixture(scope="module")
def clean(cmu: ByteArray, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    folder = tmp_path_factory.mktemp("clean")
    tifffile.imwrite(folder / "a.tif", cmu, photometric="rgb", tile=(256, 256))
    deconvolve_slide(
        folder / "a.tif", folder / "a.ome.zarr", stains="he", preset="fast", mpp_source=0.5
    )
    return open_layers(folder / "a.ome.zarr")


def assert_as_clean(clean: Layers, other: Layers, touched: BoolArray) -> None:
    assert angle_deg(vectors(clean), vectors(other)).max() < 2
    tissue = np.asarray(clean.tissue().compute(), bool)
    a, b = amounts(clean), amounts(other)
    beside = tissue & ~touched & np.isfinite(a[0]) & np.isfinite(b[0])
    assert beside.sum() > 0.7 * (tissue & ~touched).sum()
    np.testing.assert_allclose(b[:, beside].mean(1), a[:, beside].mean(1), rtol=0.06)
    looks = (np.asarray(slide_look(layers).tissue_od) for layers in (clean, other))
    np.testing.assert_allclose(*(np.linalg.norm(rows, axis=1).mean() for rows in looks), rtol=0.03)


@pytest.mark.parametrize("colour", [(40, 60, 170), (30, 120, 80)], ids=["blue", "green"])
def test_a_pen_has_no_say(
    colour: tuple[int, int, int], cmu: ByteArray, clean: Layers, run: Run
) -> None:
    inked, under = with_pen(cmu, colour)
    other = run(inked, "he")
    assert_as_clean(clean, other, under)
    label = other.artifact().compute()
    solid = ndimage.binary_erosion(under, iterations=40)
    assert (label[solid] > 0).mean() > 0.95
    assert np.isnan(amounts(other)[0][label == Artifact.INK]).all()


def test_a_black_tile_has_no_say(cmu: ByteArray, clean: Layers, run: Run) -> None:
    black = cmu.copy()
    black[1280:1536, 768:1024] = 0
    touched = (black == 0).all(2)
    assert_as_clean(clean, run(black, "he"), touched)
