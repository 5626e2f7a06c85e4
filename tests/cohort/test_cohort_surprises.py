"""Errors, processes that die, and signals: what happens to one slide leaves the others alone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import differing
from support.cohorts import GOOD, OPTIONS, OneByOne, Study, alone, failing, table
from wsi_pgdips.cohort import runner, work
from wsi_pgdips.cohort.folder import JobFolder
from wsi_pgdips.cohort.state import StateFile
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline import pool
from wsi_pgdips.pipeline import slide as pipeline


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("a surprise")]
)
def test_a_surprise_stays_with_its_slide(
    error: Exception,
    two: Study,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(time, "sleep", pytest.fail)
    monkeypatch.setattr(pipeline, "run_part", failing(error))
    assert two.run() == 3
    assert two.standings() == {"a": "failed", "b": "done"}
    row = two.failures()["a"]
    assert row["exit_code"] == "1"
    assert f"unexpected {type(error).__name__}" in row["reason"]
    assert "bug of wsi-pgdips" in row["what_to_do"]
    log = Path(row["log"]).read_text()
    assert "Traceback (most recent call last)" in log
    assert str(error) in log
    assert "Traceback" not in capsys.readouterr().err


def test_a_state_that_cannot_be_written_stays_with_its_slide(two: Study) -> None:
    (two.job / "state").mkdir(parents=True)
    (two.job / "state" / "a").write_text("in the way")
    assert two.run() == 3
    assert two.standings() == {"a": "failed", "b": "done"}
    row = two.failures()["a"]
    assert "the output cannot be written" in row["reason"]
    assert "state/a" in row["reason"]
    assert "permissions" in row["what_to_do"]
    (two.job / "state" / "a").unlink()
    assert two.run() == 0


def test_who_was_taken_for_dead_does_not_spoil_what_another_has_finished(
    one: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = pipeline.run_part

    def run_part(*arguments: Any, **named: Any) -> Any:
        genuine(*arguments, **named)  # as the other does
        raise OutputError("the files are gone")

    monkeypatch.setattr(pipeline, "run_part", run_part)
    code, found = one.run(), one.state()
    assert (code, found.status, found.tiles > 0) == (0, "done", True)
    assert "another process has finished the slide" in (one.job / "logs" / "a.log").read_text()
    # what was done before says nothing of this run
    folder, cohort = one.opened()
    found = work.SlideWork(folder, cohort, cohort.entries[0]).run()
    assert found is not None
    assert (found.status, found.reason) == ("failed", "the files are gone")


def suicide(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


GENUINE = runner.on_slide


def deadly(job: Any, name: str, on_tile: Any = None) -> Any:
    """``on_slide`` of a worker process that b takes with it."""
    if name == "b":
        pipeline.run_part = suicide
    return GENUINE(job, name)


def test_a_slide_that_kills_its_process_leaves_the_others_alone(
    two: Study, here: OneByOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "slide_pool", here.instead_of)
    shutil.copyfile(two.slides / "a.tiff", two.slides / "c.tiff")
    table(two.slides, "slide", "b.tiff", "a.tiff", "c.tiff")
    monkeypatch.setattr(runner, "on_slide", deadly)
    assert two.run("--workers=1") == 3
    assert two.standings() == {"b": "failed", "a": "done", "c": "done"}
    row = two.failures()["b"]
    assert "died twice" in row["reason"]
    assert "memory" in row["what_to_do"]
    monkeypatch.setattr(pool, "slide_pool", here)
    monkeypatch.setattr(runner, "on_slide", GENUINE)
    assert two.retry("--failed") == 0
    assert two.leftovers() == []


def test_a_worker_that_cannot_read_the_plan_fails_its_slide_alone(
    two: Study, here: OneByOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = JobFolder.opened

    def on_slide(job: Any, name: str, *others: Any) -> Any:
        with monkeypatch.context() as away:
            if name == "a":
                away.setattr(JobFolder, "opened", lambda *_: genuine(two.slides))
            return GENUINE(job, name, *others)

    monkeypatch.setattr(runner, "on_slide", on_slide)
    assert two.run() == 3
    assert two.standings() == {"a": "failed", "b": "done"}
    assert "no cohort here" in two.failures()["a"]["reason"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (None, 0, "done"),
        (RuntimeError("a surprise"), 3, "failed"),
        (KeyboardInterrupt("a signal"), 130, "stopped"),
    ],
)
def test_a_log_that_cannot_be_written_hides_nothing(
    error: BaseException | None, code: int, status: str, one: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one.job / "logs").mkdir(parents=True)
    (one.job / "logs" / "a.log").symlink_to("/dev/full")
    monkeypatch.setattr(pipeline, "run_part", failing(*filter(None, [error])))
    assert (one.run(), one.state().status) == (code, status)
    assert str(error or "") in one.state().reason


def test_a_signal_ends_it_and_it_goes_on(
    two: Study,
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

    with monkeypatch.context() as hurried:
        hurried.setattr(StateFile, "stage", stage)
        assert two.run() == 130
    assert "repeat the command" in capsys.readouterr().err
    state = two.state()
    assert state is not None
    assert (state.status, state.stage) == ("stopped", "render")
    assert two.leftovers() == []
    assert call("cohort", "status", two.job) == 3
    assert "interrupted" in capsys.readouterr().out
    assert two.retry() == 0  # nothing has failed
    for name in GOOD:
        assert differing(separate[name], two.layers(name)) == []


def test_a_signal_ends_worker_processes_too(slides: Path, two: Study, call: Any) -> None:
    slow = ("--preset=balanced", *OPTIONS[1:])
    arguments = ["cohort", "run", two.manifest, two.job, *slow, "--workers=1"]
    command = [sys.executable, "-m", "wsi_pgdips", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            state = two.state()
            if state is not None and state.stage:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    folder, cohort = two.opened()
    first, second = (r.standing for r in runner.rows_of(folder, cohort))
    # the worker is asked to end, and may have had but one file left to write
    assert first in ("interrupted", "done")
    assert second in ("waiting", "interrupted")
    assert two.standings()["b"] == second  # it is reported all the same
    assert call("cohort", "run", two.manifest, two.job, *slow, "--quiet") == 0
    whole = alone(slides / "a.tiff", two.slides / "a.ome.zarr", preset="balanced")
    assert differing(whole, two.layers("a")) == []
    assert two.leftovers() == []
