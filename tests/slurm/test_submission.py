"""A cohort is submitted, watched and cancelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import rows_of
from wsi_pgdips.cohort.state import StateFile, read_states, state_of_slide
from wsi_pgdips.errors import OutputError, SlurmError
from wsi_pgdips.pipeline.lock import lock_output
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.slurm.script import Resources
from wsi_pgdips.slurm.submission import (
    Splitting,
    Submission,
    cancel,
    queue_of,
    refuse_while_queued,
    submit,
    submit_again,
)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "job [1]")


def cohort(*names: str, **options: Any) -> Cohort:
    return Cohort(tuple(Entry(n, f"/none/{n}.svs", f"layers/{n}.ome.zarr") for n in names), options)


def submit_all(folder: JobFolder, *names: str, **others: Any) -> list[str]:
    return submit(folder, cohort(*names), Resources(), Splitting(), **others)


def waiting(slurm: Any, *jobs: str) -> None:
    slurm.says("squeue", "; ".join(f"echo '{job}|0|PENDING|None'" for job in jobs) or "true")


def test_a_cohort_is_submitted_and_watched(slurm: Any, folder: JobFolder) -> None:
    waiting(slurm, "104", "109")
    ids = submit(folder, cohort("a", "b"), Resources(), Splitting(always=True, parts=2))
    assert ids == [str(100 + i) for i in range(11)]
    calls = slurm.calls("sbatch")
    after = [c.partition("afterany:")[2].split()[0] if "after" in c else "" for c in calls]
    assert after == ["", "100", "101", "102", "103", "", "105", "106", "107", "108", "104:109"]
    last = Submission.last(folder)
    assert last.path == folder.slurm / "001"
    assert list(last.ids.values()) == ids
    assert {p.stem for p in last.path.glob("*.sbatch")} == set(last.ids)
    assert Submission.read(last.path) == last

    slurm.says("squeue", "echo '101|0|PENDING|Priority'; echo '101|1|RUNNING|None'")
    rows = rows_of(folder, cohort("a", "b"), queue_of(folder))
    assert [(r.standing, r.queue) for r in rows] == [
        ("waiting", "fit: job 101 running"),
        ("interrupted", ""),
    ]
    with pytest.raises(OutputError, match=r"have not ended(.|\n)*2 of 101"):
        refuse_while_queued(folder)
    with pytest.raises(OutputError, match="have not ended"):
        submit_all(folder, "a", "b")
    assert cancel(folder) == ["101"]
    assert slurm.calls("scancel") == ["101"]
    waiting(slurm)
    assert cancel(folder) == []
    ids = submit_again(folder, failed_too=False)
    assert len(ids) == 11
    assert [p.parent.name for p in sorted(folder.slurm.glob("*/jobs.json"))] == ["001", "002"]


def test_slides_are_worked_on_without_a_report_that_is_refused(
    slurm: Any, folder: JobFolder
) -> None:
    taken = 'case "$*" in *report*) echo "no GPU" >&2; exit 1;; *) echo 7;; esac'
    slurm.says("sbatch", taken)
    waiting(slurm, "7")
    notes: list[str] = []
    assert submit_all(folder, "a", note=notes.append) == ["7"]
    assert slurm.calls("sbatch")[-1].startswith("--parsable --dependency=afterany:7 ")
    assert slurm.calls("scancel") == []
    assert "no GPU" in notes[0]
    assert "cohort report" in notes[0]
    last = Submission.last(folder)
    assert last.ids == {"slides-0": "7"}
    waiting(slurm)  # what has ended long ago is not waited for: Slurm would refuse it
    slurm.says("sbatch", "echo 8")
    assert submit_all(folder, "a") == ["8", "8"]
    assert "dependency" not in slurm.calls("sbatch")[-1]


def test_slides_that_are_no_longer_named(slurm: Any, folder: JobFolder) -> None:
    notes: list[str] = []
    submit_all(folder, "a", "b", "c", note=notes.append)
    assert notes == []
    submit_all(folder, "b", note=notes.append)
    assert notes == ["2 slides are no longer of the cohort: a, c; what they became stays"]
    assert [e.name for e in JobFolder.opened(folder.path)[1].entries] == ["b"]


def test_who_is_worked_on_here_waits_its_turn(slurm: Any, folder: JobFolder) -> None:
    submit_all(folder, "a", "b")
    StateFile(folder.path / "state" / "a", Part(), "").write(status="stopped")
    with lock_output(folder.plan):  # by cohort retry --local
        rows = rows_of(folder, cohort("a", "b"), queue_of(folder))
        assert [(r.standing, r.queue) for r in rows] == [("waiting", "waits its turn")] * 2
    rows = rows_of(folder, cohort("a", "b"), queue_of(folder))
    assert [r.standing for r in rows] == ["interrupted"] * 2


def test_what_was_taken_is_cancelled_when_a_later_job_is_refused(
    slurm: Any, folder: JobFolder
) -> None:
    slurm.says(
        "sbatch",
        'case "$*" in *blend*) echo "no more jobs" >&2; exit 1;; *fit*) echo 8;; *) echo 7;; esac',
    )
    with pytest.raises(SlurmError, match="no more jobs"):
        submit(folder, cohort("a"), Resources(), Splitting(always=True))
    assert slurm.calls("scancel") == ["7 8"]
    # also where they cannot be cancelled the user is told why
    slurm.says("scancel", "echo 'not now' >&2; exit 1")
    with pytest.raises(SlurmError, match="no more jobs"):
        submit(folder, cohort("a"), Resources(), Splitting(always=True))
    last = Submission.last(folder)
    assert sorted(last.ids.values()) == ["7", "8"]


def test_a_refused_submission_leaves_the_reasons_of_failures(slurm: Any, folder: JobFolder) -> None:
    plan = cohort("a")
    folder.keep(plan)
    digest = plan.settings(plan.entries[0]).science.digest()
    StateFile(folder.state(plan.entries[0]), Part(), digest).write(status="failed", reason="broken")
    slurm.says("sbatch", "echo 'invalid partition' >&2; exit 1")
    with pytest.raises(SlurmError, match="invalid partition"):
        submit_all(folder, "a", failed_too=True)
    (row,) = rows_of(folder, plan, lambda _: "")
    assert (row.standing, row.reason) == ("failed", "broken")


def test_without_an_answer_nothing_is_submitted(slurm: Any, folder: JobFolder) -> None:
    submit_all(folder, "a")
    slurm.says("squeue", "echo 'no controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="no controller"):
        submit_all(folder, "a")
    assert queue_of(folder) is None
    assert len(slurm.calls("sbatch")) == 2


def test_what_has_ended_is_worked_on_again(slurm: Any, folder: JobFolder) -> None:
    plan = cohort("failed", "gone", "fresh")
    digest = plan.settings(plan.entries[0]).science.digest()
    StateFile(folder.state(plan.entries[0]), Part(), digest).write(status="failed", reason="x")
    StateFile(folder.state(plan.entries[1]), Part(), digest).write(status="done")  # no layers
    submit(folder, plan, Resources(), Splitting(), failed_too=False)
    last = Submission.last(folder)
    assert last.job("slides-0").slides == (("gone",), ("fresh",))
    found = [state_of_slide(read_states(folder.state(e))) for e in plan.entries]
    # a job leaves alone what has ended
    assert [s and (s.status, s.has_ended) for s in found] == [
        ("failed", True),
        ("done", False),
        None,
    ]
    submit(folder, plan, Resources(), Splitting(), failed_too=True)
    last = Submission.last(folder)
    assert last.job("slides-0").slides == (("failed",), ("gone",), ("fresh",))
    found = [state_of_slide(read_states(folder.state(e))) for e in plan.entries]
    assert [s and (s.status, s.digest, s.has_ended) for s in found] == [
        ("failed", digest, False),
        ("done", digest, False),
        None,
    ]


def test_submissions_are_counted_on(slurm: Any, folder: JobFolder) -> None:
    for name in ("999", "1000", "001.copy", "dask"):
        (folder.slurm / name).mkdir(parents=True)
    submit_all(folder, "a")
    last = Submission.last(folder)
    assert last.path.name == "1001"


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def test_a_dry_run_writes_nothing(
    slurm: Any, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("slide,output\na.svs,\nb.svs,100% of b.ome.zarr\n")
    before = tree(tmp_path)
    arguments = ("slurm", "submit", tmp_path / "m.csv", tmp_path / "job", "--slides-per-task=2")
    assert call(*arguments, "--dry-run", "--program=wsi") == 0
    said = capsys.readouterr().out
    assert "### slides-0.sbatch\n#!/usr/bin/env bash" in said
    assert "### report.sbatch, after slides-0\n" in said
    assert "--array=0-0\n" in said
    assert tree(tmp_path) - before <= {"fake/calls"}
    assert slurm.calls("sbatch") == []


def test_on_the_command_line(
    slurm: Any,
    tmp_path: Path,
    call: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "m.csv").write_text("slide\na.svs\n")
    monkeypatch.chdir(tmp_path)
    # jobs start in other folders: nothing in a script is relative
    assert call("slurm", "submit", "m.csv", "job", "--mem=lots") == 2
    assert call("slurm", "submit", "m.csv", "job", "--cluster=pbs") == 2
    assert call("slurm", "submit", "m.csv", "job", "--time=1:00:00") == 0
    assert "100, 101" in capsys.readouterr().out
    waiting(slurm, "100")
    assert call("cohort", "status", "job") == 3
    assert "job 100 pending" in capsys.readouterr().out
    for arguments in (
        ("slurm", "submit", "m.csv", "job"),
        ("cohort", "run", "m.csv", "job"),
        ("cohort", "retry", "job"),
        ("cohort", "retry", "job", "--local"),
    ):
        assert call(*arguments) == 2
        assert "have not ended" in capsys.readouterr().err
    assert call("slurm", "cancel", "job") == 0
    assert slurm.calls("scancel") == ["100"]
    waiting(slurm)
    assert call("slurm", "cancel", "job") == 0
    assert "nothing" in capsys.readouterr().out
    assert call("cohort", "retry", "job") == 0
    assert "102, 103" in capsys.readouterr().out
    for text in (p.read_text() for p in (tmp_path / "job" / "slurm").glob("*/*.sbatch")):
        assert f" {tmp_path}/job" in text.splitlines()[-1]
        assert "--time=1:00:00" in text or "report" in text
    facts = json.loads((tmp_path / "job" / "slurm" / "002" / "jobs.json").read_text())
    assert facts["ids"] == {"slides-0": "102", "report": "103"}
    (tmp_path / "other").mkdir()
    assert call("slurm", "cancel", "other") == 2
    slurm.lacks("squeue")
    assert call("slurm", "cancel", "job") == 2
    assert call("cohort", "status", "job") == 3
