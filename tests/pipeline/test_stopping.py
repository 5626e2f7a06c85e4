"""Signals that ask to stop."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from wsi_pgdips.pipeline.signals import SIGNALS, Stopped, stoppable


def ask(number: int) -> None:
    """Send a signal to this process, and let Python notice it."""
    os.kill(os.getpid(), number)
    threading.Event().wait(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_once_and_asked_for_again(number: signal.Signals) -> None:
    with stoppable() as stop:
        stop.check()  # nobody has asked
        with pytest.raises(Stopped, match=number.name) as caught:
            ask(number)
        assert caught.value.number == number
        for other in SIGNALS:  # nothing breaks off the end
            ask(other)
        for _ in range(2):
            with pytest.raises(Stopped, match=number.name):
                stop.check()


def test_who_wants_to_know_is_told_at_once_the_last_first() -> None:
    told: list[str] = []

    def broken(number: int) -> None:
        told.append("broken")
        raise OSError("the disk is gone")

    with (
        stoppable() as stop,
        stop.telling(lambda number: told.append(f"outer {number}")),
        stop.telling(broken),
    ):
        with stop.telling(lambda number: told.append("over")):
            pass
        with pytest.raises(Stopped):
            ask(signal.SIGTERM)
        assert told == ["broken", f"outer {signal.SIGTERM.value}"]
        ask(signal.SIGTERM)
        assert len(told) == 2


def test_only_one_asks_for_more_time() -> None:
    assert (Stopped(signal.SIGUSR1).asks_for_more, Stopped(signal.SIGUSR1).exit_code) == (True, 75)
    assert (Stopped(signal.SIGTERM).asks_for_more, Stopped(signal.SIGTERM).exit_code) == (
        False,
        143,
    )
    assert issubclass(Stopped, KeyboardInterrupt)  # no handler of errors takes it for one


def test_handlers_are_as_before() -> None:
    seen: list[int] = []
    mine = {number: lambda n, _frame: seen.append(n) for number in SIGNALS}
    before = {number: signal.signal(number, mine[number]) for number in SIGNALS}
    try:
        with pytest.raises(Stopped), stoppable():
            ask(signal.SIGTERM)
        with stoppable():
            pass
        assert {number: signal.getsignal(number) for number in SIGNALS} == mine
        for number in SIGNALS:
            ask(number)
        assert seen == list(SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ctrl_c_is_left_to_python() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as stop:
        assert signal.getsignal(signal.SIGINT) is before
        stop.check()
