"""Several processes, or several people, at one job folder."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import asdict, replace
from typing import Any

import pytest

from support.cohorts import OPTIONS, OneByOne, Study, program
from wsi_pgdips.cohort import runner
from wsi_pgdips.cohort.state import StateFile, read_states
from wsi_pgdips.pipeline import lock, pool
from wsi_pgdips.pipeline import slide as pipeline


def test_what_another_process_holds_is_left_to_it(
    two: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEATS", 0)  # it has shown for long enough that it works
    with lock.lock_output(two.layers("a")):
        assert two.run() == 3
        assert "a: another process works on it" in capsys.readouterr().err
        assert two.standings() == {"a": "waiting", "b": "done"}
        assert two.failures() == {}
        assert not (two.job / "state" / "a").exists()
    with lock.lock_output(two.job / "state" / "a" / "run"):
        assert two.run() == 3
        assert read_states(two.job / "state" / "a") == ()
    assert two.run() == 0


@pytest.mark.parametrize("where", ["output", "state"])
def test_who_has_just_died_elsewhere_is_waited_for(
    where: str, one: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = one.layers("a") if where == "output" else one.job / "state" / "a" / "run"
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
        assert one.run() == 0
    assert waits == [lock.WAIT_S] * 4
    assert one.leftovers() == []


def test_a_slide_is_in_hand_before_and_after_its_output_is(
    one: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    genuine = pipeline.run_part

    def run_part(*arguments: Any, **named: Any) -> Any:
        folder, cohort = one.opened()
        seen.extend(row.standing for row in runner.rows_of(folder, cohort))
        summary = genuine(*arguments, **named)
        seen.extend(row.standing for row in runner.rows_of(folder, cohort))
        assert runner.left_of(folder, cohort, failed_too=True) == []
        return summary

    monkeypatch.setattr(pipeline, "run_part", run_part)
    assert one.run() == 0
    assert seen == ["running", "running"]


def test_of_two_at_once_one_is_refused(two: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[subprocess.CompletedProcess[str]] = []
    smaller = two.slides / "smaller.csv"
    smaller.write_text("slide\na.tiff\n")

    def second(name: str) -> None:
        if not others:
            others.append(program("cohort", "run", smaller, two.job, *OPTIONS, "--seed=1"))

    monkeypatch.setattr(pool, "slide_pool", OneByOne(second))
    assert two.run() == 0
    assert others[0].returncode == 2
    assert "another run works on this" in others[0].stderr
    # nor has it changed what the first was to do
    assert two.standings() == {"a": "done", "b": "done"}


@pytest.mark.parametrize(
    ("mode", "mask"), [(0o2770, 0o022), (0o2770, 0o077), (0o2755, 0o022), (0o700, 0o077)]
)
def test_whoever_may_write_to_the_folder_may_write_to_all_that_is_made_in_it(
    mode: int, mask: int, one: Study, here: OneByOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, others = mode & stat.S_IWGRP, stat.S_IWOTH
    one.job.mkdir()
    one.job.chmod(mode)
    genuine = StateFile.stage

    def check() -> int:
        modes = {p: p.stat().st_mode for p in [one.job, *one.job.rglob("*")]}
        assert {p: m for p, m in modes.items() if m & (stat.S_IWGRP | others) != group} == {}
        return len(modes)

    def stage(self: StateFile, name: str, total: int, unit: str) -> None:
        genuine(self, name, total, unit)
        check()  # it may be killed here, and somebody else of the group goes on

    monkeypatch.setattr(StateFile, "stage", stage)
    before = os.umask(mask)
    monkeypatch.setattr(os, "umask", pytest.fail)  # it is one for all threads
    try:
        assert one.run("--reference=self") == 0
        assert check() > 20
    finally:
        monkeypatch.undo()
        assert os.umask(before) == mask
    if mask == 0o077:
        readable = [p for p in one.job.rglob("*") if p.stat().st_mode & stat.S_IRGRP]
        assert bool(readable) == bool(group)
