"""The state of a slide, from the files of those who work on it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cohorts import begun
from wsi_pgdips.cohort.state import (
    State,
    StateFile,
    ask_for_attempt,
    obstacle,
    read_states,
    state_of_slide,
)
from wsi_pgdips.pipeline.part import STAGES, Part

PARTS = [Part(), *(Part(s) for s in STAGES), *(Part("fit", i, 3) for i in (1, 2, 3))]
STATUSES = ("running", "stage_done", "done", "incomplete", "failed", "stopped", "unready")
ENDED = ("done", "failed", "incomplete")


@st.composite
def states(draw: st.DrawFn) -> list[State]:
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True, max_size=6))
    found = []
    for part in parts:
        begun = draw(st.floats(1, 1e6))
        stage_begun = begun + draw(st.floats(0, 1e4))
        found.append(
            State(
                part.name,
                draw(st.sampled_from(STATUSES)),
                draw(st.sampled_from(["", "fit"])),
                draw(st.integers(0, 50)),
                draw(st.integers(50, 90)),
                begun=begun,
                stage_begun=stage_begun,
                updated=stage_begun + draw(st.floats(0, 1e4)),
            )
        )
    return [s if s.stage else replace(s, done=0, total=0, stage_begun=0.0) for s in found]


@given(states())
def test_one_state_of_those_of_the_parts(found: list[State]) -> None:
    one = state_of_slide(found)
    if not found:
        assert one is None
        return
    assert one is not None
    statuses = {s.status for s in found}
    ended = [s for s in ENDED if s in statuses]
    if ended:  # nothing can follow
        assert one.status == ended[0]
        assert replace(one, begun=0) in [replace(s, begun=0) for s in found]
        assert one.begun == min(s.begun for s in found)
        return
    assert one.status in statuses
    assert one.begun == min(s.begun for s in found)
    assert 0 <= one.done <= one.total or one.total == 0
    begun = [s for s in found if s.status != "unready"]
    if one.status == "unready":  # that says more than the end of what is done
        assert {s.status for s in begun} <= {"stage_done"}
        return
    beside = [s for s in begun if s.part.partition("-")[0] == begun[-1].part.partition("-")[0]]
    if any(s.status == "running" for s in beside):
        assert one.status == "running"
    elif any(s.status == "stopped" for s in beside):
        assert one.status == "stopped"
    if one.stage_begun:
        assert one.stage_begun in [s.stage_begun for s in found]
    assert bool(one.stage_begun) == any(
        s.stage for s in beside if s.status == "running" or one.status != "running"
    )


@given(states())
def test_states_are_read_in_the_order_of_their_stages(
    tmp_path_factory: pytest.TempPathFactory, found: list[State]
) -> None:
    folder = tmp_path_factory.mktemp("states")
    for state in found:
        (folder / f"{state.part}.json").write_text(json.dumps(asdict(state)))
    (folder / "torn.json").write_text("{")
    (folder / "other.json").write_text('{"colour": "red"}')
    (folder / "list.json").write_text("[]")
    read = read_states(folder)
    assert sorted(s.part for s in read) == sorted(s.part for s in found)
    order = [*STAGES, "run"]
    places = [order.index(s.part.partition("-")[0]) for s in read]
    assert places == sorted(places)


def test_shares_of_a_stage_are_added_up(tmp_path: Path) -> None:
    begun(tmp_path, "a", Part("calibrate"), status="stage_done", stage="calibrate", total=5, done=5)
    for i, done in ((1, 3), (2, 4)):
        fit = {"stage": "fit", "done": done, "total": 10, "stage_begun": 100.0 + i}
        begun(tmp_path, "a", Part("fit", i, 3), **fit)
    begun(tmp_path, "a", Part("fit", 3, 3))  # has not begun with its tiles
    one = state_of_slide(read_states(tmp_path / "a"))
    assert one is not None
    assert (one.done, one.total, one.stage_begun) == (7, 20, 101.0)


def test_how_far_it_is_is_written_now_and_then(tmp_path: Path) -> None:
    now = [1000.0]
    file = StateFile(tmp_path / "a", Part("fit", 2, 3), "digest", clock=lambda: now[0])
    path = tmp_path / "a" / "fit-2-of-3.json"
    file.stage("fit", 10, "tiles")
    for _ in range(3):
        now[0] += 0.1
        file.advance()
    on_disk = State.read(path)
    assert on_disk is not None
    assert (on_disk.stage, on_disk.done, on_disk.total, on_disk.stage_begun) == ("fit", 0, 10, 1000)
    now[0] += 1
    file.advance(2)
    on_disk = State.read(path)
    assert on_disk is not None
    assert (on_disk.done, on_disk.updated) == (5, now[0])
    assert (on_disk.pid, on_disk.digest, on_disk.part) == (os.getpid(), "digest", "fit-2-of-3")
    file.note("not of the state")
    file.close()


def test_torn_states_go_and_those_of_names_below_stay(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    torn = tmp_path / "a" / "run.json.0123.partial"
    torn.write_text("{")
    StateFile(tmp_path / "a", Part(), "")
    assert not torn.exists()
    StateFile(tmp_path / "a" / "b", Part(), "")
    StateFile(tmp_path / "a", Part("fit", 1, 2), "")
    assert [s.part for s in read_states(tmp_path / "a")] == ["fit-1-of-2", "run"]
    assert len(read_states(tmp_path / "a" / "b")) == 1
    assert read_states(tmp_path / "nothing") == ()


def test_another_attempt_is_asked_for_and_begun(tmp_path: Path) -> None:
    states = tmp_path / "a"

    def slide() -> State:
        found = state_of_slide(read_states(states))
        assert found is not None
        return found

    ask_for_attempt(states)
    assert read_states(states) == ()  # nobody has begun
    begun(tmp_path, "a", Part("calibrate"), status="stage_done")
    begun(tmp_path, "a", Part("fit", 1, 2), status="failed", reason="x")
    assert obstacle(Part("fit", 2, 2), read_states(states)) == slide()
    for _ in range(2):  # one that is refused, and one that follows
        ask_for_attempt(states)
        assert (slide().status, slide().reason, slide().digest) == ("failed", "x", "digest")
        assert (slide().is_to_be_tried, slide().has_ended) == (True, False)
        assert obstacle(Part("calibrate"), read_states(states)) is None
    # what was killed before it began is as before; what begins has no past
    begun(tmp_path, "a", Part("fit", 2, 2), status="unready", reason="no calibration")
    assert (slide().status, slide().attempt, slide().is_to_be_tried) == ("unready", 2, False)
    assert obstacle(Part("blend"), read_states(states)) == read_states(states)[2]
    assert obstacle(Part("fit", 1, 2), read_states(states)) is None
    begun(tmp_path, "a", Part("calibrate"), status="stage_done")
    assert (slide().status, slide().attempt) == ("stage_done", 3)
    assert obstacle(Part("blend"), read_states(states)) is None
    begun(tmp_path, "a", Part("finalize"), status="done")
    assert (slide().status, slide().has_ended) == ("done", True)
