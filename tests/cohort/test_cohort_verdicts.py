"""Verdicts of a cohort: in its summary and exit code, and no copy of a slide that failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.cohorts import OneByOne, Study
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import Row, count_text, exit_code
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
    two: Study, judged: Judged, here: OneByOne
) -> None:
    judged(("fail", "nothing fits"), ("review", "much is black"))
    assert two.run("--reference=self") == 0
    assert not two.layers("a").with_name("a.self.tiff").exists()
    assert two.layers("b").with_name("b.self.tiff").exists()
    assert two.summary()["verdicts"] == {"pass": 0, "review": 1, "fail": 1}
    log = (two.job / "logs" / "a.log").read_text()
    assert "the verdict is `fail`, so there is no normalised copy" in log
    record = json.loads((two.layers("a") / "provenance" / "run.json").read_bytes())
    assert record["verdict"]["reasons"] == ["nothing fits"]
    seen = len(here.seen)
    assert two.run("--reference=self") == 0
    assert not two.layers("a").with_name("a.self.tiff").exists()
    assert len(here.seen) <= seen + 1  # at most looked at again


def row(name: str, verdict: str, code: int | None = 0) -> Row:
    state = State(name, status="done", verdict=verdict, exit_code=code)
    return Row(Entry(name, "", ""), "done", state)


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        (["pass", "pass"], "2 done"),
        (["pass", "review", "review"], "3 done, verdict review on 2"),
        (["fail", "review", "pass"], "3 done, verdict review on 1, verdict fail on 1"),
        (["", "unknown"], "2 done"),
    ],
)
def test_verdicts_are_counted(verdicts: list[str], text: str) -> None:
    rows = [row(str(i), v) for i, v in enumerate(verdicts)]
    assert count_text(rows) == text
    assert exit_code(rows) == 0


def test_a_cohort_ends_with_3_if_one_slide_did() -> None:
    assert exit_code([row("a", "pass"), row("b", "review", 3)]) == 3
    assert exit_code([row("a", "pass"), row("b", "review", None)]) == 0
