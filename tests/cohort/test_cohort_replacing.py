"""Layers that are replaced, and copies in another look."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import openslide
import pytest

from support.cheap_runs import differing
from support.cohorts import GOOD, OneByOne, Study, alone, table, times
from wsi_pgdips.cohort.state import StateFile
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.looks.files import load_reference, save_reference
from wsi_pgdips.stages import fit as fitting


def test_overwriting_is_done_once_and_goes_on(
    two: Study, here: OneByOne, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two.run() == 0
    genuine = StateFile.stage

    def stage(self: StateFile, name: str, total: int, unit: str) -> None:
        if name == "render" and self._path.parent.name == "b":
            raise KeyboardInterrupt
        genuine(self, name, total, unit)

    with monkeypatch.context() as impatient:
        impatient.setattr(StateFile, "stage", stage)
        assert two.run("--overwrite", "--seed=5") == 130
    assert open_layers(two.layers("a")).provenance["settings"]["seed"] == 5
    before = times(two.layers("a"))

    def fit_block(*_: Any, **__: Any) -> Any:
        raise AssertionError("b is fitted already")

    with monkeypatch.context() as fitted:
        fitted.setattr(fitting, "fit_block", fit_block)
        assert two.run("--overwrite", "--seed=5") == 0
        # by now all is as it was asked for
        here.seen.clear()
        assert two.run("--overwrite", "--seed=5") == 0
        assert two.retry("--failed") == 0
    assert here.seen == []
    assert times(two.layers("a")) == before
    for name in GOOD:
        with_5 = alone(two.slides / f"{name}.tiff", tmp_path / f"{name}.ome.zarr", seed=5)
        assert differing(with_5, two.layers(name)) == []


def test_layers_of_others_are_replaced_where_that_is_asked_for(
    two: Study, separate: dict[str, Path]
) -> None:
    table(two.slides, "slide", "a.tiff")
    shutil.copytree(separate["b"], two.layers("a"))
    assert two.run() == 3
    assert "another slide" in two.failures()["a"]["reason"]
    assert two.run("--overwrite") == 3  # what has failed waits to be asked for
    assert two.retry("--failed") == 0
    assert differing(separate["a"], two.layers("a")) == []


def test_another_slide_of_the_same_name(
    two: Study, here: OneByOne, separate: dict[str, Path]
) -> None:
    assert two.run() == 0
    (two.slides / "new").mkdir()
    shutil.copyfile(two.slides / "a.tiff", two.slides / "new" / "b.tiff")
    table(two.slides, "slide", "a.tiff", "new/b.tiff")
    assert two.run() == 2
    here.seen.clear()
    assert two.run("--overwrite") == 0
    assert here.seen == ["b"]
    assert open_layers(two.layers("b")).grid == open_layers(separate["a"]).grid


def test_a_slide_whose_file_changes(two: Study, here: OneByOne, separate: dict[str, Path]) -> None:
    assert two.run() == 0
    here.seen.clear()
    shutil.copyfile(two.slides / "a.tiff", two.slides / "b.tiff")  # scanned again
    assert two.run() == 3
    assert here.seen == ["b"]
    assert "another slide" in two.failures()["b"]["reason"]
    assert differing(separate["b"], two.layers("b")) == []
    assert two.run("--overwrite") == 3  # what has failed waits to be asked for
    assert two.retry("--failed") == 0
    assert open_layers(two.layers("b")).grid == open_layers(separate["a"]).grid
    # a copy of the same bytes, or none any more, is no other slide
    here.seen.clear()
    before = times(two.layers("a"))
    os.utime(two.slides / "a.tiff", (1, 1))
    (two.slides / "b.tiff").unlink()
    assert two.run() == 0
    assert here.seen == ["a"]
    assert times(two.layers("a")) == before
    assert two.run() == 0
    assert here.seen == ["a"]


def test_slides_have_settings_and_looks_of_their_own(two: Study, here: OneByOne, call: Any) -> None:
    table(two.slides, "slide,mpp,stains,reference,output", "a.tiff,1,,he,", "b.tiff,,hdab,,x/B")
    assert two.run() == 0
    a, b = open_layers(two.layers("a")), open_layers(two.job / "x" / "B")
    assert (a.grid.mpp, b.grid.mpp) == (1.0, 0.5)
    assert (a.stains.name, b.stains.name) == ("he", "hdab")
    assert two.leftovers() == []
    copy = two.layers("a").with_name("a.he.tiff")
    assert [p.name for p in two.job.rglob("*.tiff")] == [copy.name]
    with openslide.OpenSlide(copy) as opened:
        assert opened.dimensions == (700, 500)
        assert opened.level_count >= 1
    assert two.summary()["rows"][0]["normalised"] == str(copy)

    here.seen.clear()
    before = times(two.job / "layers")
    assert two.run() == 0
    assert here.seen == []
    # a copy that is gone is made again, and nothing else
    copy.unlink()
    assert call("cohort", "verify", two.job, "--quiet") == 3
    assert two.run() == 0
    assert here.seen == ["a"]
    after = times(two.job / "layers")
    assert {p for p in before if before[p] != after[p]} == {str(copy)}
    # as is one of layers that were replaced
    assert two.run("--overwrite", "--seed=3") == 0
    record = two.layers("a") / "provenance" / "run.json"
    assert copy.stat().st_mtime_ns > record.stat().st_mtime_ns > after[str(copy)]
    assert call("cohort", "verify", two.job, "--quiet") == 0


def test_a_copy_of_ones_own_is_not_replaced(two: Study) -> None:
    table(two.slides, "slide", "a.tiff")
    mine = two.layers("a").with_name("a.self.tiff")
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    os.utime(mine, (1, 1))
    assert two.run("--reference=self") == 3
    assert "exists" in two.failures()["a"]["reason"]
    assert mine.read_text() == "precious"


def test_a_copy_of_layers_that_were_made_anew_is_replaced(one: Study) -> None:
    assert one.run("--reference=self") == 0
    copy = one.layers("a").with_name("a.self.tiff")
    before = copy.read_bytes()
    shutil.rmtree(one.layers("a"))
    copy.write_bytes(before + b"as it was once")
    os.utime(copy, (1, 1))
    assert one.run("--reference=self") == 0
    assert len(copy.read_bytes()) == len(before)


def test_another_look_of_the_same_name(one: Study, call: Any) -> None:
    looks = [one.slides / f"{i}" / "look.json" for i in (1, 2)]
    for look in looks:
        look.parent.mkdir()
        save_reference(load_reference("he"), look)
    look = f"--reference={looks[0]}"
    assert one.run(look) == 0
    copy = one.layers("a").with_name("a.look.tiff")
    before = copy.stat().st_mtime_ns
    assert one.run(look) == 0
    assert copy.stat().st_mtime_ns == before
    os.utime(looks[0])  # the same as before
    assert one.run(look) == 0
    assert copy.stat().st_mtime_ns == before
    save_reference(replace(load_reference("he"), tissue="liver"), looks[0])
    assert one.run(look) == 0
    assert (anew := copy.stat().st_mtime_ns) > before
    os.utime(looks[0])
    away = (one.slides / "a.tiff").rename(one.slides / "away.tiff")  # archived
    assert one.run(look) == 0
    away.rename(one.slides / "a.tiff")
    assert one.run(f"--reference={looks[1]}") == 2
    assert one.run(f"--reference={looks[1]}", "--overwrite") == 0
    assert copy.stat().st_mtime_ns > anew
