"""How far a run is: a bar on a terminal, plain lines in a job's log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

INTERVAL_S = 5.0


class Progress(Protocol):
    """What a run tells of itself. One stage at a time; a new one ends the one before."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """Begin a stage of ``total`` units; 0 where the number is not known."""
        ...

    def advance(self, n: int = 1) -> None:
        """``n`` more units of the stage are done."""
        ...

    def note(self, message: str) -> None:
        """One line the user should see."""
        ...

    def close(self) -> None:
        """The run ended, well or not; may be called twice."""
        ...


class QuietProgress:
    """Says nothing."""

    def stage(self, name: str, total: int, unit: str) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


class Together:
    """Several places that show progress.

    Args:
        check: called before each word, to raise what ends the work.
    """

    def __init__(self, shown: Sequence[Progress], check: Callable[[], None] = lambda: None) -> None:
        self.shown, self._check = tuple(shown), check

    def stage(self, name: str, total: int, unit: str) -> None:
        self._check()
        for one in self.shown:
            one.stage(name, total, unit)

    def advance(self, n: int = 1) -> None:
        self._check()
        for one in self.shown:
            one.advance(n)

    def note(self, message: str) -> None:
        for one in self.shown:
            one.note(message)

    def close(self) -> None:
        for one in self.shown:
            one.close()


class LineProgress:
    """Lines for a log: stage, done of total, rate, time left; at most one in ``interval`` seconds.

    Args:
        stream: where the lines go; each is flushed, so that a log can be followed.
        interval: seconds between two lines of a stage; its first and last line always come.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        interval: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._interval, self._clock = stream, interval, clock
        self._name, self._unit = "", ""
        self._total = self._done = self._told = 0
        self._began = self._last = 0.0

    def stage(self, name: str, total: int, unit: str) -> None:
        self.close()
        self._name, self._total, self._unit = name, total, unit
        self._done = self._told = 0
        self._began = self._last = self._clock()
        self._say(f"{name}: {total} {unit}" if total else name)

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = self._clock()
        if self._done == self._total or now - self._last >= self._interval:
            self._tell(now)

    def note(self, message: str) -> None:
        self._say(message)

    def close(self) -> None:
        if self._done > self._told:
            self._tell(self._clock())

    def _tell(self, now: float) -> None:
        self._last, self._told = now, self._done
        self._say(progress_line(self._name, self._done, self._total, self._unit, now - self._began))

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class RichProgress:
    """A bar a stage on a terminal: done of total, rate, time left; notes scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._unit, self._total, self._done = "", 0, 0
        self._open = False

    def stage(self, name: str, total: int, unit: str) -> None:
        if not self._open:
            for shown in self._bars.task_ids:  # they stay on the screen as they were
                self._bars.remove_task(shown)
            self._bars.start()
            self._open = True
        if self._task in self._bars.task_ids:
            self._bars.stop_task(self._task)
        self._unit, self._total, self._done = unit, total, 0
        count = f"0/{total} {unit}" if total else ""
        self._task = self._bars.add_task(name, total=total or None, count=count, pace="")

    def advance(self, n: int = 1) -> None:
        if self._task is None:
            return
        self._done += n
        elapsed = next(t.elapsed or 0.0 for t in self._bars.tasks if t.id == self._task)
        of = f"/{self._total}" if self._total else ""
        self._bars.update(
            self._task,
            advance=n,
            count=f"{self._done}{of} {self._unit}",
            pace=", ".join(_pace(self._done, self._total, self._unit, elapsed)),
        )

    def note(self, message: str) -> None:
        # not as markup: a path may hold brackets
        self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._open:
            self._bars.stop()
            self._open = False


def make_progress(stream: TextIO) -> Progress:
    """Bars where ``stream`` is a terminal, plain lines elsewhere."""
    if not stream.isatty():
        return LineProgress(stream)
    from rich.console import Console

    return RichProgress(Console(file=stream))


def progress_line(name: str, done: int, total: int, unit: str, elapsed: float) -> str:
    """``fit 3/10 tiles, 1.5 tiles/s, 0:05 left``: what is not known, or of one unit, is left out.

    Args:
        done, total: units; a total of 0 is not known. elapsed: seconds since the stage began.
    """
    count = f"{name} {done}/{total} {unit}" if total else f"{name} {done} {unit}"
    return ", ".join([count, *_pace(done, total, unit, elapsed)])


def _pace(done: int, total: int, unit: str, elapsed: float) -> list[str]:
    if done <= 0 or elapsed <= 0 or total == 1:
        return []
    parts = [f"{done / elapsed:.3g} {unit}/s"]
    if total > done:
        parts.append(f"{clock_text(elapsed / done * (total - done))} left")
    return parts


def clock_text(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
