"""The commands ``normalize`` and ``export``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openslide
import pytest

from support.cheap_runs import Slide
from wsi_pgdips.layers.reader import Layers


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
