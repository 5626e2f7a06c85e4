"""Many slides: each comes to its own end, whatever becomes of the others."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openslide
import pytest

from support.cheap_runs import differing
from support.cohorts import (
    GOOD,
    OPTIONS,
    OneByOne,
    alone,
    failures,
    lay_slides,
    layers,
    leftovers,
    program,
    standings,
    summary,
    table,
)
from wsi_pgdips.cohort import runner, state, work
from wsi_pgdips.cohort.folder import CohortOptions, JobFolder
from wsi_pgdips.cohort.state import StateFile, read_states, state_of_slide
from wsi_pgdips.errors import ClusterError, OutputError, SlideError
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.looks.files import load_reference, save_reference
from wsi_pgdips.pipeline import lock, pool
from wsi_pgdips.pipeline import slide as pipeline
from wsi_pgdips.slide import image, reader
from wsi_pgdips.slurm.submission import queue_of
from wsi_pgdips.stages import fit as fitting


@dataclass(frozen=True)
class Study:
    """Slides, a manifest of them, and a job folder."""

    slides: Path
    manifest: Path
    job: Path

    def copied(self, folder: Path) -> Study:
        """One's own, to go on with."""
        shutil.copytree(self.slides, folder / "slides")
        shutil.copytree(self.job, folder / "job")
        plan = folder / "job" / "cohort.json"
        plan.write_text(plan.read_text().replace(str(self.slides), str(folder / "slides")))
        return Study(folder / "slides", folder / "slides" / "cohort.csv", folder / "job")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    lay_slides(folder)
    return folder


