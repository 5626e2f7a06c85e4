"""What a job of a cohort does, in this process and without a Slurm."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import CHEAP, differing
from support.cohorts import alone, lay_slides, layers, leftovers
from wsi_pgdips.cohort import work
from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import Row, rows_of
from wsi_pgdips.cohort.runner import left_of
from wsi_pgdips.cohort.state import StateFile, ask_for_attempt, read_states, state_of_slide
from wsi_pgdips.pipeline import lock
from wsi_pgdips.pipeline import part as parts
from wsi_pgdips.pipeline import slide as pipeline
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.pipeline.signals import Stop, Stopped
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.slurm import task
from wsi_pgdips.slurm.plan import Job, plan_jobs
from wsi_pgdips.slurm.script import Resources
from wsi_pgdips.slurm.submission import Splitting, Submission
from wsi_pgdips.slurm.task import run_task

FAST = {**CHEAP, "preset": "fast"}


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    lay_slides(folder)
    return folder


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(slides / "a.tiff", tmp_path_factory.mktemp("whole") / "a.ome.zarr")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No job around the tests, nobody who waits; how often a new start was asked for."""
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(parts, "PATIENCE_S", ())
    asked: list[str] = []
    monkeypatch.setattr(task, "requeue_this", lambda: not asked.append("again"))
    return asked


class Jobs:
    """Jobs of a cohort, to be run one by one."""

    def __init__(self, job: Path, slides: Path, *names: str, split: bool, **others: Any) -> None:
        self.folder = JobFolder(job)
        self.entries = tuple(
            Entry(Path(n).stem, str(slides / n), f"layers/{Path(n).stem}.ome.zarr", **others)
            for n in names
        )
        self.cohort = Cohort(self.entries, FAST)
        self.folder.keep(self.cohort)
        short = [e.name for e in self.entries]
        self.jobs = plan_jobs([] if split else short, short if split else [], slides_per_task=9)
        self.keep(*self.jobs)
        self.notes = Notes()

    def keep(self, *jobs: Job) -> None:
        submission = Submission(self.folder.slurm / "001", jobs, Resources(), Splitting(), {})
        submission.keep()

    def run(self, name: str, number: int = 0) -> int:
        return run_task(self.folder, "001", name, number, self.notes)

    def run_all(self) -> list[int]:
        """Exit codes of the tasks of all jobs but the report."""
        return [self.run(j.name, i) for j in self.jobs[:-1] for i in range(len(j.slides))]

    def status(self, name: str = "a") -> str | None:
        state = state_of_slide(read_states(self.folder.path / "state" / name))
        return state and state.status


def interrupt(monkeypatch: pytest.MonkeyPatch, stage: str, number: signal.Signals) -> None:
    """A signal at the beginning of a stage."""
    genuine = StateFile.stage

    def begin(self: StateFile, name: str, total: int, unit: str) -> None:
        genuine(self, name, total, unit)
        if name == stage:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(StateFile, "stage", begin)


def test_a_task_serves_its_slides_one_by_one(slides: Path, tmp_path: Path, whole: Path) -> None:
    jobs = Jobs(tmp_path / "job", slides, "truncated.tiff", "a.tiff", split=False)
    assert jobs.run_all() == [3]
    assert (jobs.status("truncated"), jobs.status("a")) == ("failed", "done")
    assert re.search(
        r"\ba: done, \d+ tiles, verdict (pass|review|fail)", "\n".join(jobs.notes.said)
    )
    assert differing(whole, layers(jobs.folder.path, "a")) == []
    # what has ended is left alone
    assert jobs.run_all() == [3]
    assert "a: done before " in jobs.notes.said
    assert leftovers(jobs.folder.path) == []


def test_stages_by_many_tasks(slides: Path, tmp_path: Path, whole: Path) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=True, reference="self")
    assert jobs.run_all() == [0] * 11
    assert jobs.status() == "done"
    output = layers(jobs.folder.path, "a")
    assert differing(whole, output) == []
    copy = output.with_name("a.self.tiff")
    assert copy.exists()
    # layers that are finished already: the first job makes the copy that is missing
    copy.unlink()
    ask_for_attempt(jobs.folder.state(jobs.entries[0]))
    assert jobs.run(jobs.jobs[0].name) == 0
    assert copy.exists()
    assert jobs.run_all() == [0] * 11
    assert leftovers(jobs.folder.path) == []


def test_after_a_failure_nothing_follows(
    slides: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=True)
    calibrate, fit, *_ = (j.name for j in jobs.jobs)
    assert jobs.run(calibrate) == 0
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "run_part", lambda *_, **__: 1 / 0)
        assert jobs.run(fit, 2) == 3
    assert jobs.run_all() == [3] * 11
    assert not list((layers(jobs.folder.path, "a") / "work" / "fit").iterdir())
    ask_for_attempt(jobs.folder.state(jobs.entries[0]))
    assert jobs.run_all() == [0] * 11
    assert differing(whole, layers(jobs.folder.path, "a")) == []


