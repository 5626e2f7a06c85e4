"""Signals end a cohort, and the same command resumes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import differing
from support.cohorts import (
    GOOD,
    OPTIONS,
    OneByOne,
    Study,
    alone,
)
from wsi_pgdips.cohort import runner, work
from wsi_pgdips.cohort.folder import CohortOptions
from wsi_pgdips.cohort.state import StateFile
from wsi_pgdips.pipeline import slide as pipeline


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

    with monkeypatch.context() as hurried:
        hurried.setattr(StateFile, "stage", stage)
        assert two.run() == 130
    assert "the same command goes on" in capsys.readouterr().err
    state = two.state("a")
    assert state is not None
    assert (state.status, state.stage) == ("stopped", "render")
    assert two.leftovers() == []
    assert call("cohort", "status", two.job) == 3
    assert "interrupted" in capsys.readouterr().out
    assert two.retry() == 0  # nothing has failed
    for name in GOOD:
        assert differing(separate[name], two.layers(name)) == []


def test_a_signal_ends_worker_processes_too(
    slides: Path, two: Study, call: Any, here: OneByOne
) -> None:
    slow = ("--preset=balanced", *OPTIONS[1:])
    arguments = ["cohort", "run", two.manifest, two.job, *slow, "--workers=1"]
    command = [sys.executable, "-m", "wsi_pgdips", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            state = two.state("a")
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
