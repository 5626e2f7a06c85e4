"""The threads that a process shares its tiles among; they stay, and so does what each keeps."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
GONE_S = 2.0
_begun: set[int] = set()  # threads, as the system counts them


@functools.cache
def tile_executor(threads: int) -> ThreadPoolExecutor:
    """So many threads, the same whenever they are asked for."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tile", initializer=_one_thread_each)


# a fork has none of its parent's threads, though it has its pool
os.register_at_fork(after_in_child=tile_executor.cache_clear)


def _one_thread_each() -> None:
    """For the start of a thread: its operators run in it alone, whenever it was started.

    The number of threads of an operator is kept by the thread that calls it, and sums depend on it.
    """
    import torch

    torch.set_num_threads(1)
    _begun.add(threading.get_native_id())


@atexit.register
def outwait_threads() -> None:
    """Wait until threads that Python has joined are gone for the system too.

    PyTorch keeps an object of Python in each thread that has trained, and lets go of it when the
    thread is gone; once Python has ended that takes the process with it (pytorch issue 117762).
    """
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        alive = {thread.native_id for thread in threading.enumerate()}
        if not any(Path(f"/proc/self/task/{n}").exists() for n in _begun - alive):
            return
        time.sleep(0.001)


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result]:
    """``map`` over threads, in order, a few items ahead of the consumer.

    Args:
        work: called in the threads. items: consumed as far as they are worked on.
        threads: how many work at once.

    Raises:
        What ``work`` raises, when its turn comes. Whether it ends so, or is closed early, no item
        is worked on any more when it is over.
    """
    executor = tile_executor(threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(work, item))
            while len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        wait(pending)
