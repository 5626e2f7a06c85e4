"""A signal that asks to stop: what is in hand is dropped, what is done is kept."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

# of a scheduler before its time limit, and at it
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

EXIT_AGAIN, EXIT_ENDED = 75, 128
TOO_SHORT = "the time limit is too short to finish a single piece of the work"
LONGER = "give a longer --time, more --cpus-per-task, or a smaller --block"


class Stopped(KeyboardInterrupt):
    """Raised in the main thread; ends a run as ctrl-C does.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def asks_for_more(self) -> bool:
        """Whether the work is to go on in a new start, as time is short."""
        return self.number == signal.SIGUSR1

    @property
    def exit_code(self) -> int:
        return EXIT_AGAIN if self.asks_for_more else EXIT_ENDED + self.number


class Stop:
    """Remembers that somebody asked."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._told: list[Callable[[int], None]] = []

    @contextlib.contextmanager
    def telling(self, told: Callable[[int], None]) -> Iterator[None]:
        """Have somebody told at once: what is in hand may take longer to drop than there is time.

        Args:
            told: of the signal's number; whoever came last is told first.
        """
        self._told.append(told)
        try:
            yield
        finally:
            self._told.remove(told)

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """A handler of signals: the first one counts, so that nothing breaks off the end."""
        if self._number is None:
            self._number = number
            for told in reversed(self._told):
                # nothing that goes wrong here may keep the work from ending
                with contextlib.suppress(Exception):
                    told(number)
            raise Stopped(number)

    def check(self) -> None:
        """Ask once more: an exception that a signal raises may fall where it is swallowed.

        Raises:
            Stopped: somebody has asked.
        """
        if self._number is not None:
            raise Stopped(self._number)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Signals raise ``Stopped`` inside; for the main thread."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
