"""Pixels kept from fit to render: the same bytes as the slide's own, and decoded once."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cheap_runs import BALANCED, FAST, Slide, differing, stop_at
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.pipeline.kept_pixels import KeptPixels, keeping_pixels, room_for_pixels
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.slide.source import ArraySource, PyramidSource

TILES = ((0, 0), (0, 1), (1, 0), (1, 2))


class Counting(ArraySource):
    """Counts the pixels that are read."""

    def __init__(self, rgb: Any) -> None:
        super().__init__(rgb, mpp=0.5, tile=256, block=1024)
        self.count = 0

    def read(self, y: int, x: int, h: int, w: int) -> Any:
        self.count += h * w
        return super().read(y, x, h, w)


@pytest.fixture
def source() -> Counting:
    rng = np.random.default_rng(0)
    return Counting(rng.integers(0, 256, (500, 700, 3), np.uint8))


def keep(source: PyramidSource, folder: Path, lacking: tuple[int, int] | None = None) -> KeptPixels:
    ledger = Ledger(folder)
    with keeping_pixels(ledger.pixels((0, 0)), source.grid, TILES) as put:
        for tile in TILES:
            if tile != lacking:
                r = source.grid.tile_region(*tile)
                put(tile, source.read(r.y, r.x, r.h, r.w))
    return KeptPixels(source, ledger, {(0, 0): TILES})


@pytest.mark.parametrize("halo", [0, 32])
@pytest.mark.parametrize("tile", [*TILES, (1, 1)])
def test_a_region_is_that_of_the_slide(
    source: Counting, tmp_path: Path, tile: tuple[int, int], halo: int
) -> None:
    kept = keep(source, tmp_path)
    r = Region(tile[0] * 256, tile[1] * 256, 256, 256).grown(halo).clipped(source.grid.shape)
    np.testing.assert_array_equal(kept.read(r.y, r.x, r.h, r.w), source.read(r.y, r.x, r.h, r.w))


def test_what_is_kept_is_not_read_again(source: Counting, tmp_path: Path) -> None:
    kept, own = keep(source, tmp_path), source.grid.tile_region(1, 2)
    source.count = 0
    kept.read(own.y, own.x, own.h, own.w)
    assert source.count == 0
    kept.read(0, 0, 256 + 32, 256 + 32)  # three neighbours, of which the one at the corner lacks
    assert source.count == 32 * 32


def test_a_tile_that_was_not_kept_is_read(source: Counting, tmp_path: Path) -> None:
    kept = keep(source, tmp_path, lacking=(0, 1))
    np.testing.assert_array_equal(kept.read(0, 256, 256, 256), source.read(0, 256, 256, 256))


def test_a_file_is_whole_or_not_there(source: Counting, tmp_path: Path) -> None:
    path = tmp_path / "pixels" / "0_0.rgb"

    def interrupted() -> None:
        with keeping_pixels(path, source.grid, TILES) as put:
            put((0, 0), source.read(0, 0, 256, 256))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(path.parent.iterdir()) == []


def test_room_is_twice_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, size = OutputGrid((1000, 1000), 1.0, 0.5), 512 * 512 * 3
    for free, expected in ((20 * size + 1, True), (20 * size, False)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, u=usage: u)
        assert room_for_pixels(tmp_path, grid, 10) is expected


@pytest.mark.parametrize("keep_pixels", [True, False])
@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_kept_or_not_the_layers_are_the_same(
    preset: str,
    keep_pixels: bool,
    slide: Slide,
    output: Path,
    request: pytest.FixtureRequest,
) -> None:
    reference: Layers = request.getfixturevalue("finished" if preset == "fast" else preset)
    options = FAST if preset == "fast" else BALANCED
    assert slide.run(output, keep_pixels=keep_pixels, **options).exit_code == 0
    assert differing(reference.path, output) == []


def test_resampled_pixels_are_the_same_kept_or_not(slide: Slide, tmp_path: Path) -> None:
    for name in ("kept", "read"):
        slide.run(tmp_path / name, keep_pixels=name == "kept", mpp=0.7, **FAST)
    assert differing(tmp_path / "kept", tmp_path / "read") == []


def test_fitted_tiles_are_decoded_once(
    slide: Slide, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counter[tuple[int, int]]()
    stop_at(slide, output, "fit", **FAST)
    genuine = PyramidSource.read

    def read(self: PyramidSource, y: int, x: int, h: int, w: int) -> Any:
        seen[y, x] += 1
        return genuine(self, y, x, h, w)

    monkeypatch.setattr(PyramidSource, "read", read)
    assert slide.run(output, keep_pixels=True, **FAST).exit_code == 0
    assert seen
    assert set(seen.values()) == {1}
