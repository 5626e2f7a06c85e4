"""The state of a slide on disk: one small file of each process that has worked on it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from wsi_pgdips.disk import PARTIAL, write_atomic
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline.part import STAGES, Part
from wsi_pgdips.pipeline.retry import retrying

Status = Literal["running", "stage_done", "done", "incomplete", "failed", "stopped", "unready"]
ENDED: tuple[Status, ...] = ("done", "failed", "incomplete")
WRITE_S = 1.0  # between two writes of the progress within a stage
ABSENT = "absent"  # stamp of a file that is not there
AGAIN_S = (1.0, 5.0, 15.0)  # before each new try to write the end of a slide


@dataclass(frozen=True)
class State:
    """The state of one part of the work on a slide, or of a slide.

    Attributes:
        part: its name. status: ``stage_done`` where other stages follow; ``incomplete`` where tiles
            or blocks failed; ``stopped`` by a signal; ``unready`` where a stage before it was not
            done.
        stage: of the run, now or last. done, total, unit: of the stage.
        begun, stage_begun, updated: seconds since the epoch.
        reason, hint: what went wrong, and what to do. exit_code: as of ``run``.
        tiles, failed_tiles, verdict, verdict_reasons, wall_s: of the slide.
        digest: of its scientific settings.
        stamp: size and time of its file, see ``stamp_of``; "" where they are unknown.
        host, pid, job: who wrote it; ``job`` of Slurm. unwritten: it is not on disk.
        attempt: number of the attempt at the slide that the state belongs to.
        wanted: number of the attempt that was asked for last, see ``ask_for_attempt``; 0 for none.
    """

    part: str
    status: Status = "running"
    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    begun: float = 0.0
    stage_begun: float = 0.0
    updated: float = 0.0
    reason: str = ""
    hint: str = ""
    exit_code: int | None = None
    tiles: int = 0
    failed_tiles: int = 0
    verdict: str = ""
    verdict_reasons: tuple[str, ...] = ()
    wall_s: float = 0.0
    digest: str = ""
    stamp: str = ""
    host: str = ""
    pid: int = 0
    job: str = ""
    unwritten: bool = False
    attempt: int = 1
    wanted: int = 0

    @property
    def is_to_be_tried(self) -> bool:
        """Whether another attempt was asked for, and has not begun."""
        return self.wanted > self.attempt

    @property
    def has_ended(self) -> bool:
        """Whether the slide is left alone until somebody asks for another attempt."""
        return self.status in ENDED and not self.is_to_be_tried

    @property
    def text(self) -> str:
        """The outcome of the part as a line, such as ``done, 12 tiles, verdict pass``."""
        if self.status != "done":
            return f"{self.status}: {self.reason}" if self.reason else self.status
        text = f"done, {self.tiles} tiles"
        if self.verdict in ("", "unknown"):
            return text
        return ": ".join([f"{text}, verdict {self.verdict}", *self.verdict_reasons[:1]])

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the state in a file; None where there is none that can be read."""
        try:
            found = json.loads(path.read_bytes())
            found["verdict_reasons"] = tuple(found.get("verdict_reasons", ()))
            return cls(**found)
        except (OSError, ValueError, TypeError, AttributeError):
            return None


