"""Exports as the programs see them that they are written for."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import warnings
from pathlib import Path

import numpy as np
import ome_zarr_models
import openslide
import pytest
import tifffile
import yaozarrs
import zarr

from support.array_slide import ArraySlide, pixels_of, psnr, waves
from support.cheap_runs import Slide
from wsi_pgdips.export.ngff04 import export_concentration
from wsi_pgdips.export.rgb_zarr import export_rgb_zarr
from wsi_pgdips.export.tiff import export_tiff
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.reference import rows_of
from wsi_pgdips.looks.slide_look import slide_look

VERSIONS = ("0.5", "0.4")


@pytest.fixture(scope="module")
def reader(slide: Slide, finished: Layers) -> NormalizedSlide:
    """The phantom as it would look with more and other stain, at its own resolution."""
    look = slide_look(finished)
    s, m = look.stain_matrix, np.asarray(look.spectral_correction)
    tilt = np.array([[0.1, -0.05, 0.0], [0.0, -0.1, 0.1]])
    turned = tuple(tuple(map(float, row)) for row in s + tilt)
    other = dataclasses.replace(
        look,
        name="other",
        matrix=turned,
        spectral_correction=tuple(map(float, 1.2 * m)),
        background=(0.01, 0.02, 0.01),
        tissue_od=rows_of(1.3 * np.array(look.tissue_od)),
    )
    return NormalizedSlide(slide.path, finished, other)


@pytest.fixture(scope="module")
def picture(reader: NormalizedSlide) -> np.ndarray:
    """(H, W, 3) of level 0, read at once."""
    return pixels_of(reader)


@pytest.fixture(scope="module")
def tiff(reader: NormalizedSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiff") / "x.tiff"
    export_tiff(reader, path)
    return path


@pytest.fixture(scope="module")
def zarrs(reader: NormalizedSlide, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {v: tmp_path_factory.mktemp("rgb") / f"{v}.ome.zarr" for v in VERSIONS}
    for version, path in paths.items():
        export_rgb_zarr(reader, path, version=version)
    return paths


@pytest.fixture(scope="module")
def ngff04(finished: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concentration") / "q.ome.zarr"
    export_concentration(finished, path)
    return path


def halved(rgb: np.ndarray) -> np.ndarray:
    """2x2 means of whole quads, (H // 2, W // 2, 3) float."""
    h, w = rgb.shape[0] // 2, rgb.shape[1] // 2
    return rgb[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean((1, 3))


def test_the_look_is_another_one(reader: NormalizedSlide, slide: Slide) -> None:
    """Or else none of the comparisons below would show that it was exported."""
    assert psnr(pixels_of(reader), pixels_of(openslide.OpenSlide(slide.path))) < 30


def test_openslide_reads_the_tiff(tiff: Path, reader: NormalizedSlide, picture: np.ndarray) -> None:
    with openslide.OpenSlide(tiff) as found:
        assert found.properties["openslide.vendor"] == "generic-tiff"
        assert found.level_dimensions == ((1500, 1100), (750, 550), (375, 275))
        for axis in "xy":
            mpp = float(found.properties[f"openslide.mpp-{axis}"])
            assert mpp == pytest.approx(float(reader.properties[f"openslide.mpp-{axis}"]), rel=1e-6)
        expected: np.ndarray = picture
        for level, size in enumerate(found.level_dimensions):
            got = np.asarray(found.read_region((0, 0), level, size).convert("RGB"))
            assert psnr(got, expected) >= 35
            expected = halved(expected)


def test_the_tiff_is_what_it_should_be(tiff: Path) -> None:
    with tifffile.TiffFile(tiff) as file:
        assert file.is_bigtiff
        assert [int(page.subfiletype) for page in file.pages] == [0, 1, 1]
        for page in file.pages:
            assert (page.is_tiled, page.tilewidth, page.compression.name) == (True, 512, "JPEG")
            assert page.tags["YCbCrSubSampling"].value == (1, 1)
            assert page.tags["ResolutionUnit"].value == 3  # centimetres
            assert "SubIFDs" not in page.tags
        told = json.loads(file.pages[0].description)["wsi_pgdips"]
    assert set(told) == {
        *("software", "reference", "reference_sha256", "method", "account", "residual", "layers")
    }
    assert told["reference"] == "other"


@pytest.mark.parametrize("kind", ["tiff", "0.4"])
def test_tiatoolbox_reads_tiff_and_zarr(
    kind: str, tiff: Path, zarrs: dict[str, Path], picture: np.ndarray
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tiatoolbox.wsicore.wsireader import WSIReader

        found = WSIReader.open(tiff if kind == "tiff" else zarrs[kind])
        info = found.info
        got = found.read_rect((300, 200), (600, 512), resolution=0, units="level")
        del found
        gc.collect()  # it leaves its file open
    rest = ((750, 550), (375, 275))
    assert info.level_dimensions == ((1500, 1100), *rest)
    assert info.mpp == pytest.approx((0.5, 0.5), rel=1e-6)
    expected = picture[200:712, 300:900]
    if kind == "tiff":
        assert psnr(got, expected) >= 35
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rgb_zarr_holds_the_pixels_and_their_means(
    version: str, zarrs: dict[str, Path], picture: np.ndarray
) -> None:
    root = zarr.open_group(zarrs[version], mode="r")
    assert sorted(root.array_keys()) == ["0", "1", "2"]
    np.testing.assert_array_equal(root["0"][:], picture.transpose(2, 0, 1))
    for level in (1, 2):
        fine, coarse = (np.asarray(root[str(k)][:]).transpose(1, 2, 0) for k in (level - 1, level))
        assert coarse.shape[:2] == tuple(-(-n // 2) for n in fine.shape[:2])
        whole = halved(fine)
        assert np.abs(coarse[: whole.shape[0], : whole.shape[1]] - whole).max() <= 0.5
        assert coarse.dtype == np.uint8


def test_only_the_new_version_is_sharded(zarrs: dict[str, Path]) -> None:
    files = {
        v: {p.relative_to(path).as_posix() for p in path.glob("0/**/*") if p.is_file()}
        for v, path in zarrs.items()
    }
    assert files["0.5"] == {"0/zarr.json", "0/c/0/0/0"}
    # 3 channels of 3 x 3 chunks, "/" between the indices
    assert {f"0/{c}/{y}/{x}" for c in range(3) for y in range(3) for x in range(3)} <= files["0.4"]
    attributes = json.loads((zarrs["0.4"] / ".zattrs").read_text())
    assert attributes["omero"]["rdefs"]["model"] == "color"
    first, second = attributes["multiscales"][0]["datasets"][:2]
    assert first["coordinateTransformations"][0]["scale"] == pytest.approx([1, 0.5, 0.5])
    assert second["coordinateTransformations"][1]["translation"] == pytest.approx([0, 0.25, 0.25])


@pytest.mark.parametrize("which", [*VERSIONS, "concentration"])
def test_validators_agree(which: str, zarrs: dict[str, Path], ngff04: Path) -> None:
    path = ngff04 if which == "concentration" else zarrs[which]
    if which == "0.5":
        yaozarrs.validate_zarr_store(str(path))
    else:  # it checks stores of 0.5 only, and metadata of 0.4
        yaozarrs.validate_ome_object(json.loads((path / ".zattrs").read_text()))
    model = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(model).__name__ == "Image"
    assert type(model).__module__.startswith(f"ome_zarr_models.v{'05' if which == '0.5' else '04'}")


@pytest.mark.parametrize("which", [*VERSIONS, "concentration"])
def test_napari_shows_them(
    which: str, zarrs: dict[str, Path], ngff04: Path, picture: np.ndarray, finished: Layers
) -> None:
    path = ngff04 if which == "concentration" else zarrs[which]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from napari_ome_zarr import napari_get_reader

        read = napari_get_reader(str(path))
        assert read is not None
        ((levels, shown, kind),) = read(str(path))
    assert kind == "image"
    assert len(levels) == 3
    assert shown["scale"] == pytest.approx([0.5, 0.5])
    if which == "concentration":
        expected, labels, window = np.asarray(finished.codes()[:]), finished.stains.labels, 2000
    else:
        expected, labels, window = picture.transpose(2, 0, 1), ("Red", "Green", "Blue"), 255
    np.testing.assert_array_equal(np.asarray(levels[0]), expected)
    assert [name.split(": ")[-1] for name in shown["name"]] == list(labels)
    assert shown["contrast_limits"] == [[0, window]] * len(labels)


def test_concentrations_are_the_same_codes_on_all_levels(ngff04: Path, finished: Layers) -> None:
    root = zarr.open_group(ngff04, mode="r", zarr_format=2)
    for level in range(finished.grid.n_levels):
        array = root[str(level)]
        assert (array.dtype, array.fill_value) == (np.dtype("uint16"), 0)
        assert array.attrs["scale_factor"] == 1e-3
        np.testing.assert_array_equal(array[:], finished.codes(level)[:])
    channels = root.attrs["omero"]["channels"]
    assert [c["label"] for c in channels] == list(finished.stains.labels)
    assert all(re.fullmatch("[0-9A-F]{6}", c["color"]) for c in channels)
    assert (ngff04 / "0" / "1" / "0" / "0").is_file()
    assert not list(ngff04.rglob("zarr.json"))


def test_large_pictures_across_blocks(tmp_path: Path) -> None:
    """Two blocks, odd sizes, and a level that no block owns."""
    rgba = waves(601, 4201)
    export_rgb_zarr(ArraySlide(rgba), tmp_path / "x.ome.zarr")
    root = zarr.open_group(tmp_path / "x.ome.zarr", mode="r")
    expected = rgba[..., :3]
    for level in range(5):
        got = np.asarray(root[str(level)][:]).transpose(1, 2, 0)
        assert got.shape == (*OutputGrid((601, 4201), 1.0, 0.5).level_shape(level), 3)
        whole = expected[: got.shape[0], : got.shape[1]]
        # each level rounds by at most half a count
        assert np.abs(got[: len(whole), : whole.shape[1]] - whole).max() <= 0.5 * level + 1e-6
        expected = halved(expected)
    assert "5" not in root


def test_self_gives_the_slide_back(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    with NormalizedSlide(slide.path, finished, "self") as same:
        export_rgb_zarr(same, tmp_path / "x.ome.zarr")
        export_tiff(same, tmp_path / "x.tiff")
    original = pixels_of(openslide.OpenSlide(slide.path))
    stored = zarr.open_array(tmp_path / "x.ome.zarr" / "0", mode="r")[:]
    np.testing.assert_array_equal(stored.transpose(1, 2, 0), original)
    assert psnr(pixels_of(openslide.OpenSlide(tmp_path / "x.tiff")), original) >= 35


@pytest.mark.parametrize("shape", [(61, 1001), (1001, 61), (1, 90)])
def test_thin_pictures_have_as_many_levels_as_they_can(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    rgba = waves(*shape)
    export_tiff(ArraySlide(rgba), tmp_path / "x.tiff", tile=16)
    slide = openslide.OpenSlide(tmp_path / "x.tiff")
    assert slide.level_dimensions[0] == (shape[1], shape[0])
    assert min(slide.level_dimensions[-1]) >= 1
