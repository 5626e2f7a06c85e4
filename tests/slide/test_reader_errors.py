"""Files that cannot be used, and tiles that cannot be read: one clear error each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.reader import open_source, read_meta

SIDE = 128


def blocks(n: int = 8) -> ByteArray:
    """n x n tiles of one colour each, which JPEG keeps exactly enough."""
    values = np.random.default_rng(0).integers(40, 220, (n, n, 3)).astype(np.uint8)
    return values.repeat(SIDE, 0).repeat(SIDE, 1)


def write_slide(path: Path, rgb: ByteArray) -> Path:
    description = "Aperio Image Library v1\r\n1024x1024 (128x128) JPEG/RGB Q=90|MPP = 0.5"
    tifffile.imwrite(
        path,
        rgb,
        tile=(SIDE, SIDE),
        photometric="rgb",
        compression="jpeg",
        description=description,
        metadata=None,
    )
    return path


def spoil(path: Path, tiles: list[tuple[int, int]]) -> None:
    """Overwrite the stored bytes of tiles (ty, tx)."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        across = -(-page.imagewidth // SIDE)
        places = [
            (page.dataoffsets[ty * across + tx], page.databytecounts[ty * across + tx])
            for ty, tx in tiles
        ]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\0" * count)


@pytest.fixture(params=["slide.svs", "slide.ome.tif", "slide.tif"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same picture as OpenSlide and as tifffile read it."""
    target = tmp_path / request.param
    if target.suffix == ".svs":
        return write_slide(target, blocks())
    tifffile.imwrite(
        target,
        blocks(),
        tile=(SIDE, SIDE),
        photometric="rgb",
        compression="jpeg",
        metadata={"axes": "YXS"} if ".ome" in target.name else None,
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    return target


def test_bad_tile_fails_alone(path: Path) -> None:
    spoil(path, [(2, 3)])
    source = open_source(path)
    for _ in range(2):
        with pytest.raises(SlideError, match="cannot be read") as caught:
            source.read(2 * SIDE, 3 * SIDE, SIDE, SIDE)
        assert str(path.parent) not in str(caught.value.where)
        good = source.read(2 * SIDE, 4 * SIDE, SIDE, SIDE)
        assert np.abs(good.astype(int) - blocks()[2 * SIDE, 4 * SIDE]).max() < 8


def test_broken_handle_is_replaced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "s.svs", blocks())
    spoil(path, [(2, 3)])
    source = open_source(path)
    source.read(0, 0, SIDE, SIDE)
    opened = []
    genuine = openslide.OpenSlide

    def counted(name: Path) -> openslide.OpenSlide:
        opened.append(name)
        return genuine(name)

    monkeypatch.setattr(openslide, "OpenSlide", counted)
    with pytest.raises(SlideError):
        source.read(2 * SIDE, 3 * SIDE, SIDE, SIDE)
    for tx in range(8):
        source.read(4 * SIDE, tx * SIDE, SIDE, SIDE)
    assert len(opened) == 2  # one to judge the bad tile, one for all reads after it


def test_truncated_tiff_is_refused_before_any_tile_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tif"
    options = {"tile": (SIDE, SIDE), "photometric": "rgb", "metadata": {"axes": "YXS"}}
    tifffile.imwrite(path, blocks(), **options)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SlideError, match="but the image needs"):
        open_source(path, mpp_source=0.5)


def test_bad_tile_does_not_disturb_other_threads(path: Path) -> None:
    spoil(path, [(2, 3)])
    source = open_source(path)
    truth = blocks()

    def read(place: tuple[int, int]) -> bool:
        y, x = place[0] * SIDE, place[1] * SIDE
        try:
            got = source.read(y, x, SIDE, SIDE)
        except SlideError:
            return False
        return bool(np.abs(got.astype(int) - truth[y, x]).max() < 8)

    places = [(ty, tx) for ty in range(8) for tx in range(8)] + [(2, 3)] * 8
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, places * 2))
    assert {p for p, good in zip(places * 2, results, strict=True) if not good} == {(2, 3)}


def test_overview_leaves_bad_tiles_white_and_names_them(path: Path) -> None:
    spoil(path, [(2, 3), (5, 5)])
    source = open_source(path)
    assert source.unreadable == ()
    view, scale = source.overview(8.0)
    assert scale == 16
    for ty, tx in ((2, 3), (5, 5)):
        assert view[ty * 8 : ty * 8 + 8, tx * 8 : tx * 8 + 8].min() == 255
        assert any(
            r.y <= ty * SIDE < r.stop_y and r.x <= tx * SIDE < r.stop_x for r in source.unreadable
        )
    assert (view.min(axis=2) == 255).mean() < 0.2
    truth = blocks()[8::16, 8::16].astype(int)
    assert np.abs(view.astype(int) - truth)[:16].max() < 8


def test_slide_that_is_mostly_unreadable_is_refused_at_once(path: Path) -> None:
    spoil(path, [(ty, tx) for ty in range(8) for tx in range(8)])
    for opening in (open_source, read_meta):
        with pytest.raises(SlideError, match="damaged"):
            opening(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_copy(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    def use() -> None:
        source = open_source(path)
        source.read(0, 0, *source.grid.shape)

    with pytest.raises(SlideError) as caught:
        use()
    assert caught.value.hint is not None


def test_missing_folder_and_nonsense(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        open_source(tmp_path / "nope.svs")
    with pytest.raises(SlideError, match="folder"):
        open_source(tmp_path)
    (tmp_path / "text.svs").write_text("hello")
    (tmp_path / "empty.svs").write_text("")
    for name in ("text.svs", "empty.svs"):
        with pytest.raises(SlideError, match="not a slide"):
            read_meta(tmp_path / name)


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("shape", "dtype", "photometric"),
    [
        ((128, 128), np.uint8, "minisblack"),
        ((128, 128), np.uint16, "minisblack"),
        ((128, 128, 3), np.uint16, "rgb"),
        ((4, 128, 128), np.uint8, "minisblack"),
        ((5, 128, 128, 3), np.uint8, "rgb"),
    ],
)
def test_tiff_that_is_not_brightfield(
    tmp_path: Path,
    tile: tuple[int, int] | None,
    shape: tuple[int, ...],
    dtype: type,
    photometric: str,
) -> None:
    path = tmp_path / "f.tif"
    tifffile.imwrite(path, np.ones(shape, dtype), tile=tile, photometric=photometric)
    with pytest.raises(SlideError, match="not an RGB brightfield image"):
        open_source(path, mpp_source=0.5)


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "LA"])
def test_png_that_is_not_colour(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (32, 32)).save(tmp_path / "g.png")
    with pytest.raises(SlideError, match="not an RGB brightfield image"):
        open_source(tmp_path / "g.png", mpp_source=0.5)


def test_png_of_16_bits_is_not_silently_cut(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "g.png")
    content = bytearray((tmp_path / "g.png").read_bytes())
    content[24] = 16
    (tmp_path / "g.png").write_bytes(content)
    with pytest.raises(SlideError):
        open_source(tmp_path / "g.png", mpp_source=0.5)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_picture(tmp_path: Path, name: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for part in (10, len(content) // 2):
        (tmp_path / name).write_bytes(content[:part])
        with pytest.raises(SlideError, match="damaged"):
            read_meta(tmp_path / name)


def test_picture_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pgdips.slide.image.MAX_PIXELS_IN_MEMORY", 1000)
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((50, 50, 3), np.uint8), photometric="rgb")
    for name in ("a.png", "a.tif"):
        with pytest.raises(SlideError, match="too large"):
            open_source(tmp_path / name, mpp_source=0.5)


def test_useless_icc_profile(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png", icc_profile=b"nonsense")
    with pytest.raises(SlideError, match="ICC"):
        open_source(tmp_path / "a.png", mpp_source=0.5, icc=True)
    assert open_source(tmp_path / "a.png", mpp_source=0.5).grid.shape == (50, 50)
