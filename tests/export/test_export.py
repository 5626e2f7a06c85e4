"""Exports as those programs see them that they are for."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import openslide
import pytest
import tifffile
import yaozarrs
import zarr

from support.array_slide import MPP, ArraySlide, waves
from support.cheap_runs import Slide
from wsi_pgdips.errors import OutputError, SettingsError, SlideError, StainError
from wsi_pgdips.export.ngff04 import export_concentration
from wsi_pgdips.export.rgb_zarr import export_rgb_zarr
from wsi_pgdips.export.source import read_rgb
from wsi_pgdips.export.tiff import export_tiff
from wsi_pgdips.export.tiles import export_tiles
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.slide.reader import open_source

VERSIONS = ("0.5", "0.4")
EXPORTS: dict[str, Callable[..., Any]] = {
    "tiff": export_tiff,
    "0.5": lambda reader, path: export_rgb_zarr(reader, path, version="0.5"),
    "0.4": lambda reader, path: export_rgb_zarr(reader, path, version="0.4"),
    "tiles": export_tiles,
}


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
        typical=(),
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


def pixels_of(reader: openslide.AbstractSlide) -> np.ndarray:
    width, height = reader.dimensions
    return read_rgb(reader, Region(0, 0, height, width))


def halved(rgb: np.ndarray) -> np.ndarray:
    """2x2 means of whole quads, (H // 2, W // 2, 3) float."""
    h, w = rgb.shape[0] // 2, rgb.shape[1] // 2
    return rgb[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean((1, 3))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


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
        *("software", "reference", "reference_sha256", "method", "residual", "layers")
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


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_is_transparent_is_white(kind: str, tmp_path: Path) -> None:
    rgba = waves(300, 500)
    rgba[:, 250:] = (0, 0, 0, 0)
    rgba[:, 100:104, 3] = 128
    export = EXPORTS[kind]
    export(ArraySlide(rgba), tmp_path / "out")
    if kind == "tiff":
        got = tifffile.imread(tmp_path / "out")
    elif kind == "tiles":
        import PIL.Image

        got = np.asarray(PIL.Image.open(tmp_path / "out" / "0_0.png"))[:300, :500]
    else:
        got = zarr.open_array(tmp_path / "out" / "0", mode="r")[:].transpose(1, 2, 0)
    assert got[:, 260:].min() == 255
    half = (rgba[:, 100:104, :3].astype(int) + 255) / 2
    assert np.abs(got[:, 100:104] - half).max() <= (12 if kind == "tiff" else 1)


@pytest.mark.parametrize("kind", EXPORTS)
def test_memory_is_of_strips_and_cells(kind: str, tmp_path: Path) -> None:
    """What is asked for at once does not grow with the slide."""
    most = {}
    for height in (1100, 3300):
        sizes: list[tuple[int, int]] = []
        export = EXPORTS[kind]
        export(ArraySlide(waves(height, 700), MPP, sizes.append), tmp_path / f"{height}")
        most[height] = (max(h for _, h in sizes), max(w for w, _ in sizes))
        assert sum(w * h for w, h in sizes) >= height * 700
    assert most[1100] == most[3300]
    assert max(most[3300]) <= 1024


def test_an_export_that_dies_leaves_nothing_that_looks_finished(
    tmp_path: Path, finished: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in EXPORTS:
        count = 0

        def dies(size: tuple[int, int]) -> None:
            nonlocal count
            count += 1
            if count > 4:
                raise RuntimeError("killed")

        export, out = EXPORTS[kind], tmp_path / kind
        with pytest.raises(RuntimeError, match="killed"):
            export(ArraySlide(waves(2300, 1100), MPP, dies), out)
        if kind == "tiles":
            assert not (out / "tiles.csv").exists()
        else:
            assert list(tmp_path.glob(f"{kind}*")) == []

    def torn(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_pgdips.export.ngff04.create_array_04", torn)
    with pytest.raises(KeyboardInterrupt):
        export_concentration(finished, tmp_path / "q.ome.zarr")
    assert list(tmp_path.glob("q.ome*")) == []


def test_an_older_export_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    for kind in ("tiff", "0.5"):
        path = tmp_path / kind
        first = waves(300, 300)
        EXPORTS[kind](ArraySlide(first), path)
        before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
        with pytest.raises(OutputError, match="exists"):
            EXPORTS[kind](ArraySlide(first), path)
        dead = ArraySlide(first, MPP, lambda size: 1 / 0)  # type: ignore[arg-type,return-value]
        again = export_tiff if kind == "tiff" else export_rgb_zarr
        with pytest.raises(ZeroDivisionError):
            again(dead, path, overwrite=True)
        assert {p: p.read_bytes() for p in before} == before
        again(ArraySlide(first[:100, :100]), path, overwrite=True)
        now = path if kind == "tiff" else path / "0"
        shape = (tifffile.imread(now) if kind == "tiff" else zarr.open_array(now, mode="r")).shape
        assert 300 not in shape


def test_layers_are_never_replaced(tmp_path: Path, finished: Layers) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_bytes(b"all of it")
    for place in (finished.path, tmp_path / "other"):
        with pytest.raises(OutputError, match="not an export of wsi-pgdips"):
            export_rgb_zarr(ArraySlide(waves(64, 64)), place, overwrite=True)
    assert finished.finished
    assert (tmp_path / "other" / "thesis.docx").exists()


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "does not say how large"),
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.25"}, "not square"),
    ],
)
def test_mpp_that_is_missing_or_not_square_is_refused(
    properties: dict[str, str], message: str, tmp_path: Path
) -> None:
    for export in EXPORTS.values():
        with pytest.raises(SlideError, match=message):
            export(ArraySlide(waves(64, 64), properties), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_options_that_no_file_has_are_refused(tmp_path: Path) -> None:
    plain = ArraySlide(waves(64, 64))
    for kwargs in ({"tile": 500}, {"quality": 0}):
        with pytest.raises(SettingsError):
            export_tiff(plain, tmp_path / "x", **kwargs)
    with pytest.raises(SettingsError, match=r"0\.5 or 0\.4"):
        export_rgb_zarr(plain, tmp_path / "x", version="0.6")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="png or jpeg"):
        export_tiles(plain, tmp_path / "x", form="bmp")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_one_stain_from_layers_is_its_vector_on_white(finished: Layers) -> None:
    region = Region(200, 300, 400, 500)
    q = np.nan_to_num(finished.read(region.y, region.x, region.h, region.w))
    rows = np.asarray(finished.provenance["stain_matrix"], np.float32)
    # well inside tissue, where its weight is 1
    inside = np.asarray(finished.tissue()[region.slices].compute())
    from scipy.ndimage import binary_erosion

    inside = binary_erosion(inside, iterations=90)
    assert inside.sum() > 1000
    for k, label in enumerate(finished.stains.labels):
        with NormalizedSlide(None, finished, "self", only=label) as alone:
            got = read_rgb(alone, region)
            assert alone.properties["wsi-pgdips.only"] == label
        expected = od_to_rgb(q[k][..., None] * rows[k])
        assert np.abs(got[inside].astype(int) - expected[inside]).max() <= 1
        assert got[inside].std() > 5


def test_one_stain_of_the_slide_has_its_detail(slide: Slide, finished: Layers) -> None:
    reference = dataclasses.replace(slide_look(finished), background=(0.1, 0.2, 0.3), name="grey")
    with NormalizedSlide(slide.path, finished, reference, only="eosin") as alone:
        got = pixels_of(alone)
    with NormalizedSlide(None, finished, reference, only="EOSIN") as model:
        layered = pixels_of(model)
    assert psnr(got, layered) > 30  # the phantom is at the layers' own resolution
    glass = ~np.asarray(finished.tissue(2).compute())
    far = np.kron(glass, np.ones((4, 4), bool))[: got.shape[0], : got.shape[1]]
    expected = od_to_rgb(np.array([0.1, 0.2, 0.3]))
    assert far.sum() > 100
    assert np.abs(got[far].astype(int) - expected).max() <= 1


def test_a_stain_that_is_not_there_is_refused(finished: Layers) -> None:
    with pytest.raises(StainError, match="Hematoxylin or Eosin"):
        NormalizedSlide(None, finished, "self", only="DAB")


PERSONAL = {
    "User": "Privy.Doctor",
    "Date": "03/04/2019",
    "ScanScope ID": "SS777321",
    "Title": "PATIENT-NAME-XY",
    "Filename": "S19-04711",
    "AppMag": "20",
    "MPP": "0.5",
}
SECRETS = ("Privy", "03/04/2019", "SS777321", "PATIENT-NAME-XY", "S19-04711", "Aperio", "LABELTEXT")


def test_nothing_personal_is_in_any_byte(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    home = tmp_path / "S19-04711"
    home.mkdir()
    svs = home / "S19-04711.svs"
    text = "|".join(f"{k} = {v}" for k, v in PERSONAL.items())
    rgb = pixels_of(openslide.OpenSlide(slide.path))
    label = np.zeros((64, 64, 3), np.uint8)
    with tifffile.TiffWriter(svs) as file:
        options = {"compression": "jpeg", "metadata": None}
        head = "Aperio Image Library v11.2.1\r\n1500x1100 (256x256) JPEG/RGB Q=70|"
        file.write(rgb, tile=(256, 256), description=head + text, **options)
        file.write(rgb[::8, ::8], description=head + text, **options)
        file.write(label, description="Aperio\r\nlabel 64x64 LABELTEXT", subfiletype=1, **options)
    opened = openslide.OpenSlide(svs)
    assert opened.properties["aperio.User"] == PERSONAL["User"]
    assert "label" in opened.associated_images
    told = {**finished.provenance, "slide": {"name": svs.name, **PERSONAL}}
    layers = dataclasses.replace(finished, provenance=told)
    own = slide_look(layers, open_source(svs, mpp=0.5, tile=256, block=1024))
    assert own.name == svs.name
    out = tmp_path / "out"
    with NormalizedSlide(svs, layers, own) as named:
        assert named.properties["aperio.User"] == PERSONAL["User"]
        export_tiff(named, out / "x.tiff")
        export_rgb_zarr(named, out / "x.ome.zarr")
        export_rgb_zarr(named, out / "x04.ome.zarr", version="0.4")
        export_tiles(named, out / "tiles", form="jpeg")
        export_tiles(named, out / "png")
    export_concentration(layers, out / "q.ome.zarr")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        data = path.read_bytes()
        for secret in (*SECRETS, str(tmp_path)):
            assert secret.encode() not in data, (path, secret)
            assert secret not in path.relative_to(out).as_posix()
    with tifffile.TiffFile(out / "x.tiff") as file:
        assert len(file.pages) == 3  # levels alone: no label, no thumbnail


@pytest.mark.parametrize("kind", ["tiff", "0.5"])
def test_of_two_at_one_place_the_later_is_refused(kind: str, tmp_path: Path) -> None:
    out = tmp_path / ("x.tiff" if kind == "tiff" else "x.ome.zarr")

    def other_comes_first(size: tuple[int, int]) -> None:
        if kind == "tiff":
            out.write_bytes(b"first")
        else:
            out.mkdir(exist_ok=True)
            (out / "zarr.json").write_text("{}")

    with pytest.raises(OutputError, match="exists"):
        EXPORTS[kind](ArraySlide(waves(64, 64), MPP, other_comes_first), out)
    kept = out if kind == "tiff" else out / "zarr.json"
    assert kept.read_bytes() == (b"first" if kind == "tiff" else b"{}")
    assert [node.name for node in tmp_path.iterdir()] == [out.name]


def test_what_a_killed_export_left_is_removed_and_what_one_at_work_holds_is_not(
    tmp_path: Path,
) -> None:
    out, seen = tmp_path / "x.tiff", []
    script = (
        "import os, sys; from pathlib import Path\n"
        "from wsi_pgdips.export.place import exporting\n"
        "with exporting(Path(sys.argv[1])) as partial:\n"
        "    partial.write_bytes(b'torn'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(out)], check=False).returncode == 9
    (torn,) = tmp_path.iterdir()
    at_work = tmp_path / re.sub(r"\.\d+\.", f".{os.getpid()}.", torn.name)
    at_work.write_bytes(b"of another thread")
    export_tiff(
        ArraySlide(waves(64, 64), MPP, lambda size: seen.append(set(tmp_path.iterdir()))), out
    )
    assert torn not in seen[0]
    assert set(tmp_path.iterdir()) == {out, at_work}


@pytest.mark.parametrize("shape", [(61, 1001), (1001, 61), (1, 90)])
def test_thin_pictures_have_as_many_levels_as_they_can(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    rgba = waves(*shape)
    export_tiff(ArraySlide(rgba), tmp_path / "x.tiff", tile=16)
    slide = openslide.OpenSlide(tmp_path / "x.tiff")
    assert slide.level_dimensions[0] == (shape[1], shape[0])
    assert min(slide.level_dimensions[-1]) >= 1