@pytest.fixture(scope="module")
def ran(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A cohort that worker processes have run, with failures; nobody may change it."""
    study = Study(slides, slides / "cohort.csv", tmp_path_factory.mktemp("ran") / "job")
    done = program("cohort", "run", study.manifest, study.job, *OPTIONS, "--workers=1")
    assert done.returncode == 3, done.stderr
    return study


@pytest.fixture(scope="module")
def separate(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layers of the good slides as runs of their own make them."""
    folder = tmp_path_factory.mktemp("separate")
    return {n: alone(slides / f"{n}.tiff", folder / f"{n}.ome.zarr") for n in GOOD}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> OneByOne:
    """Slides are run in this process."""
    inline = OneByOne()
    monkeypatch.setattr(pool, "slide_pool", inline)
    return inline


@pytest.fixture
def two(slides: Path, tmp_path: Path) -> Study:
    """The good slides, and a folder in which nothing is begun."""
    for name in GOOD:
        (tmp_path / "slides").mkdir(exist_ok=True)
        shutil.copyfile(slides / f"{name}.tiff", tmp_path / "slides" / f"{name}.tiff")
    manifest = table(tmp_path / "slides", "slide", "a.tiff", "b.tiff")
    return Study(tmp_path / "slides", manifest, tmp_path / "job")


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# a cohort with failures


def test_the_others_are_done_and_failures_are_told(ran: Study, separate: dict[str, Path]) -> None:
    found = summary(ran.job)
    assert {k: found[k] for k in ("slides", "done", "failed", "exit_code")} == {
        "slides": 4,
        "done": 2,
        "failed": 2,
        "exit_code": 3,
    }
    assert standings(ran.job) == {
        "a": "done",
        "truncated": "failed",
        "b": "done",
        "blank": "failed",
    }
    rows = failures(ran.job)
    assert rows.keys() == {"truncated", "blank"}
    assert "damaged or truncated" in rows["truncated"]["reason"]
    assert "no tissue" in rows["blank"]["reason"]
    for name, row in rows.items():
        assert row["exit_code"] == "2"
        assert row["status"] == "failed"
        assert Path(row["log"]).read_text().count("tissue" if name == "blank" else "truncated")
        assert Path(row["slide"]).is_file()
        assert row["what_to_do"]
        assert not Path(row["output"]).exists()
    assert leftovers(ran.job) == []
    for name in GOOD:
        assert differing(separate[name], layers(ran.job, name)) == []
        assert "finalize" in (ran.job / "logs" / f"{name}.log").read_text()


def test_again_nothing_is_to_do(
    ran: Study, here: OneByOne, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ran.copied(tmp_path)
    before = times(mine.job / "layers") | times(mine.job / "logs") | times(mine.job / "state")
    assert call("cohort", "run", mine.manifest, mine.job, *OPTIONS) == 3
    assert "2 done, 2 failed" in capsys.readouterr().out
    assert call("cohort", "retry", mine.job) == 3
    assert here.seen == []
    after = times(mine.job / "layers") | times(mine.job / "logs") | times(mine.job / "state")
    assert after == before
    assert failures(mine.job).keys() == {"truncated", "blank"}


def test_failures_are_tried_again_when_they_are_repaired(
    ran: Study, here: OneByOne, tmp_path: Path, call: Any
) -> None:
    mine = ran.copied(tmp_path)
    shutil.copyfile(mine.slides / "a.tiff", mine.slides / "truncated.tiff")
    assert call("cohort", "retry", mine.job, "--failed", "--quiet") == 3
    assert sorted(here.seen) == ["blank", "truncated"]
    assert failures(mine.job).keys() == {"blank"}
    # what is wrong with the finished ones is none of its business
    (layers(mine.job, "a") / "provenance" / "run.json").write_text("{")
    shutil.copyfile(mine.slides / "b.tiff", mine.slides / "blank.tif")
    here.seen.clear()
    assert call("cohort", "retry", mine.job, "--quiet") == 3  # it has another file now
    assert sorted(here.seen) == ["a", "blank"]
    rows = failures(mine.job)
    assert rows.keys() == {"a"}
    assert "is damaged" in rows["a"]["reason"]
    shutil.rmtree(layers(mine.job, "a"))
    assert call("cohort", "retry", mine.job, "--failed", "--quiet") == 0
    assert failures(mine.job) == {}
    assert summary(mine.job)["exit_code"] == 0
    assert leftovers(mine.job) == []


def test_what_failed_waits_while_it_is_tried_again(
    ran: Study, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, seen = ran.copied(tmp_path), []

    def before(name: str) -> None:
        folder, cohort = JobFolder.opened(mine.job)
        rows = runner.rows_of(folder, cohort, queue_of(folder))
        seen.append({r.entry.name: r.standing for r in rows if r.standing != "done"})
        if name == "blank":
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "slide_pool", OneByOne(before))
    reason = failures(mine.job)["blank"]["reason"]
    assert call("cohort", "retry", mine.job, "--failed", "--quiet") == 130
    assert seen == [
        {"truncated": "waiting", "blank": "waiting"},
        {"truncated": "failed", "blank": "waiting"},
    ]
    # it was not come to: why it failed is known as before
    assert standings(mine.job)["blank"] == "failed"
    assert failures(mine.job)["blank"]["reason"] == reason


def test_a_manifest_may_grow_and_settings_may_not_change(
    two: Study, here: OneByOne, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    table(two.slides, "slide", "a.tiff")
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet") == 0
    table(two.slides, "slide", "b.tiff", "a.tiff")
    before = times(layers(two.job, "a"))
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet") == 0
    assert here.seen == ["a", "b"]
    assert times(layers(two.job, "a")) == before
    assert list(standings(two.job)) == ["b", "a"]

    plan = (two.job / "cohort.json").read_bytes()
    for options, said in ((("--seed=5",), "seed = 0, now 5"), (("--mpp=1",), "mpp = 0.5, now 1")):
        capsys.readouterr()
        assert call("cohort", "run", two.manifest, two.job, *OPTIONS, *options) == 2
        assert said in capsys.readouterr().err
    shutil.copytree(two.slides, two.slides / "moved")
    table(two.slides, "slide", "moved/a.tiff")
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS) == 2
    assert "moved/a.tiff" in capsys.readouterr().err
    assert (two.job / "cohort.json").read_bytes() == plan
    assert leftovers(two.job) == []
    assert call("cohort", "run", two.manifest, two.job / "cohort.json", *OPTIONS) == 2
    (two.job / "cohort.json").write_text('{"version": 99}')
    assert call("cohort", "status", two.job) == 2
    assert "another version" in capsys.readouterr().err
    for broken in ("{", "[]", '{"version": 1, "entries": [{}], "options": {}, "retries": 2}'):
        (two.job / "cohort.json").write_text(broken)
        assert call("cohort", "status", two.job) == 2
        assert "cannot be read" in capsys.readouterr().err


# replacing


def test_overwriting_is_done_once_and_goes_on(
    two: Study,
    here: OneByOne,
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    assert call(*command) == 0
    genuine = StateFile.stage

    def stage(self: StateFile, name: str, total: int, unit: str) -> None:
        if name == "render" and self._path.parent.name == "b":
            raise KeyboardInterrupt
        genuine(self, name, total, unit)

    with monkeypatch.context() as impatient:
        impatient.setattr(StateFile, "stage", stage)
        assert call(*command, "--overwrite", "--seed=5") == 130
    assert open_layers(layers(two.job, "a")).provenance["settings"]["seed"] == 5
    before = times(layers(two.job, "a"))

    def fit_block(*_: Any, **__: Any) -> Any:
        raise AssertionError("b is fitted already")

    with monkeypatch.context() as fitted:
        fitted.setattr(fitting, "fit_block", fit_block)
        assert call(*command, "--overwrite", "--seed=5") == 0
        # by now all is as it was asked for
        here.seen.clear()
        assert call(*command, "--overwrite", "--seed=5") == 0
        assert call("cohort", "retry", two.job, "--failed", "--quiet") == 0
    assert here.seen == []
    assert times(layers(two.job, "a")) == before
    for name in GOOD:
        with_5 = alone(two.slides / f"{name}.tiff", tmp_path / f"{name}.ome.zarr", seed=5)
        assert differing(with_5, layers(two.job, name)) == []


def test_layers_of_others_are_replaced_where_that_is_asked_for(
    two: Study, here: OneByOne, call: Any, separate: dict[str, Path]
) -> None:
    table(two.slides, "slide", "a.tiff")
    shutil.copytree(separate["b"], layers(two.job, "a"))
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    assert call(*command) == 3
    assert "another slide" in failures(two.job)["a"]["reason"]
    assert call(*command, "--overwrite") == 3  # what has failed waits to be asked for
    assert call("cohort", "retry", two.job, "--failed", "--quiet") == 0
    assert differing(separate["a"], layers(two.job, "a")) == []


def test_another_slide_of_the_same_name(
    two: Study, here: OneByOne, call: Any, separate: dict[str, Path]
) -> None:
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    assert call(*command) == 0
    (two.slides / "new").mkdir()
    shutil.copyfile(two.slides / "a.tiff", two.slides / "new" / "b.tiff")
    table(two.slides, "slide", "a.tiff", "new/b.tiff")
    assert call(*command) == 2
    here.seen.clear()
    assert call(*command, "--overwrite") == 0
    assert here.seen == ["b"]
    assert open_layers(layers(two.job, "b")).grid == open_layers(separate["a"]).grid


def test_a_slide_whose_file_changes(
    two: Study, here: OneByOne, call: Any, separate: dict[str, Path]
) -> None:
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    assert call(*command) == 0
    here.seen.clear()
    shutil.copyfile(two.slides / "a.tiff", two.slides / "b.tiff")  # scanned again
    assert call(*command) == 3
    assert here.seen == ["b"]
    assert "another slide" in failures(two.job)["b"]["reason"]
    assert differing(separate["b"], layers(two.job, "b")) == []
    assert call(*command, "--overwrite") == 3  # what has failed waits to be asked for
    assert call("cohort", "retry", two.job, "--failed", "--quiet") == 0
    assert open_layers(layers(two.job, "b")).grid == open_layers(separate["a"]).grid
    # a copy of the same bytes, or none any more, is no other slide
    here.seen.clear()
    before = times(layers(two.job, "a"))
    os.utime(two.slides / "a.tiff", (1, 1))
    (two.slides / "b.tiff").unlink()
    assert call(*command) == 0
    assert here.seen == ["a"]
    assert times(layers(two.job, "a")) == before
    assert call(*command) == 0
    assert here.seen == ["a"]


# settings of single slides


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("mpp", "fine", "mpp = 'fine'"),
        ("tile", "300", "tile = '300'"),
        ("icc", "maybe", "icc = 'maybe'"),
        ("stains", "turquoise", "unknown stain set"),
        ("stains", "missing.toml", "missing.toml"),
        ("mask", "missing.png", "no such file"),
        ("roi", "missing.geojson", "no such file"),
        ("reference", "nice", "unknown reference"),
        ("reference", "missing.json", "missing.json"),
    ],
)
def test_a_bad_row_is_told_before_anything_is_begun(
    header: str, row: str, said: str, two: Study, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    table(two.slides, f"slide,{header}", "a.tiff,", f"b.tiff,{row}")
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "slide b" in told
    assert not two.job.exists()


def test_slides_have_settings_and_looks_of_their_own(
    two: Study, here: OneByOne, call: Any, tmp_path: Path
) -> None:
    table(two.slides, "slide,mpp,stains,reference,output", "a.tiff,1,,he,", "b.tiff,,hdab,,x/B")
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    assert call(*command) == 0
    a, b = open_layers(layers(two.job, "a")), open_layers(two.job / "x" / "B")
    assert (a.grid.mpp, b.grid.mpp) == (1.0, 0.5)
    assert (a.stains.name, b.stains.name) == ("he", "hdab")
    assert leftovers(two.job) == []
    copy = layers(two.job, "a").with_name("a.he.tiff")
    assert [p.name for p in two.job.rglob("*.tiff")] == [copy.name]
    with openslide.OpenSlide(copy) as opened:
        assert opened.dimensions == (700, 500)
        assert opened.level_count >= 1
    assert summary(two.job)["rows"][0]["normalised"] == str(copy)

    here.seen.clear()
    before = times(two.job / "layers")
    assert call(*command) == 0
    assert here.seen == []
    # a copy that is gone is made again, and nothing else
    copy.unlink()
    assert call("cohort", "verify", two.job, "--quiet") == 3
    assert call(*command) == 0
    assert here.seen == ["a"]
    after = times(two.job / "layers")
    assert {p for p in before if before[p] != after[p]} == {str(copy)}
    # as is one of layers that were replaced
    assert call(*command, "--overwrite", "--seed=3") == 0
    record = layers(two.job, "a") / "provenance" / "run.json"
    assert copy.stat().st_mtime_ns > record.stat().st_mtime_ns > after[str(copy)]
    assert call("cohort", "verify", two.job, "--quiet") == 0


def test_a_copy_of_ones_own_is_not_replaced(
    two: Study, here: OneByOne, call: Any, tmp_path: Path
) -> None:
    table(two.slides, "slide", "a.tiff")
    mine = layers(two.job, "a").with_name("a.self.tiff")
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    os.utime(mine, (1, 1))
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet", "--reference=self")
    assert call(*command) == 3
    assert "exists" in failures(two.job)["a"]["reason"]
    assert mine.read_text() == "precious"


def test_a_copy_of_layers_that_were_made_anew_is_replaced(
    one: Study, here: OneByOne, call: Any
) -> None:
    assert run_one(call, one, "--reference=self")[0] == 0
    copy = layers(one.job, "a").with_name("a.self.tiff")
    before = copy.read_bytes()
    shutil.rmtree(layers(one.job, "a"))
    copy.write_bytes(before + b"as it was once")
    os.utime(copy, (1, 1))
    assert run_one(call, one, "--reference=self")[0] == 0
    assert len(copy.read_bytes()) == len(before)


# what goes wrong


@pytest.fixture
def one(two: Study) -> Study:
    table(two.slides, "slide", "a.tiff")
    return two


def run_one(call: Any, study: Study, *options: str) -> Any:
    """(exit code, state) of a cohort of one slide."""
    code = call("cohort", "run", study.manifest, study.job, *OPTIONS, "--quiet", *options)
    return code, state_of_slide(read_states(study.job / "state" / "a"))


def failing(*errors: BaseException) -> Callable[..., Any]:
    """``run_part`` that fails as told before it works."""
    left, genuine = list(errors), pipeline.run_part

    def run_part(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop(0)
        return genuine(*arguments, **named)

    return run_part


def stale() -> OutputError:
    """As the operating system's error comes through layers of ours."""
    try:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    except OSError as error:
        wrapped = OutputError("writing the output failed", found=error.strerror)
        wrapped.__cause__ = error
        return wrapped


def test_a_fault_that_passes_is_waited_for(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    raw = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(pipeline, "run_part", failing(raw, stale()))
    code, state = run_one(call, one)
    assert (code, state.status) == (0, "done")
    assert waits == [5.0, 30.0]
    log = (one.job / "logs" / "a.log").read_text()
    assert log.count("this may pass: trying again") == 2
    assert "Stale file handle" in log


def test_what_was_begun_before_a_fault_is_not_begun_anew(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_one(call, one)[0] == 0
    monkeypatch.setattr(time, "sleep", lambda _: None)
    genuine, fits, left = fitting.fit_block, list[int](), [stale()]

    def fit_block(*arguments: Any, **named: Any) -> Any:
        fits.append(1)
        return genuine(*arguments, **named)

    def stage(self: StateFile, name: str, *_: Any) -> None:
        if name == "render" and left:
            raise left.pop()

    monkeypatch.setattr(fitting, "fit_block", fit_block)
    monkeypatch.setattr(StateFile, "stage", stage)
    shutil.rmtree(one.job / "state")  # layers of others, as far as the cohort knows
    assert run_one(call, one, "--overwrite")[0] == 0
    assert (len(fits), left) == (1, [])  # of one block


def test_one_that_does_not_pass_is_told(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(pipeline, "run_part", failing(*(stale() for _ in range(3))))
    code, state = run_one(call, one, "--retries=1")
    assert (code, state.status, state.exit_code) == (3, "failed", 2)
    assert waits == [5.0]
    raw = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(pipeline, "run_part", failing(raw, raw))
    assert call("cohort", "retry", one.job, "--failed", "--quiet") == 3
    row = failures(one.job)["a"]
    assert "bug" not in row["what_to_do"]
    assert "whether the disk is there" in row["what_to_do"]


@pytest.mark.parametrize("passes", [True, False], ids=["a share that comes back", "a hole"])
def test_tiles_that_cannot_be_read_are_looked_at_once_more(
    passes: bool, one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, waits = [True], list[float]()
    for kind in (reader.OpenSlidePyramid, image.TiffPyramid):
        genuine = kind.read_level

        def read(self: Any, level: int, *window: int, genuine: Any = genuine) -> Any:
            if away and level == 0 and window[:2] < (200, 200) and window[2:] != (8, 8):
                raise SlideError("pixels of the slide cannot be read")
            return genuine(self, level, *window)

        monkeypatch.setattr(kind, "read_level", read)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if passes:
            away.clear()

    monkeypatch.setattr(time, "sleep", sleep)
    code, state = run_one(call, one)
    assert waits == [5.0]
    log = (one.job / "logs" / "a.log").read_text()
    assert "tiles failed: looking at them in 5 s" in log
    assert ("they can be read now: trying again" in log) == passes
    assert (code, state.status) == ((0, "done") if passes else (3, "incomplete"))
    if passes:
        assert (
            differing(alone(one.slides / "a.tiff", one.job.parent / "alone"), layers(one.job, "a"))
            == []
        )


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("a surprise")]
)
def test_a_surprise_stays_with_its_slide(
    error: Exception,
    two: Study,
    here: OneByOne,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(time, "sleep", pytest.fail)
    monkeypatch.setattr(pipeline, "run_part", failing(error))
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS) == 3
    assert standings(two.job) == {"a": "failed", "b": "done"}
    row = failures(two.job)["a"]
    assert row["exit_code"] == "1"
    assert f"unexpected {type(error).__name__}" in row["reason"]
    assert "bug of wsi-pgdips" in row["what_to_do"]
    log = Path(row["log"]).read_text()
    assert "Traceback (most recent call last)" in log
    assert str(error) in log
    assert "Traceback" not in capsys.readouterr().err


def test_a_state_that_cannot_be_written_stays_with_its_slide(
    two: Study, here: OneByOne, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (two.job / "state").mkdir(parents=True)
    (two.job / "state" / "a").write_text("in the way")
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    assert call(*command) == 3
    assert standings(two.job) == {"a": "failed", "b": "done"}
    row = failures(two.job)["a"]
    assert "the output cannot be written" in row["reason"]
    assert "state/a" in row["reason"]
    assert "permissions" in row["what_to_do"]
    (two.job / "state" / "a").unlink()
    assert call(*command) == 0


def test_a_state_is_written_when_the_disk_is_back(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, waits = StateFile._write, list[float]()

    def write(self: StateFile) -> Any:
        if self.state.status == "done" and len(waits) < 3:
            raise stale()
        if self.state.stage == "render" and self.state.status == "running":
            raise stale()  # how far it is may be missed
        return genuine(self)

    monkeypatch.setattr(StateFile, "_write", write)
    monkeypatch.setattr(time, "sleep", waits.append)
    code, found = run_one(call, one)
    assert (code, found.status) == (0, "done")
    assert waits == list(state.AGAIN_S)


def test_who_was_taken_for_dead_does_not_spoil_what_another_has_finished(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = pipeline.run_part

    def run_part(*arguments: Any, **named: Any) -> Any:
        genuine(*arguments, **named)  # as the other does
        raise OutputError("the files are gone")

    monkeypatch.setattr(pipeline, "run_part", run_part)
    code, found = run_one(call, one)
    assert (code, found.status, found.tiles > 0) == (0, "done", True)
    assert "another process has finished the slide" in (one.job / "logs" / "a.log").read_text()
    # what was done before says nothing of this run
    folder, cohort = JobFolder.opened(one.job)
    found = work.SlideWork(folder, cohort, cohort.entries[0]).run()
    assert found is not None
    assert (found.status, found.reason) == ("failed", "the files are gone")


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode here")
def test_names_that_are_not_unicode(slides: Path, tmp_path: Path) -> None:
    folder, job = tmp_path / "slides", tmp_path / "job"
    folder.mkdir()
    shutil.copyfile(slides / "a.tiff", folder / os.fsdecode(b"caf\xe9.tiff"))
    shutil.copyfile(slides / "truncated.tiff", folder / os.fsdecode(b"caf\xe8.tiff"))
    done = program("cohort", "run", folder, job, *OPTIONS, "--workers=1")
    assert done.returncode == 3, done.stderr
    names = {r"caf\udce9": "done", r"caf\udce8": "failed"}
    assert standings(job) == names
    assert list(failures(job)) == [r"caf\udce8"]
    said = program("cohort", "status", job).stdout
    assert all(name in said for name in names)
    assert program("cohort", "verify", job, "--quiet").returncode == 0


def test_stopping_at_the_first_failure(
    two: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run_part", failing(RuntimeError("a surprise")))
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS)
    config = two.slides / "s.toml"
    config.write_text("skip_errors = false\n")
    assert call(*command, f"--config={config}") == 3
    assert standings(two.job) == {"a": "failed", "b": "waiting"}
    assert call(*command, f"--config={config}", "--skip-errors") == 3
    assert standings(two.job) == {"a": "failed", "b": "done"}
    for broken in ("skip_errors = 1", "retries = true", "retries = -1", "slides = 3"):
        config.write_text(broken)
        assert call(*command, f"--config={config}") == 2


def suicide(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


GENUINE = runner.on_slide


def deadly(job: Any, name: str, on_tile: Any = None) -> Any:
    """``on_slide`` of a worker process that b takes with it."""
    if name == "b":
        pipeline.run_part = suicide
    return GENUINE(job, name)


def test_a_slide_that_kills_its_process_leaves_the_others_alone(
    two: Study, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(two.slides / "a.tiff", two.slides / "c.tiff")
    table(two.slides, "slide", "b.tiff", "a.tiff", "c.tiff")
    monkeypatch.setattr(runner, "on_slide", deadly)
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--workers=1", "--quiet")
    assert call(*command) == 3
    assert standings(two.job) == {"b": "failed", "a": "done", "c": "done"}
    row = failures(two.job)["b"]
    assert "died twice" in row["reason"]
    assert "memory" in row["what_to_do"]
    monkeypatch.setattr(pool, "slide_pool", OneByOne())
    monkeypatch.setattr(runner, "on_slide", GENUINE)
    assert call("cohort", "retry", two.job, "--failed", "--quiet") == 0
    assert leftovers(two.job) == []


# several at once


def test_what_another_process_holds_is_left_to_it(
    two: Study,
    here: OneByOne,
    call: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock, "BEATS", 0)  # it has shown for long enough that it works
    command = ("cohort", "run", two.manifest, two.job, *OPTIONS)
    with lock.lock_output(layers(two.job, "a")):
        assert call(*command) == 3
        assert "a: another process works on it" in capsys.readouterr().err
        assert standings(two.job) == {"a": "waiting", "b": "done"}
        assert failures(two.job) == {}
        assert not (two.job / "state" / "a").exists()
    with lock.lock_output(two.job / "state" / "a" / "run"):
        assert call(*command) == 3
        assert read_states(two.job / "state" / "a") == ()
    assert call(*command, "--quiet") == 0


@pytest.mark.parametrize("where", ["output", "state"])
def test_who_has_just_died_elsewhere_is_waited_for(
    where: str, one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = layers(one.job, "a") if where == "output" else one.job / "state" / "a" / "run"
    place.parent.mkdir(parents=True)
    left = lock.lock_path(place, "run")
    left.write_text(json.dumps(asdict(replace(lock.Holder.this(), host="another"))))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            os.utime(left, (1, 1))

    with monkeypatch.context() as patient:
        patient.setattr(lock.time, "sleep", sleep)
        assert run_one(call, one)[0] == 0
    assert waits == [lock.WAIT_S] * 4
    assert leftovers(one.job) == []


def test_a_cohort_that_is_broken_off_is_reported(
    two: Study, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(name: str) -> None:
        if name == "b":
            raise ClusterError("the scheduler was lost")

    monkeypatch.setattr(pool, "slide_pool", OneByOne(lost))
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet") == 2
    assert standings(two.job) == {"a": "done", "b": "waiting"}


def test_a_worker_that_cannot_read_the_plan_fails_its_slide_alone(
    two: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = JobFolder.opened

    def on_slide(job: Any, name: str, *others: Any) -> Any:
        with monkeypatch.context() as away:
            if name == "a":
                away.setattr(JobFolder, "opened", lambda *_: genuine(two.slides))
            return GENUINE(job, name, *others)

    monkeypatch.setattr(runner, "on_slide", on_slide)
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet") == 3
    assert standings(two.job) == {"a": "failed", "b": "done"}
    assert "no cohort here" in failures(two.job)["a"]["reason"]


def test_a_slide_that_comes_later_is_picked_up(one: Study, here: OneByOne, call: Any) -> None:
    away = (one.slides / "a.tiff").rename(one.slides / "away.tiff")
    assert run_one(call, one)[0] == 3
    assert "no such file" in failures(one.job)["a"]["reason"]
    assert run_one(call, one)[0] == 3
    assert here.seen == ["a"]  # not again and again
    away.rename(one.slides / "a.tiff")
    assert run_one(call, one)[0] == 0


def test_a_state_that_cannot_be_written_leaves_that_of_before(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "run_part", failing(SlideError("broken")))
        assert run_one(call, one)[0] == 3

    def full(self: StateFile) -> Any:
        raise OutputError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(StateFile, "_write", full)
        assert call("cohort", "retry", one.job, "--failed", "--quiet") == 3
        assert failures(one.job)["a"]["reason"] == "the disk is full"
    (kept,) = read_states(one.job / "state" / "a")
    assert (kept.status, kept.reason) == ("failed", "broken")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_signal_is_seen_also_where_the_log_is_full(
    one: Study, here: OneByOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cohort = runner.plan_cohort(one.manifest, one.job, CohortOptions.of(None, {}, {}))
    folder.keep(cohort)
    (one.job / "logs").mkdir()
    (one.job / "logs" / "a.log").symlink_to("/dev/full")

    def run_part(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_part", run_part)
    with pytest.raises(KeyboardInterrupt):
        work.SlideWork(folder, cohort, cohort.entries[0]).run()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("surprise", [False, True])
def test_a_log_that_cannot_be_written_is_no_fault_of_the_slide(
    surprise: bool, one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one.job / "logs").mkdir(parents=True)
    (one.job / "logs" / "a.log").symlink_to("/dev/full")
    if surprise:
        monkeypatch.setattr(pipeline, "run_part", failing(RuntimeError("a surprise")))
    code, found = run_one(call, one)
    assert (code, found.status) == ((3, "failed") if surprise else (0, "done"))
    assert not surprise or "a surprise" in failures(one.job)["a"]["reason"]


def test_another_look_of_the_same_name(one: Study, here: OneByOne, call: Any) -> None:
    looks = [one.slides / f"{i}" / "look.json" for i in (1, 2)]
    for look in looks:
        look.parent.mkdir()
        save_reference(load_reference("he"), look)
    command = (call, one, f"--reference={looks[0]}")
    assert run_one(*command)[0] == 0
    copy = layers(one.job, "a").with_name("a.look.tiff")
    before = copy.stat().st_mtime_ns
    assert run_one(*command)[0] == 0
    assert copy.stat().st_mtime_ns == before
    os.utime(looks[0])  # the same as before
    assert run_one(*command)[0] == 0
    assert copy.stat().st_mtime_ns == before
    save_reference(replace(load_reference("he"), off_plane=0.02), looks[0])
    assert run_one(*command)[0] == 0
    assert (anew := copy.stat().st_mtime_ns) > before
    os.utime(looks[0])
    away = (one.slides / "a.tiff").rename(one.slides / "away.tiff")  # archived
    assert run_one(*command)[0] == 0
    away.rename(one.slides / "a.tiff")
    assert run_one(call, one, f"--reference={looks[1]}")[0] == 2
    assert run_one(call, one, f"--reference={looks[1]}", "--overwrite")[0] == 0
    assert copy.stat().st_mtime_ns > anew


def test_a_slide_is_in_hand_before_and_after_its_output_is(
    one: Study, here: OneByOne, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    genuine = pipeline.run_part

    def run_part(*arguments: Any, **named: Any) -> Any:
        folder, cohort = JobFolder.opened(one.job)
        seen.extend(row.standing for row in runner.rows_of(folder, cohort))
        summary = genuine(*arguments, **named)
        seen.extend(row.standing for row in runner.rows_of(folder, cohort))
        assert runner.left_of(folder, cohort, failed_too=True) == []
        return summary

    monkeypatch.setattr(pipeline, "run_part", run_part)
    assert run_one(call, one)[0] == 0
    assert seen == ["running", "running"]


def test_of_two_at_once_one_is_refused(
    two: Study, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[subprocess.CompletedProcess[str]] = []
    smaller = two.slides / "smaller.csv"
    smaller.write_text("slide\na.tiff\n")

    def second(name: str) -> None:
        if not others:
            others.append(program("cohort", "run", smaller, two.job, *OPTIONS, "--seed=1"))

    monkeypatch.setattr(pool, "slide_pool", OneByOne(second))
    assert call("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet") == 0
    assert others[0].returncode == 2
    assert "another run works on this" in others[0].stderr
    # nor has it changed what the first was to do
    assert standings(two.job) == {"a": "done", "b": "done"}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_folder_of_a_group_stays_the_groups(
    mask: int, one: Study, here: OneByOne, call: Any
) -> None:
    one.job.mkdir()
    one.job.chmod(0o2770)
    before = os.umask(mask)
    try:
        assert run_one(call, one, "--reference=self")[0] == 0
    finally:
        os.umask(before)
    everything = [one.job, *one.job.rglob("*")]
    assert len(everything) > 20
    closed = [p for p in everything if not p.stat().st_mode & stat.S_IWGRP]
    assert closed == []
    open_to_all = [p for p in everything if p.stat().st_mode & stat.S_IWOTH]
    assert open_to_all == []


def test_a_folder_of_ones_own_stays_so(one: Study, here: OneByOne, call: Any) -> None:
    before = os.umask(0o077)
    try:
        assert run_one(call, one)[0] == 0
    finally:
        os.umask(before)
    assert all(p.stat().st_mode & 0o077 == 0 for p in one.job.rglob("*"))


# interruptions


def test_a_signal_ends_it_and_it_goes_on(
    two: Study,
    here: OneByOne,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    separate: dict[str, Path],
) -> None:
    genuine = StateFile.stage

    def stage(self: StateFile, name: str, total: int, unit: str) -> None:
        genuine(self, name, total, unit)
        if name == "render":
            os.kill(os.getpid(), signal.SIGTERM)

    command = ("cohort", "run", two.manifest, two.job, *OPTIONS, "--quiet")
    with monkeypatch.context() as hurried:
        hurried.setattr(StateFile, "stage", stage)
        assert call(*command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    state = state_of_slide(read_states(two.job / "state" / "a"))
    assert state is not None
    assert (state.status, state.stage) == ("stopped", "render")
    assert leftovers(two.job) == []
    assert call("cohort", "status", two.job) == 3
    assert "interrupted" in capsys.readouterr().out
    assert call("cohort", "retry", two.job, "--quiet") == 0  # nothing has failed
    for name in GOOD:
        assert differing(separate[name], layers(two.job, name)) == []


def test_a_signal_ends_worker_processes_too(
    slides: Path, two: Study, call: Any, here: OneByOne
) -> None:
    slow = ("--preset=balanced", *OPTIONS[1:])
    arguments = ["cohort", "run", two.manifest, two.job, *slow, "--workers=1"]
    command = [sys.executable, "-m", "wsi_pgdips", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            state = state_of_slide(read_states(two.job / "state" / "a"))
            if state is not None and state.stage:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    folder, cohort = JobFolder.opened(two.job)
    first, second = (r.standing for r in runner.rows_of(folder, cohort))
    # the worker is asked to end, and may have had but one file left to write
    assert first in ("interrupted", "done")
    assert second in ("waiting", "interrupted")
    assert standings(two.job)["b"] == second  # it is reported all the same
    assert call("cohort", "run", two.manifest, two.job, *slow, "--quiet") == 0
    whole = alone(slides / "a.tiff", two.slides / "a.ome.zarr", preset="balanced")
    assert differing(whole, layers(two.job, "a")) == []
    assert leftovers(two.job) == []


def test_the_plan_says_what_was_asked_for(one: Study, here: OneByOne, call: Any) -> None:
    code, state = run_one(call, one, "--retries=7")
    assert (code, state.status, state.tiles > 0) == (0, "done", True)
    plan = json.loads((one.job / "cohort.json").read_bytes())
    assert plan["retries"] == 7
    assert plan["options"]["preset"] == "fast"
    assert [e["name"] for e in plan["entries"]] == ["a"]
