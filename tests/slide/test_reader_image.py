"""Images OpenSlide does not read: OME-TIFF, strips, planes, PNG, JPEG; ICC."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.reader import open_source, read_meta
from wsi_pgdips.slide.resample import box_mean


def picture(height: int, width: int) -> ByteArray:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack((x * 7 + y, y * 5 - x, (x // 9) * 31 + (y // 7) * 17), axis=-1)
    return (rgb % 256).astype(np.uint8)


def write_ome(path: Path, rgb: ByteArray, unit: str = "µm", size: float = 0.25) -> Path:
    """An OME-TIFF whose half-size level is a SubIFD, marked by its blue channel."""
    half = box_mean(rgb, 2).copy()
    half[..., 2] = 1
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": unit,
    }
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(rgb, tile=(64, 64), photometric="rgb", subifds=1, metadata=metadata)
        tif.write(half, tile=(64, 64), photometric="rgb", subfiletype=1)
    return path


def test_ome_tiff_with_its_subifd_level(tmp_path: Path) -> None:
    rgb = picture(640, 512)
    path = write_ome(tmp_path / "s.ome.tif", rgb)
    meta = read_meta(path)
    assert (meta.name, meta.vendor, meta.mpp_l0) == ("s", "ome-tiff", 0.25)
    assert meta.level_shapes == ((640, 512), (320, 256))
    np.testing.assert_array_equal(open_source(path, mpp="native").read(0, 0, 640, 512), rgb)
    half = open_source(path, mpp=0.5)
    assert half.read(50, 61, 99, 80)[..., 2].max() == 1
    expected = box_mean(rgb, 2)[50:149, 61:141, :2]
    np.testing.assert_array_equal(half.read(50, 61, 99, 80)[..., :2], expected)
    again = pickle.loads(pickle.dumps(half))
    np.testing.assert_array_equal(again.read(5, 6, 70, 70), half.read(5, 6, 70, 70))


@pytest.mark.parametrize(("unit", "size"), [("nm", 250.0), ("mm", 0.00025)])
def test_units_of_ome(tmp_path: Path, unit: str, size: float) -> None:
    path = write_ome(tmp_path / "s.ome.tif", picture(128, 128), unit, size)
    assert read_meta(path).mpp_l0 == pytest.approx(0.25)


def test_ome_size_in_pixels_is_no_size(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "s.ome.tif", picture(128, 128), "pixel", 1.0)
    assert read_meta(path).mpp_l0 is None


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_strips_and_planes(tmp_path: Path, tile: tuple[int, int] | None, planar: str) -> None:
    rgb = picture(200, 150)
    path = tmp_path / "p.tif"
    stored = rgb if planar == "contig" else rgb.transpose(2, 0, 1)
    tifffile.imwrite(
        path,
        stored,
        tile=tile,
        photometric="rgb",
        planarconfig=planar,
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    source = open_source(path)
    assert source.grid.mpp == pytest.approx(0.5)
    np.testing.assert_array_equal(source.read(0, 0, 200, 150), rgb)
    np.testing.assert_array_equal(source.read(63, 60, 70, 71), rgb[63:133, 60:131])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(0, 0, 200, 150), rgb)


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_transparent_tiff_lies_on_white(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    rgba = np.dstack((picture(100, 90), np.full((100, 90), 255, np.uint8)))
    rgba[:50, :, 3] = 0
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS"}
    tifffile.imwrite(
        path, rgba, tile=tile, photometric="rgb", extrasamples=["unassalpha"], metadata=metadata
    )
    got = open_source(path, mpp_source=0.5).read(0, 0, 100, 90)
    assert got[:50].min() == 255
    np.testing.assert_array_equal(got[50:], rgba[50:, :, :3])


def test_png_with_alpha_and_with_palette(tmp_path: Path) -> None:
    rgba = np.dstack((picture(40, 30), np.full((40, 30), 255, np.uint8)))
    rgba[:, :15, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = open_source(tmp_path / "a.png", mpp_source=0.5).read(0, 0, 40, 30)
    assert got[:, :15].min() == 255
    np.testing.assert_array_equal(got[:, 15:], rgba[:, 15:, :3])
    flat = Image.new("RGB", (30, 40), (200, 100, 50))
    flat.quantize(4).save(tmp_path / "p.png")
    assert (
        open_source(tmp_path / "p.png", mpp_source=0.5).read(0, 0, 40, 30) == [200, 100, 50]
    ).all()


def test_png_resolution_is_its_mpp_and_a_screen_resolution_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(picture(40, 30))
    image.save(tmp_path / "a.png", dpi=(50800, 50800))
    assert read_meta(tmp_path / "a.png").mpp_l0 == pytest.approx(0.5, rel=1e-3)
    image.save(tmp_path / "b.jpg", dpi=(72, 72))
    with pytest.raises(Exception, match="absurd"):
        open_source(tmp_path / "b.jpg")


def test_jpeg(tmp_path: Path) -> None:
    image = Image.fromarray(picture(64, 48))
    image.save(tmp_path / "a.jpg", quality=95)
    source = open_source(tmp_path / "a.jpg", mpp="native", mpp_source=0.5)
    with Image.open(tmp_path / "a.jpg") as decoded:
        np.testing.assert_array_equal(source.read(0, 0, 64, 48), np.asarray(decoded))
    assert source.meta.vendor == "jpeg"
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source)).read(0, 0, 64, 48), source.read(0, 0, 64, 48)
    )


def test_image_above_the_limit_of_image_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(picture(40, 30)).save(tmp_path / "a.png")
    assert open_source(tmp_path / "a.png", mpp_source=0.5).grid.shape == (40, 30)


def test_icc_is_applied_on_request_only(tmp_path: Path) -> None:
    rgb = picture(64, 48)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(rgb).save(tmp_path / "srgb.png", icc_profile=profile)
    assert read_meta(tmp_path / "srgb.png").has_icc
    source = open_source(tmp_path / "srgb.png", mpp_source=0.5, icc=True)
    assert np.abs(source.read(0, 0, 64, 48).astype(int) - rgb).max() <= 2
    assert source.read(-5, 0, 5, 48).min() == 255
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(0, 0, 64, 48), source.read(0, 0, 64, 48))


def test_icc_without_a_profile_changes_nothing(tmp_path: Path) -> None:
    rgb = picture(64, 48)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png", mpp_source=0.5, icc=True)
    assert not source.meta.has_icc
    np.testing.assert_array_equal(source.read(0, 0, 64, 48), rgb)


def test_icc_profile_of_another_gamma_changes_pixels(tmp_path: Path) -> None:
    """The red curve of sRGB replaced by gamma 1: red in the file is linear light."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    entry = next(at for at in tags if profile[at : at + 4] == b"rTRC")
    identity = b"curv" + bytes(8)  # a curve of no points
    profile[entry + 4 : entry + 12] = len(profile).to_bytes(4, "big") + len(identity).to_bytes(
        4, "big"
    )
    profile.extend(identity)
    profile[0:4] = len(profile).to_bytes(4, "big")
    grey = np.full((8, 8, 3), 128, np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=bytes(profile))
    path = tmp_path / "a.png"
    assert (open_source(path, mpp_source=0.5).read(0, 0, 8, 8) == 128).all()
    converted = open_source(path, mpp_source=0.5, icc=True).read(0, 0, 8, 8)
    assert converted[0, 0, 0] > 170  # linear 0.5 is 188 in sRGB
    assert abs(int(converted[0, 0, 2]) - 128) < 20


def test_a_foreign_json_description_with_a_shape_is_no_obstacle(tmp_path: Path) -> None:
    rgb = np.full((96, 128, 3), 200, np.uint8)
    options = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
    path = tmp_path / "x.tiff"
    tifffile.imwrite(path, rgb, description='{"scan": {"shape": [96, 128]}}', **options)
    assert np.array_equal(open_source(path, mpp_source=0.5).read(0, 0, 96, 128), rgb)
