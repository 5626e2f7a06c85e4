"""Threads end before the process does."""

from __future__ import annotations

import ctypes
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsi_pgdips import machine

LINGERS_S = 0.3

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads of the system are not listed here"
)


def lingering() -> int:
    """Have this thread go on after Python has joined it; its number."""
    machine._one_thread_each()
    system = ctypes.CDLL(None)
    key = ctypes.c_uint()
    # at the end of the thread the system calls usleep with what is kept under the key
    assert system.pthread_key_create(ctypes.byref(key), system.usleep) == 0
    assert system.pthread_setspecific(key, ctypes.c_void_p(int(1e6 * LINGERS_S))) == 0
    return threading.get_native_id()


def test_who_was_joined_is_waited_for_until_it_is_gone() -> None:
    with ThreadPoolExecutor(1) as pool:
        number = pool.submit(lingering).result()
    assert Path(f"/proc/self/task/{number}").exists()
    machine.outwait_threads()
    assert not Path(f"/proc/self/task/{number}").exists()


def test_who_lives_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_: float) -> None:
        pytest.fail("it would be waited for")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(machine._one_thread_each).result()
        monkeypatch.setattr(machine.time, "sleep", sleep)
        machine.outwait_threads()


def test_nobody_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GONE_S", LINGERS_S / 10)
    with ThreadPoolExecutor(1) as pool:
        number = pool.submit(lingering).result()
    machine.outwait_threads()
    assert Path(f"/proc/self/task/{number}").exists()
