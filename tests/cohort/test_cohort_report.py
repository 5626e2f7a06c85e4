"""The report of a cohort, for people and for programs."""

from __future__ import annotations

import csv
import errno
import json
import os
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from support.cohorts import begun
from wsi_pgdips.cli import cohort as command
from wsi_pgdips.cohort import report
from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import (
    ORDER,
    Row,
    count_text,
    exit_code,
    rows_of,
    time_left_text,
    write_report,
)
from wsi_pgdips.cohort.state import State, ask_for_attempt
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline.lock import DEAD_S, Holder, lock_output, lock_path
from wsi_pgdips.pipeline.part import Part


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "a [b] job")


def cohort_of(folder: JobFolder, *names: str, **others: Any) -> Cohort:
    entries = tuple(Entry(n, f"/none/{n}.svs", f"layers/{n}.ome.zarr", **others) for n in names)
    cohort = Cohort(entries)
    folder.keep(cohort)
    return cohort


def held(folder: JobFolder, name: str) -> AbstractContextManager[None]:
    return lock_output(folder.path / "layers" / f"{name}.ome.zarr")


def test_every_way_to_stand(folder: JobFolder) -> None:
    states = folder.path / "state"
    began = ("running", "gone", "stopped", "between", "done", "failed", "again", "incomplete")
    cohort = cohort_of(folder, "new", *began)
    for name in ("running", "gone"):
        begun(
            folder.path / "state", name, stage="fit", done=1, total=4, unit="tiles", stage_begun=1.0
        )
    begun(states, "stopped", status="stopped", reason="stopped: SIGTERM")
    begun(states, "between", Part("calibrate"), status="stage_done")
    for name in ("done", "failed", "incomplete"):
        begun(states, name, status=name, reason="why", hint="what", exit_code=3)
    begun(states, "again", status="failed", reason="why")
    ask_for_attempt(states / "again")
    with held(folder, "running"):
        rows = {r.entry.name: r for r in rows_of(folder, cohort)}
        queue = {"new": "job 7 pending", "gone": "job 8 pending", "between": "fit: job 9 pending"}
        queue |= {"again": "job 8 pending", "failed": "job 8 pending"}
        queued = {r.entry.name: r for r in rows_of(folder, cohort, lambda n: queue.get(n, ""))}
    assert {n: r.standing for n, r in rows.items()} == {
        "new": "waiting",
        "running": "running",
        "gone": "interrupted",
        "stopped": "interrupted",
        "between": "interrupted",
        "done": "done",
        "failed": "failed",
        "again": "failed",
        "incomplete": "incomplete",
    }
    assert {n: r.standing for n, r in queued.items()} == {
        **{n: r.standing for n, r in rows.items()},
        "gone": "waiting",
        "between": "waiting",
        "again": "waiting",
    }
    assert rows["running"].stage_text.startswith("fit 1/4 tiles")
    assert (rows["running"].reason, rows["running"].hint) == ("", "")
    assert "is gone" in rows["gone"].reason
    assert rows["stopped"].reason == "stopped: SIGTERM"
    assert "repeat the command" in rows["gone"].hint
    assert (rows["failed"].reason, rows["failed"].hint) == ("why", "what")
    assert queued["between"].stage_text == "fit: job 9 pending"
    # of a job that Slurm no longer knows, and which nobody has begun
    row = rows_of(folder, Cohort(cohort.entries[:1]), lambda n: "")[0]
    assert (row.standing, row.state) == ("interrupted", None)
    assert "is gone" in row.reason


def test_just_begun(folder: JobFolder) -> None:
    cohort = cohort_of(folder, "a")
    begun(folder.path / "state", "a")
    with lock_output(folder.path / "state" / "a" / "run"):  # nobody has the output yet
        (row,) = rows_of(folder, cohort)
        assert (row.standing, row.stage_text) == ("running", "opening")
    (row,) = rows_of(folder, cohort)
    assert row.standing == "interrupted"


