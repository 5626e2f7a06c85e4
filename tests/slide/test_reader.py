"""Pyramidal TIFFs that OpenSlide reads: grid, levels, threads, processes, privacy."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.reader import fallback_mpp, file_checksum, open_source, read_meta
from wsi_pgdips.slide.resample import box_mean

SHAPE = (1500, 1203)


def picture(height: int, width: int) -> ByteArray:
    """Something with detail everywhere that JPEG is not used on."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack((x * 7 + y, y * 5 - x, (x // 9) * 31 + (y // 7) * 17), axis=-1)
    return (rgb % 256).astype(np.uint8)


def write_tiff(
    path: Path, levels: list[ByteArray], mpp: float | None = 0.25, **options: Any
) -> Path:
    """A tiled TIFF, a level per page, with resolution tags in centimetres."""
    with tifffile.TiffWriter(path) as tif:
        for i, level in enumerate(levels):
            res = None if mpp is None else 1e4 / mpp * level.shape[1] / levels[0].shape[1]
            tif.write(
                level,
                tile=(128, 128),
                photometric="rgb",
                compression=options.get("compression", "zlib"),
                resolution=None if res is None else (res, res),
                resolutionunit=None if res is None else "CENTIMETER",
                subfiletype=1 if i else 0,
                description=options.get("description") if i == 0 else None,
                metadata=None,
            )
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Level 1 is marked by its blue channel, so that a test sees which level was read."""
    rgb = picture(*SHAPE)
    half = box_mean(rgb[:1500, :1202], 2).copy()
    eighth = box_mean(rgb[:1496, :1200], 8).copy()
    half[..., 2], eighth[..., 2] = 1, 3
    return write_tiff(tmp_path_factory.mktemp("slide") / "case.tif", [rgb, half, eighth])


def test_native_pixels_come_through(slide: Path) -> None:
    with_native = open_source(slide, mpp="native")
    assert with_native.grid.factor == 1
    assert with_native.grid.mpp == pytest.approx(0.25, rel=1e-4)
    np.testing.assert_array_equal(with_native.read(0, 0, *SHAPE), picture(*SHAPE))
    with_native.close()
    np.testing.assert_array_equal(with_native.read(3, 5, 7, 9), picture(*SHAPE)[3:10, 5:14])


def test_downsampled_pixels_are_means_at_every_corner(slide: Path) -> None:
    source = open_source(slide, mpp=0.75)
    assert source.grid.factor == 3
    assert source.grid.shape == (500, 401)
    rgb = picture(*SHAPE)
    expected = box_mean(rgb[:1500, :1203], 3)
    np.testing.assert_array_equal(source.read(0, 0, 500, 401), expected)
    for y, x in ((0, 0), (0, 381), (480, 0), (480, 381)):
        np.testing.assert_array_equal(source.read(y, x, 20, 20), expected[y : y + 20, x : x + 20])


def test_level_is_used_only_where_it_places_pixels_right(tmp_path: Path) -> None:
    rgb = picture(1024, 768)
    half = box_mean(rgb, 2).copy()
    half[..., 2] = 1
    source = open_source(write_tiff(tmp_path / "a.tif", [rgb, half]), mpp=0.5)
    np.testing.assert_array_equal(source.read(100, 50, 64, 64), half[100:164, 50:114])
    at_four = open_source(tmp_path / "a.tif", mpp=1.0)
    np.testing.assert_array_equal(at_four.read(9, 9, 50, 50), box_mean(half, 2)[9:59, 9:59])


def test_level_that_openslide_interpolates_is_not_read_from(slide: Path) -> None:
    source = open_source(slide, mpp=0.5)  # 1203 -> 601: OpenSlide's downsample is 2.0008
    expected = box_mean(picture(*SHAPE)[:, :1202], 2)
    np.testing.assert_array_equal(source.read(0, 0, 750, 601), expected)


def test_interpolated_level_is_not_read_from_even_where_its_edge_would_do(slide: Path) -> None:
    source = open_source(slide, mpp=2.0)  # a rest of 1 pixel is little at a factor of 8
    expected = box_mean(picture(*SHAPE)[:1496, :1200], 8)
    np.testing.assert_array_equal(source.read(0, 0, 187, 150), expected)


def test_overview_pixel_beyond_a_rounded_down_level(tmp_path: Path) -> None:
    rgb = picture(1603, 1603)  # 100 pixels at level 1, 101 in the overview
    coarse = box_mean(rgb[:1600, :1600], 16)
    path = write_tiff(tmp_path / "a.tif", [rgb, coarse], mpp=0.5)
    view, scale = open_source(path).overview(8.0)
    assert (scale, view.shape) == (16, (101, 101, 3))
    assert np.abs(view[:99, :99].astype(int) - coarse[:99, :99]).max() <= 2
    assert np.abs(view[100, :99].astype(int) - coarse[99, :99]).max() <= 2


def test_overview_comes_from_a_coarse_level(slide: Path) -> None:
    view, scale = open_source(slide, mpp=0.5).overview(8.0)
    assert scale == 16
    assert view.shape == (47, 38, 3)
    assert set(np.unique(view[..., 2])) <= {1, 3}
    rgb = picture(*SHAPE)[:1472, :1184].reshape(46, 32, 37, 32, 3).mean(axis=(1, 3))
    assert np.abs(view[:46, :37, :2] - rgb[..., :2]).max() < 12


def test_overview_without_levels_equals_the_mean(tmp_path: Path) -> None:
    rgb = picture(1300, 1100)
    source = open_source(write_tiff(tmp_path / "one.tif", [rgb], mpp=0.5), mpp=0.5)
    view, scale = source.overview(5.0)
    assert (scale, view.shape) == (10, (130, 110, 3))
    np.testing.assert_array_equal(view, box_mean(rgb, 10))


def test_metadata(slide: Path) -> None:
    meta = read_meta(slide)
    assert meta.name == "case"
    assert meta.vendor == "generic-tiff"
    assert meta.shape_l0 == SHAPE
    assert meta.level_shapes == (SHAPE, (750, 601), (187, 150))
    assert meta.mpp_l0 == pytest.approx(0.25, rel=1e-4)
    assert meta.objective_power is None
    assert not meta.has_icc
    assert meta == open_source(slide).meta


def test_nothing_personal_is_kept(tmp_path: Path) -> None:
    secret = "Doe"
    description = (
        "Aperio Image Library v1\r\n1203x1500 (128x128) JPEG/RGB Q=90|AppMag = 40|MPP = 0.25"
        f"|User = Jane {secret}|Filename = {secret}-17|Date = 01/02/03|Barcode = {secret}"
        f"|ScanScope ID = {secret}|Title = {secret}"
    )
    path = write_tiff(
        tmp_path / "x.svs", [picture(*SHAPE)], description=description, compression="jpeg"
    )
    meta = read_meta(path)
    assert meta.vendor == "aperio"
    assert meta.mpp_l0 == 0.25
    assert meta.objective_power == 40
    assert secret not in repr(asdict(meta))
    assert "01/02/03" not in repr(meta)
    assert str(tmp_path) not in repr(meta)
    assert set(meta.properties) <= {
        "openslide.vendor",
        "openslide.mpp-x",
        "openslide.mpp-y",
        "openslide.objective-power",
        "openslide.quickhash-1",
    }


def test_property_that_should_be_a_number_and_is_not_is_dropped(tmp_path: Path) -> None:
    description = "Aperio Image Library v1\r\n1203x1500|AppMag = Jane Doe|MPP = Jane Doe"
    path = write_tiff(tmp_path / "x.svs", [picture(*SHAPE)], None, description=description)
    meta = read_meta(path)
    assert meta.vendor == "aperio"
    assert (meta.mpp_l0, meta.objective_power) == (None, None)
    assert "Doe" not in repr(meta)


def test_mpp_source_stands_in_or_overrides(tmp_path: Path, slide: Path) -> None:
    bare = write_tiff(tmp_path / "bare.tif", [picture(600, 600)], mpp=None)
    assert read_meta(bare).mpp_l0 is None
    with pytest.raises(SlideError, match="--mpp-source"):
        open_source(bare)
    with pytest.raises(SlideError, match="--mpp-source"):
        open_source(bare, mpp="native")
    assert open_source(bare, mpp_source=0.25).grid.factor == 2
    assert open_source(slide, mpp_source=0.5).grid.factor == 1


@pytest.mark.parametrize("mpp", [0.00499, 352.8])
def test_absurd_mpp_is_refused_until_overridden(tmp_path: Path, mpp: float) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(600, 600)], mpp=mpp)
    with pytest.raises(SlideError, match=r"absurd[\s\S]*--mpp-source"):
        open_source(path)
    assert open_source(path, mpp_source=0.5).grid.mpp == 0.5


def test_oblong_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        picture(600, 600),
        tile=(128, 128),
        photometric="rgb",
        resolution=(40000, 36000),
        resolutionunit="CENTIMETER",
    )
    with pytest.raises(SlideError, match="not square"):
        open_source(path)
    assert open_source(path, mpp_source=0.25).grid.factor == 2


def test_finer_than_the_slide_is_refused(slide: Path) -> None:
    with pytest.raises(SlideError, match="finer"):
        open_source(slide, mpp=0.1)


def test_source_survives_pickling_and_other_processes(slide: Path) -> None:
    source = open_source(slide, mpp=0.75)
    here = source.read(10, 20, 40, 50)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(10, 20, 40, 50), here)
    assert (again.meta, again.grid) == (source.meta, source.grid)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(source.read, 10, 20, 40, 50).result()
    np.testing.assert_array_equal(there, here)


def test_threads_read_the_same_pixels(slide: Path) -> None:
    source = open_source(slide, mpp=0.75)
    whole = source.read(0, 0, 500, 401)
    places = [(y, x) for y in range(0, 500, 50) for x in range(0, 400, 50)]
    with ThreadPoolExecutor(8) as pool:
        tiles = list(pool.map(lambda p: source.read(*p, 50, 50), places))
    for (y, x), tile in zip(places, tiles, strict=True):
        part = whole[y : y + 50, x : x + 50]
        np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)


def test_checksum_sees_size_and_content(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, (b"x" * 100, b"x" * 101, b"x" * 99 + b"y"), strict=True):
        path.write_bytes(content)
    assert len({file_checksum(path) for path in paths}) == 3


def test_checksum_of_a_large_file_samples_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    sums = {file_checksum(path)}
    for place in (0, 200 * 2**20 - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"!")
        sums.add(file_checksum(path))
    assert len(sums) == 3


def test_a_told_mpp_is_for_files_that_do_not_say_theirs(tmp_path):
    silent = tmp_path / "silent.png"
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(silent)
    said = tmp_path / "said.tiff"
    tifffile.imwrite(
        said,
        np.full((64, 64, 3), 200, np.uint8),
        resolution=(1e4 / 0.25, 1e4 / 0.25),
        resolutionunit="CENTIMETER",
    )
    assert fallback_mpp(silent, 0.5) == 0.5
    assert fallback_mpp(silent, None) is None
    assert fallback_mpp(said, 0.5) is None