class StateFile:
    """The state of a part on disk; a ``Progress`` that writes how far the part is.

    A part that begins with the first stage begins a new attempt at the slide; other parts belong to
    the attempt that was begun, or asked for, last.

    Args:
        folder: of the slide's states. stamp: of its file. clock: seconds since the epoch.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        part: Part,
        digest: str,
        stamp: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._clock = folder / f"{part.name}.json", clock
        for torn in folder.glob(f"{part.name}.json.*{PARTIAL}"):  # of a process that was killed
            torn.unlink(missing_ok=True)
        before, now = read_states(folder), clock()
        latest = max((s.attempt for s in before), default=0)
        self.state = State(
            part.name,
            attempt=latest + 1 if part.does("calibrate") else _attempt(before),
            begun=now,
            updated=now,
            digest=digest,
            stamp=stamp,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=os.environ.get("SLURM_JOB_ID", ""),
        )
        self._written = 0.0
        self.write()

    def write(self, **changes: Any) -> State:
        """Change the state and write it; a passing fault of the disk is waited for.

        Raises:
            OutputError: it cannot be written.
        """
        self._change(**changes)
        return retrying(AGAIN_S)(self._write)

    def write_soon(self, **changes: Any) -> None:
        """Change the state, and write it once; a failure to write is ignored."""
        self._change(**changes)
        with contextlib.suppress(OutputError):
            self._write()

    def stage(self, name: str, total: int, unit: str) -> None:
        self.write_soon(stage=name, total=total, unit=unit, done=0, stage_begun=self._clock())

    def advance(self, n: int = 1) -> None:
        self.state = replace(self.state, done=self.state.done + n)
        if self._clock() - self._written >= WRITE_S:
            self.write_soon()

    def _change(self, **changes: Any) -> None:
        self._written = self._clock()
        self.state = replace(self.state, updated=self._written, **changes)

    def _write(self) -> State:
        write_atomic(self._path, json.dumps(asdict(self.state)).encode())
        return self.state

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


def ask_for_attempt(folder: Path) -> None:
    """Ask for another attempt at a slide that was begun.

    The wish lies beside the last state, whose reason is kept until the attempt begins.

    Args:
        folder: of the slide's states.

    Raises:
        OutputError: it cannot be written.
    """
    if states := read_states(folder):
        last = max(states, key=lambda s: s.attempt)
        asked = replace(last, wanted=last.attempt + 1)
        write_atomic(folder / f"{last.part}.json", json.dumps(asdict(asked)).encode())


def stamp_of(slide: str) -> str:
    """Return what tells a slide's file from one that takes its place; "" where it is not seen."""
    try:
        facts = Path(slide).stat()
    except FileNotFoundError:
        return ABSENT
    except OSError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def read_states(folder: Path) -> tuple[State, ...]:
    """Return the states of all parts, of all attempts, in the order of their stages."""
    found = [State.read(path) for path in sorted(folder.glob("*.json"))]
    return tuple(sorted((s for s in found if s is not None), key=lambda s: _order(s.part)))


def state_of_slide(states: Sequence[State]) -> State | None:
    """Return one state of a slide from those of its last attempt; None where nobody has begun.

    A failure counts more than work that still goes on, as nothing can follow the failure.
    """
    if not states:
        return None
    attempt, wanted = max(s.attempt for s in states), max(s.wanted for s in states)
    states = [s for s in states if s.attempt == attempt]
    of_slide: dict[str, Any] = {"begun": min(s.begun for s in states), "wanted": wanted}
    for status in ENDED:
        for state in states:
            if state.status == status:
                return replace(state, **of_slide)
    unready = [s for s in states if s.status == "unready"]
    begun = [s for s in states if s not in unready]
    if unready and all(s.status == "stage_done" for s in begun):
        return replace(unready[0], **of_slide)  # the others follow from it
    last = begun[-1]
    beside = [s for s in begun if _order(s.part) == _order(last.part)]
    running = [s for s in beside if s.status == "running"] or beside
    latest = max(running, key=lambda s: s.updated)
    stopped = any(s.status == "stopped" for s in beside)
    return replace(
        latest,
        **of_slide,
        status="stopped" if stopped and latest.status != "running" else latest.status,
        done=sum(s.done for s in beside),
        total=sum(s.total for s in beside),
        # a process that is just starting has begun no stage
        stage_begun=min((s.stage_begun for s in running if s.stage), default=0.0),
    )


def obstacle(part: Part, states: Sequence[State]) -> State | None:
    """Return the state that keeps a job from its part; None where nothing does.

    The slide has ended, or a stage before the part could not begin, so that no later one can.
    """
    of_slide = state_of_slide(states)
    if of_slide is not None and of_slide.has_ended:
        return of_slide
    return next(
        (
            s
            for s in states
            if (s.status, s.attempt) == ("unready", _attempt(states))
            and _order(s.part) < _order(part.name)
        ),
        None,
    )


def _attempt(states: Sequence[State]) -> int:
    """Return the number of the attempt that was begun, or asked for, last."""
    return max((max(s.attempt, s.wanted) for s in states), default=1)


def _order(part: str) -> int:
    """Return the place of a part among the stages; what does all of them comes last."""
    name = part.partition("-")[0]
    return next((i for i, stage in enumerate(STAGES) if stage == name), len(STAGES))
