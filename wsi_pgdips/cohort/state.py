"""What became of a slide: one small file of each process that has worked on it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from wsi_pgdips.disk import PARTIAL, write_atomic
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline.part import STAGES, Part
from wsi_pgdips.pipeline.retry import is_passing

Status = Literal["running", "stage_done", "done", "incomplete", "failed", "stopped", "unready"]
WRITE_S = 1.0  # between two writes of how far a stage is
TO_BE_TRIED = "to be tried again"
ABSENT = "absent"  # stamp of a file that is not there
AGAIN_S = (1.0, 5.0, 15.0)  # before each new attempt to say what became of a slide


@dataclass(frozen=True)
class State:
    """Of a part of the work on a slide, or of a slide.

    Attributes:
        part: its name. status: ``stage_done`` where other stages follow; ``incomplete`` where tiles
            or blocks failed; ``stopped`` by a signal; ``unready`` where a stage before it was not
            done. stage: of the run, in hand or the last.
        done, total, unit: of the stage. begun, stage_begun, updated: seconds since the epoch.
        reason, hint: what went wrong, and what to do. exit_code: as of ``run``.
        tiles, failed_tiles, wall_s: of the slide. digest: of its scientific settings.
        stamp: size and time of its file, see ``stamp_of``; "" where that cannot be told.
        host, pid, job: who wrote it; ``job`` of Slurm. unwritten: it is not on disk.
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
    wall_s: float = 0.0
    digest: str = ""
    stamp: str = ""
    host: str = ""
    pid: int = 0
    job: str = ""
    unwritten: bool = False

    @property
    def ended(self) -> bool:
        """Whether nobody goes on with it unasked."""
        return self.status in ("done", "failed", "incomplete")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


class StateFile:
    """The state of a part, on disk; a ``Progress`` that writes how far it is.

    Args:
        folder: of the slide's states. stamp: of its file. clock: seconds since the epoch.
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
        now = clock()
        self.state = State(
            part.name,
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
        """Change the state, and write it; again where the disk is away for a moment.

        Raises:
            OutputError: it cannot be written.
        """
        self._change(**changes)
        for wait in AGAIN_S:
            try:
                return self._write()
            except OutputError as error:
                if not is_passing(error):
                    raise
                time.sleep(wait)
        return self._write()

    def say(self, **changes: Any) -> None:
        """``write`` where there is no time, and what cannot be written is not missed."""
        self._change(**changes)
        with contextlib.suppress(OutputError):
            self._write()

    def stage(self, name: str, total: int, unit: str) -> None:
        self.say(stage=name, total=total, unit=unit, done=0, stage_begun=self._clock())

    def advance(self, n: int = 1) -> None:
        self.state = replace(self.state, done=self.state.done + n)
        if self._clock() - self._written >= WRITE_S:
            self.say()

    def _change(self, **changes: Any) -> None:
        self._written = self._clock()
        self.state = replace(self.state, updated=self._written, **changes)

    def _write(self) -> State:
        write_atomic(self._path, json.dumps(asdict(self.state)).encode())
        return self.state

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


def stamp_of(slide: str) -> str:
    """What tells a slide's file from one that takes its place; "" where it cannot be seen."""
    try:
        facts = Path(slide).stat()
    except FileNotFoundError:
        return ABSENT
    except OSError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def read_states(folder: Path) -> tuple[State, ...]:
    """Of all parts, in the order of their stages."""
    found = [State.read(path) for path in sorted(folder.glob("*.json"))]
    return tuple(sorted((s for s in found if s is not None), key=_place))


def forget_states(folder: Path, but: Part) -> None:
    """What is begun anew has no past; states of slides whose names go on below stay.

    Args:
        but: whose state is written already, so that a slide that was begun counts as begun.
    """
    for path in folder.glob("*.json"):
        if path.name != f"{but.name}.json":
            path.unlink(missing_ok=True)


def try_again(folder: Path) -> tuple[State, ...]:
    """What has ended counts as stopped from now on, and as begun: it is gone on with.

    Returns:
        The states before, for ``put_back``.
    """
    before = read_states(folder)
    if before:
        digest = next((s.digest for s in before if s.digest), "")
        StateFile(folder, Part(), digest).write(status="stopped", reason=TO_BE_TRIED)
        forget_states(folder, Part())
    return before


def put_back(folder: Path, states: Sequence[State]) -> None:
    """As it was before ``try_again``, unless somebody has begun since."""
    now = state_of_slide(read_states(folder))
    if states and now is not None and now.reason == TO_BE_TRIED:
        for state in states:
            write_atomic(folder / f"{state.part}.json", json.dumps(asdict(state)).encode())
        if all(s.part != now.part for s in states):
            (folder / f"{now.part}.json").unlink(missing_ok=True)


def put_all_back(before: Iterable[tuple[Path, Sequence[State]]]) -> None:
    """``put_back`` of as many as can be written."""
    for folder, states in before:
        with contextlib.suppress(OutputError, OSError):
            put_back(folder, states)


def state_of_slide(states: Sequence[State]) -> State | None:
    """One state from those of the parts; None where nobody has begun.

    A failure counts more than what is still in hand, as nothing can follow it.
    """
    if not states:
        return None
    since = min(s.begun for s in states)
    for status in ("done", "failed", "incomplete"):
        for state in states:
            if state.status == status:
                return replace(state, begun=since)
    unready = [s for s in states if s.status == "unready"]
    begun = [s for s in states if s not in unready]
    if unready and all(s.status == "stage_done" for s in begun):
        return replace(unready[0], begun=since)  # the others follow from it
    last = begun[-1]
    beside = [s for s in begun if _place(s) == _place(last)]
    running = [s for s in beside if s.status == "running"] or beside
    latest = max(running, key=lambda s: s.updated)
    stopped = any(s.status == "stopped" for s in beside)
    return replace(
        latest,
        status="stopped" if stopped and latest.status != "running" else latest.status,
        done=sum(s.done for s in beside),
        total=sum(s.total for s in beside),
        begun=since,
        # a process that is just starting has begun none
        stage_begun=min((s.stage_begun for s in running if s.stage), default=0.0),
    )


def unready_before(part: Part, states: Sequence[State]) -> State | None:
    """A stage before that of a part which could not begin, so that no later one can."""
    own = _order(part.name)
    return next((s for s in states if s.status == "unready" and _place(s) < own), None)


def _place(state: State) -> int:
    return _order(state.part)


def _order(part: str) -> int:
    """Of the stages; what does all of them comes last."""
    name = part.partition("-")[0]
    return next((i for i, stage in enumerate(STAGES) if stage == name), len(STAGES))
