"""``normalize`` and ``export`` as they are typed, and folders of tiles."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image

from support.array_slide import MPP, ArraySlide, waves
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

    def dies(size: tuple[int, int]) -> None:
        asked.append(size)
        if len(asked) > 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        export_tiles(ArraySlide(rgba, MPP, dies), out, size=200)
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert 0 < len(kept) < 9
    (out / "0_0.png.0a1b.partial").write_bytes(b"torn")
    asked.clear()
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


def test_normalize_as_it_is_typed(
    call: Any, capfd: Any, slide: Slide, finished: Layers, tmp_path: Path
) -> None:
    out = tmp_path / "x.tif"
    words = ("normalize", finished.path, "-o", out, "--reference", "self")
    assert call(*words, "--slide", slide.path, "--quality", 80, "--tile", 256) == 0
    shown = capfd.readouterr()
    assert f"written  {out}\n" in shown.out
    assert "export 5/5 rows of tiles" in shown.err
    assert "layers alone" not in shown.err
    assert openslide.OpenSlide(out).properties["openslide.level[0].tile-width"] == "256"
    assert call(*words) == 2
    assert "the output exists" in capfd.readouterr().err
    assert call(*words, "--overwrite") == 0
    assert capfd.readouterr().err.count("without residual") == 1
    assert call(*words, "--overwrite", "-q") == 0
    assert capfd.readouterr() == ("", "")


def test_the_name_of_the_output_says_what_is_written(
    call: Any, capfd: Any, finished: Layers, tmp_path: Path
) -> None:
    words = ("normalize", finished.path, "--only", "eosin", "-q", "-o")
    assert call(*words, tmp_path / "x.ome.zarr", "--ngff", "0.4") == 0
    assert (tmp_path / "x.ome.zarr" / ".zattrs").is_file()
    assert call(*words, tmp_path / "tiles", "--form", "jpeg", "--tile", 256) == 0
    assert (tmp_path / "tiles" / "tiles.csv").is_file()
    assert call("export", finished.path, "-q", "-o", tmp_path / "q.ome.zarr") == 0
    assert (tmp_path / "q.ome.zarr" / "0" / ".zarray").is_file()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("normalize", "LAYERS", "-o", "x.tiff"), "no look was given"),
        (
            ("normalize", "LAYERS", "-o", "x.ome.tiff", "--reference", "self"),
            "does not say what",
        ),
        (("normalize", "LAYERS", "-o", "x.tiff", "--reference", "hdab"), "of other stains"),
        (("normalize", "LAYERS", "-o", "x.tiff", "--only", "DAB"), "no such stain"),
        (("normalize", "LAYERS", "-o", "x.zarr", "--only", "eosin", "--ngff", "1"), "0.5 or 0.4"),
        (("normalize", "LAYERS", "-o", "LAYERS/x.tiff", "--only", "eosin"), "inside the layers"),
        (("normalize", "nothing", "-o", "x.tiff", "--only", "eosin"), "not layers"),
        (("export", "LAYERS", "-o", "x.tiff"), "--output must be a name in .ome.zarr"),
        (("export", "LAYERS", "-o", "x.zarr", "--profile", "ngff09"), "--profile must be ngff04"),
        (("export", "LAYERS", "-o", "LAYERS"), "inside the layers"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: tuple[str, ...], message: str, call: Any, capfd: Any, finished: Layers, tmp_path: Path
) -> None:
    def placed(word: str) -> str:
        at = str(tmp_path / word) if word.startswith("x.") or word == "nothing" else word
        return at.replace("LAYERS", str(finished.path))

    assert call(*map(placed, words)) == 2
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_unfinished_layers_and_the_slide_itself_are_refused(
    call: Any, capfd: Any, slide: Slide, finished: Layers, tmp_path: Path
) -> None:
    copy = tmp_path / "layers.ome.zarr"
    shutil.copytree(finished.path, copy)
    (copy / "provenance" / "run.json").unlink()
    for command in ("normalize", "export"):
        extra = ("--only", "eosin") if command == "normalize" else ()
        assert call(command, copy, "-o", tmp_path / "x.ome.zarr", *extra) == 2
        assert "not finished" in capfd.readouterr().err
    same = tmp_path / "slide.tiff"
    shutil.copy(slide.path, same)
    before = same.read_bytes()
    words = ("--slide", same, "--reference", "self", "--overwrite")
    assert call("normalize", finished.path, "-o", same, *words) == 2
    assert "would replace the slide" in capfd.readouterr().err
    assert same.read_bytes() == before


def test_a_damaged_record_of_tiles_is_of_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_tiles(ArraySlide(waves(64, 64)), out)
    (out / "tiles.csv").unlink()
    (out / "tiles.json").write_text("{torn")
    with pytest.raises(OutputError, match="other settings"):
        export_tiles(ArraySlide(waves(64, 64)), out)


def test_tiles_that_keep_amounts_are_others(
    call: Any, capfd: Any, finished: Layers, tmp_path: Path
) -> None:
    out = tmp_path / "tiles"
    words = ("normalize", finished.path, "-o", out, "--reference", "he")
    assert call(*words) == 0
    (out / "tiles.csv").unlink()
    assert call(*words, "--keep-amounts") == 2
    assert "other settings" in capfd.readouterr().err
    assert call(*words) == 0


def test_another_slide_of_the_same_size_is_told(
    call: Any, capfd: Any, slide: Slide, finished: Layers, tmp_path: Path
) -> None:
    other = tmp_path / "other.tiff"
    other.write_bytes(slide.path.read_bytes() + b"changed")
    words = ("normalize", finished.path, "--reference", "self", "--slide")
    assert call(*words, other, "-o", tmp_path / "a.tiff") == 0
    assert "not the file that these layers were made of" in capfd.readouterr().err
    assert call(*words, slide.path, "-o", tmp_path / "b.tiff") == 0
    assert "not the file" not in capfd.readouterr().err


def test_a_slide_that_is_not_there_is_said_so(
    call: Any, capfd: Any, finished: Layers, tmp_path: Path
) -> None:
    out = tmp_path / "x.tiff"
    out.write_bytes(b"older")
    words = ("normalize", finished.path, "-o", out, "--reference", "self", "--overwrite")
    assert call(*words, "--slide", tmp_path / "gone.svs") == 2
    shown = capfd.readouterr().err
    assert "gone.svs" in shown
    assert "Traceback" not in shown
    assert out.read_bytes() == b"older"
