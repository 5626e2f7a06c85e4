"""Progress of a run: a bar on a terminal, plain lines in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

INTERVAL_S = 5.0


class Progress(Protocol):
    """The reports of a run. There is one stage at a time; a new stage ends the previous one."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """Begin a stage of ``total`` units; 0 if the number is unknown."""
        ...

    def advance(self, n: int = 1) -> None:
        """Report that ``n`` more units of the stage are done."""
        ...

    def note(self, message: str) -> None:
        """Show one line to the user."""
        ...

    def close(self) -> None:
        """End the reports, after a success or a failure; it may be called twice."""
        ...


class QuietProgress:
    """Progress that shows nothing."""

    def stage(self, name: str, total: int, unit: str) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


class Together:
    """Progress that is passed on to several others.

    Args:
        shown: the others.
        check: called before each stage and each step; it may raise an exception to end the work.
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
    """Progress as lines of a log: stage, done of total, rate, time left.

    Args:
        stream: receives the lines, each through ``note``; flushed, so that the log can be followed.
        interval: minimum of seconds between two lines of a stage; the first and the last line of a
            stage are always written.
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
        self._total = self._done = self._reported = 0
        self._began = self._last = 0.0

    def stage(self, name: str, total: int, unit: str) -> None:
        self.close()
        self._name, self._total, self._unit = name, total, unit
        self._done = self._reported = 0
        self._began = self._last = self._clock()
        self.note(f"{name}: {total} {unit}" if total else name)

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = self._clock()
        if self._done == self._total or now - self._last >= self._interval:
            self._report(now)

    def note(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def close(self) -> None:
        if self._done > self._reported:
            self._report(self._clock())

    def _report(self, now: float) -> None:
        self._last, self._reported = now, self._done
        self.note(progress_line(self._name, self._done, self._total, self._unit, now - self._began))


class RichProgress:
    """Progress as one bar per stage on a terminal: done of total, rate, time left.

    Notes scroll above the bars.
    """

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
            for shown in self._bars.task_ids:  # finished bars stay on the screen unchanged
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
        # without markup, because a path may contain brackets
        self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._open:
            self._bars.stop()
            self._open = False


def make_progress(stream: TextIO) -> Progress:
    """Make bars if ``stream`` is a terminal, else plain lines."""
    if not stream.isatty():
        return LineProgress(stream)
    from rich.console import Console

    return RichProgress(Console(file=stream))


def progress_line(name: str, done: int, total: int, unit: str, elapsed: float) -> str:
    """Format a line such as ``fit 3/10 tiles, 1.5 tiles/s, 0:05 left``.

    Unknown parts are left out, and for a single unit the rate and the time left.

    Args:
        done, total: units; a total of 0 is unknown. elapsed: seconds since the stage began.
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
    """Format seconds as ``m:ss``, or as ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