def test_who_may_only_read_sees_it_too(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = cohort_of(folder, "a")
    begun(folder.path / "state", "a", stage="fit", total=4, unit="tiles")
    output = folder.path / "layers" / "a.ome.zarr"
    output.parent.mkdir()
    elsewhere = replace(Holder.this(), host="another")
    file = lock_path(output, "run")
    file.write_text(json.dumps(asdict(elsewhere)))

    refusal = [OSError(errno.EROFS, "Read-only"), PermissionError(errno.EACCES, "Denied")]

    def nothing_is_written(*_: Any, **__: Any) -> Any:
        raise refusal[0]

    monkeypatch.setattr(tempfile, "TemporaryFile", nothing_is_written)
    assert rows_of(folder, cohort)[0].standing == "running"
    refusal.pop(0)
    assert rows_of(folder, cohort)[0].standing == "running"
    long_ago = time.time() - DEAD_S - 60
    os.utime(file, (long_ago, long_ago))
    assert rows_of(folder, cohort)[0].standing == "interrupted"


@pytest.mark.parametrize(
    ("standings", "text", "code"),
    [
        ([], "", 0),
        (["done", "done"], "2 done", 0),
        (["failed", "done", "failed"], "1 done, 2 failed", 3),
        (["waiting"], "1 waiting", 3),
        (list(ORDER), ", ".join(f"1 {s}" for s in ORDER), 3),
    ],
)
def test_counts_and_exit_codes(standings: list[Any], text: str, code: int) -> None:
    rows = [Row(Entry(str(i), "", ""), s, None) for i, s in enumerate(standings)]
    assert (count_text(rows), exit_code(rows)) == (text, code)


def test_who_may_not_look_at_an_output_believes_its_state(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> None:
        raise PermissionError("Permission denied")

    cohort = cohort_of(folder, "a", "b")
    (folder.path / "layers").mkdir()
    begun(folder.path / "state", "a", stage="fit")
    monkeypatch.setattr(report, "locks_of", refused)
    assert [r.standing for r in rows_of(folder, cohort)] == ["running", "waiting"]


def test_time_left() -> None:
    def row(standing: Any, begun: float, updated: float) -> Row:
        return Row(Entry("a", "", ""), standing, State("run", begun=begun, updated=updated))

    done = [row("done", 100, 160), row("incomplete", 130, 220)]
    assert time_left_text(done) == ""
    assert time_left_text([Row(Entry("a", "", ""), "waiting", None)]) == ""
    left = [Row(Entry("a", "", ""), "waiting", None), row("running", 200, 230)]
    assert time_left_text([*done, *left]) == "about 2:30 left"  # two of 75 s
    left = [row("running", 200, 230)] * 3  # at the same time
    assert time_left_text([*done, *left]) == "about 1:15 left"


def test_the_summary_and_the_failures(folder: JobFolder) -> None:
    cohort = cohort_of(folder, "x/a,1", "b", "c", "d", reference="he")
    begun(
        folder.path / "state",
        "x/a,1",
        status="failed",
        reason='no "good",\nat all',
        hint="see\nit",
        exit_code=2,
    )
    told = {"verdict": "review", "verdict_reasons": ("much is black",)}
    begun(folder.path / "state", "b", status="done", exit_code=0, tiles=7, wall_s=1.5, **told)
    begun(folder.path / "state", "c", stage="fit")
    rows = write_report(folder, cohort)
    found = json.loads(folder.summary.read_bytes())
    counts = {k: v for k, v in found.items() if k not in ("rows", "written")}
    assert counts == {
        "slides": 4,
        "done": 1,
        "running": 0,
        "waiting": 1,
        "interrupted": 1,
        "incomplete": 0,
        "failed": 1,
        "verdicts": {"pass": 0, "review": 1, "fail": 0},
        "exit_code": 3,
    }
    assert time.strptime(found["written"], "%Y-%m-%dT%H:%M:%SZ")
    keys = (
        "name slide output normalised status reason what_to_do verdict exit_code stage tiles "
        "failed_tiles wall_s"
    )
    assert all(list(row) == keys.split() for row in found["rows"])
    assert [row["name"] for row in found["rows"]] == [r.entry.name for r in rows]
    a, b, c, d = found["rows"]
    assert a["reason"] == 'no "good", at all'
    assert (b["status"], b["tiles"], b["wall_s"], b["exit_code"]) == ("done", 7, 1.5, 0)
    assert b["output"] == str(folder.path / "layers" / "b.ome.zarr")
    assert b["normalised"] == str(folder.path / "layers" / "b.he.tiff")
    assert b["verdict"] == {"status": "review", "reasons": ["much is black"]}
    assert d["verdict"] == {"status": None, "reasons": []}
    assert (c["status"], c["stage"]) == ("interrupted", "fit")
    assert (d["status"], d["stage"], d["exit_code"]) == ("waiting", None, None)

    with folder.failures.open() as file:
        failures = list(csv.DictReader(file))
    assert [f["status"] for f in failures] == ["failed", "interrupted"]
    assert failures[0] == {
        "slide": "/none/x/a,1.svs",
        "output": str(folder.path / "layers/x/a,1.ome.zarr"),
        "status": "failed",
        "reason": 'no "good", at all',
        "what_to_do": "see it",
        "exit_code": "2",
        "log": str(folder.path / "logs/x/a,1.log"),
    }
    assert failures[1]["exit_code"] == ""


def test_status(
    folder: JobFolder, call: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    cohort_of(folder, "one [/] [bold]", "two")
    begun(folder.path / "state", "one [/] [bold]", status="done", tiles=7)
    monkeypatch.chdir(folder.path.parent)
    assert call("cohort", "status", folder.path.name) == 3
    said = capsys.readouterr().out
    assert "one [/] [bold]  done              7 tiles" in said
    assert "1 done, 1 waiting" in said
    assert call("cohort", "status", folder.path.name, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert [r["status"] for r in found["rows"]] == ["done", "waiting"]
    assert Path(found["rows"][0]["output"]).is_absolute()
    begun(folder.path / "state", "two", status="incomplete", reason="1 tiles and 0 blocks failed")
    assert call("cohort", "report", folder.path) == 3
    assert "failures" in capsys.readouterr().out
    assert folder.failures.read_text().count("\n") == 2
    begun(folder.path / "state", "two", status="done", tiles=3)
    assert call("cohort", "status", folder.path) == 0
    assert call("cohort", "report", folder.path, "--quiet") == 0
    assert folder.failures.read_text().count("\n") == 1
    assert call("cohort", "status", folder.path.parent) == 2
    assert "no cohort here" in capsys.readouterr().err


def test_watching_ends_when_nobody_works(
    folder: JobFolder, call: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    cohort_of(folder, "a", "b")
    begun(folder.path / "state", "a", stage="fit")
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:  # it waits as long as somebody runs the cohort
            running.__exit__(None, None, None)

    monkeypatch.setattr(command.time, "sleep", sleep)
    running = lock_output(folder.plan)
    running.__enter__()
    assert call("cohort", "status", folder.path, "--watch") == 3
    assert len(looks) == 2
    assert "1 waiting, 1 interrupted" in capsys.readouterr().out


def test_of_a_large_cohort_only_what_needs_a_look_is_shown(
    folder: JobFolder, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"s{i}" for i in range(60)]
    cohort_of(folder, *names)
    begun(folder.path / "state", "s30", status="failed", reason="broken")
    assert call("cohort", "status", folder.path) == 3
    said = capsys.readouterr().out
    assert "s30" in said
    assert "59 waiting, 1 failed, 59 more not shown" in said
    assert "s31" not in said


def test_verify_without_anything_to_verify(
    folder: JobFolder, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort_of(folder, "a", "b")
    assert call("cohort", "verify", folder.path) == 0
    assert "0 slides, 0 with faults" in capsys.readouterr().out
    begun(folder.path / "state", "a", status="done")  # says so, but there is nothing
    assert call("cohort", "verify", folder.path, "--quiet") == 3
    said = capsys.readouterr().err
    assert "a: " in said
    assert "not layers of wsi-pgdips" in said


def test_a_plan_is_read_as_it_was_written(folder: JobFolder) -> None:
    cohort = Cohort((Entry("a", "/a.svs", "a", "he", {"mpp": "1"}),), {"seed": 3}, 4)
    folder.keep(cohort)
    assert JobFolder.opened(folder.path) == (folder, cohort)
    folder.keep(cohort)
    with pytest.raises(OutputError, match=r"seed = 3, now 4"):
        folder.keep(replace(cohort, options={"seed": 4}))
    folder.keep(replace(cohort, options={"seed": 4, "overwrite": True}))
