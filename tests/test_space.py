"""Whether the disk has room is asked before anything is written."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from support.cheap_runs import FAST, Slide
from wsi_pgdips.disk import check_room, layers_bytes
from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.reader import Layers

Usage = namedtuple("Usage", "total used free")


def test_layers_take_about_what_is_counted(finished: Layers) -> None:
    there = sum(f.stat().st_size for f in finished.path.rglob("c/**/*") if f.is_file())
    counted = layers_bytes(finished.grid, finished.tiles.num_rows, finished.stains.n)
    # phantoms are smoother than tissue, and small slides pay for their coarse levels
    assert there / 3 < counted < there * 3


def test_a_full_disk_is_refused_before_anything_is_written(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def disk_usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**9, 10**9 - 100_000, 100_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    output = tmp_path / "new" / "out.ome.zarr"
    with pytest.raises(OutputError, match=r"too little free space(.|\n)*found: 0 MiB free"):
        slide.run(output, **FAST)
    assert asked == [tmp_path / "new"]  # where the output is to be
    assert not output.exists()
    monkeypatch.undo()
    assert slide.run(output, **FAST).exit_code == 0


def test_room_is_looked_for_where_the_output_will_be(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there" / "yet", 1)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match="free some space"):
        check_room(tmp_path / "out", 2 * free)
