"""Folders of tiles."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.array_slide import MPP, ArraySlide, dies_after, waves
from support.cheap_runs import Slide
from wsi_pgdips.errors import OutputError
from wsi_pgdips.export.source import read_rgb
from wsi_pgdips.export.tiles import export_tiles
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "tiles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tiles_are_where_their_names_say(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    with NormalizedSlide(slide.path, finished, "self") as reader:
        for level, form in ((0, "png"), (1, "jpeg")):
            out = tmp_path / form
            count = export_tiles(reader, out, size=256, level=level, form=form)
            rows = rows_of(out)
            assert len(rows) == count
            assert sorted(p.name for p in out.glob(f"*.{form}")) == sorted(r["file"] for r in rows)
            scale = round(reader.level_downsamples[level])
            for row in rows:
                assert row["file"] == f"{row['x_l0']}_{row['y_l0']}.{form}"
                assert 0 < float(row["tissue"]) <= 1
                assert int(row["level"]) == level
                at = Region(int(row["y_l0"]) // scale, int(row["x_l0"]) // scale, 256, 256)
                got = np.asarray(Image.open(out / row["file"])).astype(int)
                assert got.shape == (256, 256, 3)
                assert np.abs(got - read_rgb(reader, at, level)).mean() <= (0 if level == 0 else 6)
    told = json.loads((tmp_path / "jpeg" / "tiles.json").read_text())
    assert told["mpp"] == pytest.approx(1.0, rel=0.01)


def test_tiles_without_tissue_are_left_out(tmp_path: Path) -> None:
    mask = np.zeros((11, 7), bool)
    mask[4, 2] = True
    plain = ArraySlide(waves(1100, 700))
    assert export_tiles(plain, tmp_path / "a", size=200, tissue=mask) == 1
    # the mask's pixel is a quarter of the tile
    shares = {(r["x_l0"], r["y_l0"]): float(r["tissue"]) for r in rows_of(tmp_path / "a")}
    assert shares == {("200", "400"): 0.25}
    assert export_tiles(plain, tmp_path / "b", size=200, tissue=mask, blank=True) == 24
    assert export_tiles(plain, tmp_path / "c", size=200) == 24


def test_a_folder_of_tiles_is_gone_on_with(tmp_path: Path) -> None:
    rgba, out, asked = waves(600, 600), tmp_path / "out", []
    with pytest.raises(RuntimeError, match="killed"):
        export_tiles(ArraySlide(rgba, MPP, dies_after(3)), out, size=200)
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert 0 < len(kept) < 9
    (out / "0_0.png.0a1b.partial").write_bytes(b"torn")
    with pytest.raises(OutputError, match="other settings"):
        export_tiles(ArraySlide(rgba), out, size=300)
    assert export_tiles(ArraySlide(rgba, MPP, asked.append), out, size=200) == 9
    assert len(asked) == 9 - len(kept)
    assert {n: (out / n).stat().st_mtime_ns for n in kept} == kept
    assert not list(out.glob("*.partial"))
    with pytest.raises(OutputError, match="exists"):
        export_tiles(ArraySlide(rgba), out, size=200)
    assert export_tiles(ArraySlide(rgba), out, size=300, overwrite=True) == 4
    assert len(list(out.iterdir())) == 4 + 2


KILLED = """
import os, sys
from pathlib import Path
from support.array_slide import ArraySlide, waves
from wsi_pgdips.export.tiles import export_tiles

def killed(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(sys.argv[2]):
        os._exit(9)

sys.addaudithook(killed)
export_tiles(ArraySlide(waves(300, 300)), Path(sys.argv[1]), size=200)
"""


@pytest.mark.parametrize(("table", "tiles"), [("tiles.json", 0), ("tiles.csv", 4)])
def test_an_export_killed_while_it_wrote_a_table_is_resumed(
    table: str, tiles: int, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path), table]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.glob(f"{table}.*.partial"))) == 1
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    assert len(kept) == tiles
    assert export_tiles(ArraySlide(waves(300, 300)), tmp_path, size=200) == 4
    assert len(list(tmp_path.iterdir())) == 4 + 2
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in kept} == kept


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "1_2.png").write_bytes(b"my own")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not an export of wsi-pgdips"):
            export_tiles(ArraySlide(waves(64, 64)), tmp_path, overwrite=overwrite)
    assert (tmp_path / "1_2.png").read_bytes() == b"my own"


def test_a_damaged_record_of_tiles_is_of_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_tiles(ArraySlide(waves(64, 64)), out)
    (out / "tiles.csv").unlink()
    (out / "tiles.json").write_text("{torn")
    with pytest.raises(OutputError, match="other settings"):
        export_tiles(ArraySlide(waves(64, 64)), out)
