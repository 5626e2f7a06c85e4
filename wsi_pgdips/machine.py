"""The machine that a process runs on: devices, CPUs, threads and memory."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from wsi_pgdips.errors import DeviceError


def check_name(device: str) -> None:
    """See that a device has a name that is known, be it here or not.

    Raises:
        DeviceError: it has not.
    """
    name, _, number = device.partition(":")
    if device in ("auto", "cpu") or (name == "cuda" and (device == name or number.isdecimal())):
        return
    raise DeviceError(
        "unknown device",
        expected="auto, cpu, cuda or cuda:N",
        found=device,
        where="--device",
    )


def device_for(asked: str, cluster: str) -> str:
    """The device of a job: as it was asked for where each worker is to look for its own.

    Raises:
        DeviceError: as ``choose_device``; of workers elsewhere only for an unknown name.
    """
    if cluster == "local":
        return choose_device(asked)
    check_name(asked)
    return asked


def choose_device(asked: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: CUDA was asked for and is not there, or the name is unknown.
    """
    import torch

    check_name(asked)
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = asked.partition(":")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "no GPU that torch can use was found",
            expected="a CUDA device",
            found="CUDA is not available to torch",
            where="--device",
            hint="run with --device cpu, or --device auto to use a GPU only where there is one",
        )
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(
            "there is no such GPU",
            expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            found=asked,
            where="--device",
        )
    return asked


def devices_of(device: str) -> tuple[str, ...]:
    """The devices that a chosen one stands for: all GPUs for ``cuda``, else itself."""
    import torch

    if device != "cuda":
        return (device,)
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))


def usable_cpus() -> int:
    """CPUs this process may use: fewer than the machine's in a container or a job."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    # not every Slurm binds its jobs to the CPUs they asked for; who is alone in them has them all
    alone = os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    asked = os.environ.get("SLURM_CPUS_ON_NODE" if alone else "SLURM_CPUS_PER_TASK", "")
    return min(count, int(asked)) if asked.isdecimal() and int(asked) else count


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


# of <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MAPPED = 2**25  # bytes; more is refused
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> None:
    """Ask the C library to; where it is not GNU's, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in (
            (_M_ARENA_MAX, 1),  # one heap for all threads, else each begins with an empty one
            (_M_MMAP_THRESHOLD, _LARGEST_MAPPED),
            (_M_TRIM_THRESHOLD, _NEVER),
        ):
            mallopt(option, value)


_lock = threading.Lock()
_inside = 0  # how many calls need the process quiet
_torch_threads = 1  # of an operator, before the first of them
_loud = contextlib.ExitStack()  # restores the process
_this_thread = threading.local()  # its depth


@contextlib.contextmanager
def quiet_machine() -> Iterator[None]:
    """Compute with one thread an operator, in numpy's and torch's libraries alike.

    Inside, BLAS, OpenMP, Blosc and torch use one thread; TF32 is allowed to convolutions, but not
    to the physics; the garbage collector skips what exists already. All of this is as before when
    the last of several nested or concurrent calls ends; the number of threads of torch and OpenMP
    belongs to the calling thread, and is restored when the outermost call of that thread ends.

    The C library is also asked to keep freed memory. Nobody can take that back.
    """
    depth = getattr(_this_thread, "depth", 0)
    _enter_process()
    thread = contextlib.ExitStack() if depth else _quieten_thread()
    _this_thread.depth = depth + 1
    try:
        yield
    finally:
        _this_thread.depth = depth
        thread.close()
        _leave_process()


def quiet_threads() -> None:
    """Make the process and this thread as in ``quiet_machine``, for good.

    This is for worker processes and for programs that end with their work.
    """
    _enter_process()
    _quieten_thread()


def _enter_process() -> None:
    global _inside
    with _lock:
        if _inside == 0:
            _quieten_process()
        _inside += 1


def _leave_process() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _loud.close()


def _quieten_process() -> None:
    """Make the process quiet, and have ``_loud`` restore it."""
    global _torch_threads
    import torch
    from threadpoolctl import threadpool_limits

    _torch_threads = torch.get_num_threads()
    keep_freed_memory()
    _loud.enter_context(threadpool_limits(1, user_api="blas"))
    _loud.callback(_set_variable, "BLOSC_NTHREADS", os.environ.get("BLOSC_NTHREADS"))
    os.environ["BLOSC_NTHREADS"] = "1"
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # callbacks run last to first, so the older of torch's two interfaces is restored first
    for backend, name in (
        *((b, "fp32_precision") for b in (matmul, cudnn.conv, cudnn.rnn)),
        *((b, "allow_tf32") for b in (matmul, cudnn)),
    ):
        # not in older versions; or the caller has used the newer interface alone
        with contextlib.suppress(AttributeError, RuntimeError):
            _loud.callback(setattr, backend, name, getattr(backend, name))
    cudnn.allow_tf32, matmul.allow_tf32 = True, False  # not left to the version's default
    if gc.get_freeze_count() == 0:  # else another has done so, who would miss it
        gc.freeze()
        _loud.callback(gc.unfreeze)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _quieten_thread() -> contextlib.ExitStack:
    """Have operators run in the calling thread alone; what is returned restores it."""
    import torch
    from threadpoolctl import threadpool_limits

    restore, before = contextlib.ExitStack(), torch.get_num_threads()
    # a thread that began while the process was quiet has the 1 of the thread that made it so
    restore.callback(torch.set_num_threads, before if before > 1 else _torch_threads)
    restore.enter_context(threadpool_limits(1, user_api="openmp"))
    torch.set_num_threads(1)
    return restore
