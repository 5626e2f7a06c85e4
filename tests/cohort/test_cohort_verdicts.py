"""Verdicts of a cohort: in its summary and exit code, and no copy of a slide that failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cohorts import OneByOne, Study, begun
from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import NO_COPY, Row, exit_code, verdict_text
from wsi_pgdips.cohort.state import State
from wsi_pgdips.stages import evidence

Judged = Callable[..., None]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Lets the next slides have these verdicts."""

    def make(*verdicts: tuple[str, str]) -> None:
        left = list(verdicts)

        def judge(_: Any) -> dict[str, Any]:
            status, reason = left.pop(0)
            return {"status": status, "reasons": [reason] if reason else []}

        monkeypatch.setattr(evidence, "judge", judge)

    return make


def test_verdicts_are_in_the_summary(two: Study, judged: Judged) -> None:
    judged(("review", "much is black"), ("pass", ""))
    assert two.run() == 0
    found = two.summary()
    assert found["verdicts"] == {"pass": 1, "review": 1, "fail": 0}
    assert (found["done"], found["exit_code"]) == (2, 0)
    a, b = found["rows"]
    assert a["verdict"] == {"status": "review", "reasons": ["much is black"]}
    assert b["verdict"] == {"status": "pass", "reasons": []}
    assert (a["status"], a["exit_code"], a["reason"]) == ("done", 0, "")
    assert two.state("a").verdict_reasons == ("much is black",)
    assert two.failures() == {}


def test_strictly_a_review_ends_with_3_and_is_no_failure(two: Study, judged: Judged) -> None:
    judged(("review", "much is black"), ("pass", ""))
    assert two.run("--strict") == 3
    found = two.summary()
    assert found["exit_code"] == 3
    assert [row["exit_code"] for row in found["rows"]] == [3, 0]
    assert two.standings() == {"a": "done", "b": "done"}
    assert two.failures() == {}
    (two.job / "summary.json").unlink()
    assert two.run("--strict") == 3  # finished before, and still no pass


def test_a_slide_that_failed_gets_no_copy_in_another_look(
    two: Study, judged: Judged, here: OneByOne, call: Any
) -> None:
    judged(("fail", "nothing fits"), ("review", "much is black"))
    assert two.run("--reference=self") == 0
    assert not two.layers("a").with_name("a.self.tiff").exists()
    assert two.layers("b").with_name("b.self.tiff").exists()
    found = two.summary()
    assert found["verdicts"] == {"pass": 0, "review": 1, "fail": 1}
    assert [bool(row["normalised"]) for row in found["rows"]] == [False, True]
    log = (two.job / "logs" / "a.log").read_text()
    assert "the verdict is `fail`, so there is no normalised copy" in log
    record = json.loads((two.layers("a") / "provenance" / "run.json").read_bytes())
    assert record["verdict"]["reasons"] == ["nothing fits"]
    seen = len(here.seen)
    assert two.run("--reference=self") == 0
    assert not two.layers("a").with_name("a.self.tiff").exists()
    assert len(here.seen) == seen  # a copy that is not to be is not missing
    assert call("cohort", "verify", two.job) == 0


def row(name: str, verdict: str, code: int | None = 0, standing: Any = "done") -> Row:
    state = State(name, status="done", verdict=verdict, exit_code=code)
    return Row(Entry(name, "", ""), standing, state)


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        (["pass", "pass"], "verdicts: 2 pass, 0 review, 0 fail"),
        (["pass", "review", "review"], "verdicts: 1 pass, 2 review, 0 fail"),
        (["fail", "review", "pass"], f"verdicts: 1 pass, 1 review, 1 fail; {NO_COPY}"),
        (["", "unknown"], ""),
    ],
)
def test_verdicts_are_counted(verdicts: list[str], text: str) -> None:
    rows = [row(str(i), v) for i, v in enumerate(verdicts)]
    assert verdict_text(rows) == text
    assert exit_code(rows) == 0


def test_only_layers_that_are_there_have_a_verdict() -> None:
    assert row("a", "fail", standing="incomplete").verdict == "fail"
    assert row("a", "fail", standing="waiting").verdict == ""
    assert Row(Entry("a", "", ""), "done", None).verdict == ""


def test_a_state_says_how_its_slide_ended() -> None:
    done = State("run", "done", tiles=7, verdict="pass")
    assert done.text == "done, 7 tiles, verdict pass"
    done = State("run", "done", tiles=7, verdict="fail", verdict_reasons=("nothing fits", "ink"))
    assert done.text == "done, 7 tiles, verdict fail: nothing fits"
    assert State("run", "done", tiles=7, verdict="unknown").text == "done, 7 tiles"
    assert State("run", "failed", reason="broken").text == "failed: broken"
    assert State("run", "stage_done").text == "stage_done"


def test_the_table_shows_verdicts(
    tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = JobFolder(tmp_path / "job")
    entries = tuple(Entry(n, f"/none/{n}.svs", f"layers/{n}.ome.zarr") for n in ("a", "b", "c"))
    folder.keep(Cohort(entries))
    for name, verdict, reasons in (("a", "pass", ()), ("b", "fail", ("nothing fits", "ink"))):
        told = {"verdict": verdict, "verdict_reasons": reasons}
        begun(folder.path / "state", name, status="done", exit_code=0, tiles=7, **told)
    assert call("cohort", "status", folder.path) == 3
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[0] == ["slide", "status", "verdict", "stage"]
    assert said[1] == ["a", "done", "pass", "7", "tiles"]
    assert said[2] == ["b", "done", "fail", "7", "tiles;", "nothing", "fits"]
    assert said[3] == ["c", "waiting"]
    text = " ".join(word for line in said[4:] for word in line)
    assert text.startswith("2 done, 1 waiting, about ")
    assert text.endswith(f"left verdicts: 1 pass, 0 review, 1 fail; {NO_COPY}")


def test_a_cohort_ends_with_3_if_one_slide_did() -> None:
    assert exit_code([row("a", "pass"), row("b", "review", 3)]) == 3
    assert exit_code([row("a", "pass"), row("b", "review", None)]) == 0
