"""The machine that a process runs on: its devices, CPUs, threads and memory."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from wsi_pgdips.errors import DeviceError


def check_name(device: str) -> None:
    """Check the name of a device, whether or not the device is here.

    Raises:
        DeviceError: the name is unknown.
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
    """Return the device of a job; unchanged where each worker of a cluster chooses its own.

    Raises:
        DeviceError: as ``choose_device``; for a cluster only an unknown name.
    """
    if cluster == "local":
        return choose_device(asked)
    check_name(asked)
    return asked


def choose_device(asked: str) -> str:
    """Return ``cpu``, ``cuda`` or ``cuda:N``.

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
    """Return the devices that a chosen one stands for: all GPUs for ``cuda``, else itself."""
    import torch

    if device != "cuda":
        return (device,)
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))


def usable_cpus() -> int:
    """Return how many CPUs this process may use, which a container or a job may limit."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    # not every Slurm binds its jobs to the CPUs they asked for; the only task of a job has them all
    alone = os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    asked = os.environ.get("SLURM_CPUS_ON_NODE" if alone else "SLURM_CPUS_PER_TASK", "")
    return min(count, int(asked)) if asked.isdecimal() and int(asked) else count


Item = TypeVar("Item")
Result = TypeVar("Result")
GONE_S = 2.0
_pools = itertools.count()
_begun: set[int] = set()  # threads, as the system counts them


@functools.cache
def tile_executor(threads: int) -> ThreadPoolExecutor:
    """Return a pool of so many threads; every call returns the same pool."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tile", initializer=_one_thread_each)


# a fork has none of its parent's threads, though it has its pool
os.register_at_fork(after_in_child=tile_executor.cache_clear)


def _one_thread_each() -> None:
    """Start a thread of the pool: its operators run in it alone.

    The number of threads of an operator belongs to the thread that calls it, and sums depend on it.
    """
    import torch

    torch.set_num_threads(1)
    _begun.add(threading.get_native_id())


@atexit.register
def outwait_threads() -> None:
    """Wait until the threads that Python has joined have ended for the system too.

    PyTorch keeps a Python object in each thread that has trained, and releases it when the thread
    ends; after the end of Python that crashes the process (pytorch issue 117762).
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
    """Map over threads, in order, a few items ahead of the consumer.

    When it ends, also by an exception or because it is closed early, no item is worked on any more.

    Args:
        work: called in the threads. items: consumed as far as they are worked on.
        threads: how many work at once.

    Raises:
        Exception: what ``work`` raises, when its turn comes.
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


@contextlib.contextmanager
def thread_pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Lend threads; at the end what has not begun is cancelled, and no thread works on.

    A signal that interrupts the start of a thread leaves it running, unknown to the executor. So
    threads are found by their name, too.

    Args:
        name: of the threads, for debuggers.
    """
    prefix = f"{name} {next(_pools)} thread"
    executor = ThreadPoolExecutor(threads, thread_name_prefix=prefix)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        for thread in threading.enumerate():
            if thread.name.startswith(prefix):
                thread.join()


# of <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MAPPED = 2**25  # bytes; more is refused
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory; does nothing where it is not GNU's."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in (
            (_M_ARENA_MAX, 1),  # one heap for all threads: each one's own would begin empty
            (_M_MMAP_THRESHOLD, _LARGEST_MAPPED),
            (_M_TRIM_THRESHOLD, _NEVER),
        ):
            mallopt(option, value)


_lock = threading.Lock()
_inside = 0  # how many calls need the process quiet
_process = contextlib.ExitStack()  # restores it
_torch_threads = 1  # of an operator, before the first of these calls
_here = threading.local()  # ``depth`` of the calls of a thread, and the stack that restores it


@contextlib.contextmanager
def quiet_machine() -> Iterator[None]:
    """Run each operator in one thread, in numpy's and torch's libraries alike.

    Inside, BLAS, OpenMP, Blosc and torch use one thread, convolutions may use TF32 but matrix
    products may not, and the garbage collector skips the objects that exist already. The end of the
    last of all nested and concurrent calls restores this. The threads of torch and OpenMP are
    settings of the calling thread, which the end of its outermost call restores.

    The C library is also asked to keep freed memory, which cannot be undone.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def quiet_threads() -> None:
    """Make the process and this thread as in ``quiet_machine``, for good.

    This is for worker processes and for programs that end with their work.
    """
    _enter()


def _enter() -> None:
    global _inside
    import torch

    with _lock:
        if _inside == 0:
            _quieten_process()
        _inside += 1
        # also what has been loaded since the first call
        _limit_libraries(_process, of_thread=False)
    _here.depth = getattr(_here, "depth", 0) + 1
    if _here.depth == 1:
        _here.restore, before = contextlib.ExitStack(), torch.get_num_threads()
        # a thread that began while the process was quiet has the 1 of the thread that made it so
        _here.restore.callback(torch.set_num_threads, before if before > 1 else _torch_threads)
        torch.set_num_threads(1)
    _limit_libraries(_here.restore, of_thread=True)


def _leave() -> None:
    global _inside
    _here.depth -= 1
    if _here.depth == 0:
        _here.restore.close()
    with _lock:
        _inside -= 1
        if _inside == 0:
            _process.close()


def _quieten_process() -> None:
    global _torch_threads
    import torch

    _torch_threads = torch.get_num_threads()
    keep_freed_memory()
    _process.callback(_set_variable, "BLOSC_NTHREADS", os.environ.get("BLOSC_NTHREADS"))
    os.environ["BLOSC_NTHREADS"] = "1"
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    newer = (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None))
    # callbacks run last to first, so the older of torch's two interfaces is restored first
    for backend, name in (
        *((b, "fp32_precision") for b in newer),
        *((b, "allow_tf32") for b in (matmul, cudnn)),
    ):
        # older versions lack the newer one, and the older one refuses what was set by the newer one
        with contextlib.suppress(AttributeError, RuntimeError):
            _process.callback(setattr, backend, name, getattr(backend, name))
    cudnn.allow_tf32, matmul.allow_tf32 = True, False  # not left to the version's default
    if gc.get_freeze_count() == 0:  # else the caller has frozen objects, and wants them to stay
        gc.freeze()
        _process.callback(gc.unfreeze)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _limit_libraries(restore: contextlib.ExitStack, *, of_thread: bool) -> None:
    """Have the loaded libraries of BLAS and OpenMP use one thread.

    Args:
        restore: gets what undoes it.
        of_thread: limit those that have a setting for each thread, or those that have one for all.
    """
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().lib_controllers:
        openmp = "openmp" in (library.user_api, getattr(library, "threading_layer", ""))
        if openmp == of_thread and (library.num_threads or 1) > 1:
            restore.callback(_set_library, library, library.num_threads)
            _set_library(library, 1)


def _set_library(library: Any, threads: int) -> None:
    # from version 3.8, threadpoolctl ignores all threads but the one that was first to set OpenBLAS
    clear = getattr(library, "clear_controlling_thread", lambda *, force: None)
    clear(force=True)
    library.set_num_threads(threads)
    clear(force=True)
