"""Starts runs as a user does, and kills them with all processes that they have started."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cohort.moments import MOMENTS, Place
from wsi_pgdips.errors import IncompleteRunError

Step = tuple[str, ...]  # options of each of the processes that work at the same time
SOON_S = 0.1  # after its start the earliest that a process is killed
AIMED = 0.5  # share of the kills that wait for the beginning of a stage
LATE_S = (0.0, 0.01, 0.1)  # after it
INTERVAL_S = 0.002


@dataclass
class Killer:
    """Starts runs and kills them, until enough kills are made.

    Args:
        command: the slide and the options that all ways of running share. left: kills to be made.
        rng: draws the instants. scratch: folder for what killed processes leave elsewhere.
    """

    command: Sequence[str | Path]
    left: int
    rng: random.Random
    scratch: Path
    seconds: dict[Step, float] = field(default_factory=dict)

    def undisturbed(self, output: Path, steps: Sequence[Step]) -> None:
        """Run without a kill, and record how long each step takes.

        Raises:
            IncompleteRunError: a process failed.
        """
        for step in steps:
            begun = time.monotonic()
            with _Started(self, output, step) as started:
                started.wait()
            self.seconds[step] = time.monotonic() - begun

    def disturbed(self, place: Place, steps: Sequence[Step], moments: list[str]) -> None:
        """Run to the end, with kills on the way.

        Args:
            moments: a list to which the moment of each kill is added.

        Raises:
            IncompleteRunError: a process failed that was not killed.
        """
        for step in steps:
            while (moment := self._attempt(place, step)) is not None:
                moments.append(moment)

    def _attempt(self, place: Place, step: Step) -> str | None:
        """Run a step, or kill it; returns the moment of the kill, or None if the step finished."""
        before = place.holders()
        with _Started(self, place.output, step) as started:
            if self.left and self._time_has_come(place, step, started) and started.kill():
                self.left -= 1
                return place.moment(before)
            started.wait()
        return None

    def _time_has_come(self, place: Place, step: Step, started: _Started) -> bool:
        """Wait for the instant of a kill; False if the processes end before it."""
        begun, stage, last = time.monotonic(), place.stage(), len(MOMENTS) - 1
        if stage == last:  # nothing but to see that it is done
            return False
        instant = self.rng.uniform(SOON_S, max(self.seconds[step], SOON_S))
        aim = self.rng.randint(stage + 1, last)  # one of another step is never reached
        aimed, late = self.rng.random() < AIMED, self.rng.choice(LATE_S)
        while started.running():
            if not aimed and time.monotonic() - begun >= instant:
                return True
            if aimed and place.stage() >= aim:
                time.sleep(late)
                return True
            time.sleep(INTERVAL_S)
        return False


class _Started:
    """Processes of one step, each with a group of its own."""

    def __init__(self, killer: Killer, output: Path, step: Step) -> None:
        # what killed processes leave in the folder of temporary files goes with the benchmark
        environment = {**os.environ, "TMPDIR": str(killer.scratch), "PYTHONFAULTHANDLER": "1"}
        slide, *others = map(str, killer.command)
        program = [sys.executable, "-m", "wsi_pgdips", "run", slide, str(output), *others]
        self._processes: list[tuple[subprocess.Popen[bytes], Path]] = []
        for number, options in enumerate(step):
            log = killer.scratch / f"log-{number}.txt"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [*program, *options.split()],
                    stdout=file,
                    stderr=file,
                    env=environment,
                    start_new_session=True,
                )
            self._processes.append((process, log))

    def __enter__(self) -> _Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def running(self) -> bool:
        return any(p.poll() is None for p, _ in self._processes)

    def kill(self) -> bool:
        """Kill all processes; returns whether any was alive."""
        for p, _ in self._processes:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()
        return any(p.returncode == -signal.SIGKILL for p, _ in self._processes)

    def wait(self) -> None:
        """Wait until all have ended by themselves.

        Raises:
            IncompleteRunError: one of them ended in an error.
        """
        for p, log in self._processes:
            if p.wait() != 0:
                raise IncompleteRunError(
                    "a run that was not killed has failed",
                    found=f"exit code {p.returncode}: {log.read_text().strip()}",
                )
