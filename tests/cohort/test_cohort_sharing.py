"""Several processes, or several people, at one job folder."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import asdict, replace
from typing import Any

import pytest

from support.cohorts import (
    OPTIONS,
    OneByOne,
    Study,
    program,
)
from wsi_pgdips.cohort import runner
from wsi_pgdips.cohort.state import read_states
from wsi_pgdips.pipeline import lock, pool
from wsi_pgdips.pipeline import slide as pipeline


def test_what_another_process_holds_is_left_to_it(
    two: Study,
    here: OneByOne,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
    where: str, one: Study, here: OneByOne, monkeypatch: pytest.MonkeyPatch
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
    one: Study, here: OneByOne, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_folder_of_a_group_stays_the_groups(mask: int, one: Study, here: OneByOne) -> None:
    one.job.mkdir()
    one.job.chmod(0o2770)
    before = os.umask(mask)
    try:
        assert one.run("--reference=self") == 0
    finally:
        os.umask(before)
    everything = [one.job, *one.job.rglob("*")]
    assert len(everything) > 20
    closed = [p for p in everything if not p.stat().st_mode & stat.S_IWGRP]
    assert closed == []
    open_to_all = [p for p in everything if p.stat().st_mode & stat.S_IWOTH]
    assert open_to_all == []


def test_a_folder_of_ones_own_stays_so(one: Study, here: OneByOne) -> None:
    before = os.umask(0o077)
    try:
        assert one.run() == 0
    finally:
        os.umask(before)
    assert all(p.stat().st_mode & 0o077 == 0 for p in one.job.rglob("*"))
