"""Slides that are tried again: at once, later, or when somebody asks."""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import differing
from support.cohorts import OneByOne, Study, alone, failing, stale
from wsi_pgdips.cohort import runner, state
from wsi_pgdips.cohort.state import StateFile, read_states
from wsi_pgdips.errors import OutputError, SlideError
from wsi_pgdips.pipeline import pool
from wsi_pgdips.pipeline import slide as pipeline
from wsi_pgdips.slide import image, reader
from wsi_pgdips.slurm.submission import queue_of
from wsi_pgdips.stages import fit as fitting


def test_failures_are_tried_again_when_they_are_repaired(
    ran: Study, here: OneByOne, tmp_path: Path, call: Any
) -> None:
    mine = ran.copied(tmp_path, call)
    shutil.copyfile(mine.slides / "a.tiff", mine.slides / "truncated.tiff")
    assert mine.retry("--failed") == 3
    assert sorted(here.seen) == ["blank", "truncated"]
    assert mine.failures().keys() == {"blank"}
    # what is wrong with the finished ones is none of its business
    (mine.layers("a") / "provenance" / "run.json").write_text("{")
    shutil.copyfile(mine.slides / "b.tiff", mine.slides / "blank.tif")
    here.seen.clear()
    assert mine.retry() == 3  # it has another file now
    assert sorted(here.seen) == ["a", "blank"]
    rows = mine.failures()
    assert rows.keys() == {"a"}
    assert "is damaged" in rows["a"]["reason"]
    shutil.rmtree(mine.layers("a"))
    assert mine.retry("--failed") == 0
    assert mine.failures() == {}
    assert mine.summary()["exit_code"] == 0
    assert mine.leftovers() == []


def test_what_failed_waits_while_it_is_tried_again(
    ran: Study, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, seen = ran.copied(tmp_path, call), []

    def before(name: str) -> None:
        folder, cohort = mine.opened()
        rows = runner.rows_of(folder, cohort, queue_of(folder))
        seen.append({r.entry.name: r.standing for r in rows if r.standing != "done"})
        if name == "blank":
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "slide_pool", OneByOne(before))
    reason = mine.failures()["blank"]["reason"]
    assert mine.retry("--failed") == 130
    assert seen == [
        {"truncated": "waiting", "blank": "waiting"},
        {"truncated": "failed", "blank": "waiting"},
    ]
    # it was not come to: why it failed is known as before
    assert mine.standings()["blank"] == "failed"
    assert mine.failures()["blank"]["reason"] == reason


def test_a_slide_that_comes_later_is_picked_up(one: Study, here: OneByOne) -> None:
    away = (one.slides / "a.tiff").rename(one.slides / "away.tiff")
    assert one.run() == 3
    assert "no such file" in one.failures()["a"]["reason"]
    assert one.run() == 3
    assert here.seen == ["a"]  # not again and again
    away.rename(one.slides / "a.tiff")
    assert one.run() == 0


def test_a_fault_that_passes_is_waited_for(one: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    raw = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(pipeline, "run_part", failing(raw, stale()))
    code, state = one.run(), one.state()
    assert (code, state.status) == (0, "done")
    assert waits == [5.0, 30.0]
    log = (one.job / "logs" / "a.log").read_text()
    assert log.count("this may pass: trying again") == 2
    assert "Stale file handle" in log


def test_what_was_begun_before_a_fault_is_not_begun_anew(
    one: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one.run() == 0
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
    assert one.run("--overwrite") == 0
    assert (len(fits), left) == (1, [])  # of one block


def test_one_that_does_not_pass_is_told(one: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(pipeline, "run_part", failing(*(stale() for _ in range(3))))
    code, state = one.run("--retries=1"), one.state()
    assert (code, state.status, state.exit_code) == (3, "failed", 2)
    assert waits == [5.0]
    raw = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(pipeline, "run_part", failing(raw, raw))
    assert one.retry("--failed") == 3
    row = one.failures()["a"]
    assert "bug" not in row["what_to_do"]
    assert "whether the disk is there" in row["what_to_do"]


@pytest.mark.parametrize("passes", [True, False], ids=["a share that comes back", "a hole"])
def test_tiles_that_cannot_be_read_are_looked_at_once_more(
    passes: bool, one: Study, monkeypatch: pytest.MonkeyPatch
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
    code, state = one.run(), one.state()
    assert waits == [5.0]
    log = (one.job / "logs" / "a.log").read_text()
    assert "tiles failed: looking at them in 5 s" in log
    assert ("they can be read now: trying again" in log) == passes
    assert (code, state.status) == ((0, "done") if passes else (3, "incomplete"))
    if passes:
        assert (
            differing(alone(one.slides / "a.tiff", one.job.parent / "alone"), one.layers("a")) == []
        )


def test_a_state_is_written_when_the_disk_is_back(
    one: Study, monkeypatch: pytest.MonkeyPatch
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
    code, found = one.run(), one.state()
    assert (code, found.status) == (0, "done")
    assert waits == list(state.AGAIN_S)


def test_a_state_that_cannot_be_written_leaves_that_of_before(
    one: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "run_part", failing(SlideError("broken")))
        assert one.run() == 3

    def full(self: StateFile) -> Any:
        raise OutputError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(StateFile, "_write", full)
        assert one.retry("--failed") == 3
        assert one.failures()["a"]["reason"] == "the disk is full"
    (kept,) = read_states(one.job / "state" / "a")
    assert (kept.status, kept.reason) == ("failed", "broken")