def test_a_stage_that_nobody_has_done_interrupts_the_slide(
    slides: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=True)
    calibrate, fit, blend, render, finalize = (j.name for j in jobs.jobs[:-1])

    def row() -> Row:
        return rows_of(jobs.folder, jobs.cohort, lambda _: "")[0]

    def left() -> list[Entry]:
        return left_of(jobs.folder, jobs.cohort, failed_too=False)

    # calibrate was cancelled before it began
    assert [jobs.run(fit), jobs.run(blend)] == [3, 3]
    assert "a: unready before fit cannot begin" in jobs.notes.said[-1]
    assert (jobs.status(), row().standing) == ("unready", "interrupted")
    assert row().reason.startswith("fit cannot begin (expected: calibrate of the whole slide")
    assert left() == list(jobs.entries)
    # a part of fit was cancelled, then one was killed
    assert [jobs.run(calibrate), *(jobs.run(fit, i) for i in (1, 2, 3))] == [0] * 4
    assert [jobs.run(name) for name in (blend, render, finalize)] == [3] * 3
    assert row().reason.startswith("blend cannot begin (expected: fit")
    StateFile(jobs.folder.state(jobs.entries[0]), Part("fit", 1, 4), "digest")
    assert row().standing == "interrupted"
    assert row().reason == "the process that was to work on it is gone: killed, or out of time"
    assert left() == list(jobs.entries)
    assert jobs.run(fit, 0) == 0
    assert jobs.run(blend) == 0  # its own word of before does not keep it from work
    assert jobs.run_all() == [0] * 11
    assert differing(whole, layers(jobs.folder.path, "a")) == []


def test_out_of_time(
    slides: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: list[str]
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=False)
    with monkeypatch.context() as short:
        interrupt(short, "render", signal.SIGUSR1)
        assert jobs.run("slides-0") == 75
        assert (jobs.status(), no_slurm) == ("stopped", ["again"])
        assert "goes on in a new start" in jobs.notes.said[-1]
        # started anew, and nothing was done since: it would go on like this for ever
        short.setenv("SLURM_RESTART_COUNT", "1")
        assert jobs.run("slides-0") == 3
        assert (jobs.status(), no_slurm) == ("failed", ["again"])
    (state,) = read_states(jobs.folder.path / "state" / "a")
    assert "time limit is too short" in state.reason
    assert "--time" in state.hint
    ask_for_attempt(jobs.folder.path / "state" / "a")
    assert jobs.run("slides-0") == 0
    assert differing(whole, layers(jobs.folder.path, "a")) == []


def test_only_what_is_in_hand_is_given_up(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: list[str]
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", "b.tiff", split=False)
    for name in "ab":  # as a retry leaves them
        StateFile(jobs.folder.path / "state" / name, Part(), "").write(status="stopped")
        ask_for_attempt(jobs.folder.path / "state" / name)
    with monkeypatch.context() as short:
        interrupt(short, "tissue", signal.SIGUSR1)
        short.setenv("SLURM_RESTART_COUNT", "1")
        assert jobs.run("slides-0") == 75
        assert (jobs.status("a"), jobs.status("b"), no_slurm) == ("failed", "stopped", ["again"])
        short.setenv("SLURM_RESTART_COUNT", "2")
        assert jobs.run("slides-0") == 3
        assert (jobs.status("a"), jobs.status("b"), no_slurm) == ("failed", "failed", ["again"])


def test_ended(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: list[str]
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", "b.tiff", split=False)
    with monkeypatch.context() as short:
        interrupt(short, "fit", signal.SIGTERM)
        assert jobs.run("slides-0") == 143
    assert (jobs.status("a"), jobs.status("b"), no_slurm) == ("stopped", None, [])
    assert jobs.run("slides-0") == 0
    assert (jobs.status("a"), jobs.status("b")) == ("done", "done")


def test_who_still_works_is_waited_for(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=False)
    output = layers(jobs.folder.path, "a")
    waits: list[float] = []
    still = lock.lock_output(output)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            still.__exit__(None, None, None)

    with monkeypatch.context() as patient:
        patient.setattr(lock.time, "sleep", sleep)
        still.__enter__()
        assert jobs.run("slides-0") == 0
        assert len(waits) == 2
    with lock.lock_output(output):  # it never ends
        ask_for_attempt(jobs.folder.path / "state" / "a")
        monkeypatch.setattr(lock, "BEATS", 0)
        assert jobs.run("slides-0") == 3
    assert "a: another process works on it" in jobs.notes.said
    (state,) = read_states(jobs.folder.path / "state" / "a")
    assert (state.status, state.is_to_be_tried) == ("done", True)


def test_work_is_checked_for_signals_that_were_swallowed(slides: Path, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=False)

    stop = Stop()
    with pytest.raises(Stopped):
        stop.ask(signal.SIGTERM)  # and whoever was at work did not see it
    with pytest.raises(Stopped):
        work.SlideWork(jobs.folder, jobs.cohort, jobs.entries[0], stop=stop).run()
    assert jobs.status() == "stopped"


def test_a_stop_is_on_disk_before_what_is_in_hand_is_dropped(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path / "job", slides, "a.tiff", split=False)
    stop, seen = Stop(), []

    def run_part(*arguments: object, **named: object) -> None:
        try:
            stop.ask(signal.SIGTERM)
        finally:  # here, in a tile that takes minutes, it may be killed
            seen.append(jobs.status())

    monkeypatch.setattr(pipeline, "run_part", run_part)
    with pytest.raises(Stopped):
        work.SlideWork(jobs.folder, jobs.cohort, jobs.entries[0], stop=stop).run()
    assert seen == ["stopped"]
