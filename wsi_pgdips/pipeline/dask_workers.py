"""Dask workers: how they are started or connected to, and what runs in them."""

from __future__ import annotations

import asyncio
import functools
import os
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wsi_pgdips import __version__
from wsi_pgdips.errors import ClusterError, DeviceError
from wsi_pgdips.machine import choose_device, quiet_threads, usable_cpus
from wsi_pgdips.pipeline.block import SlideJob

CONNECT_S, ANSWER_S = 10, 20
FIRST_WORKER_S = 60.0
DASK = {
    # blocks that were at work when a worker died are done again one by one, by the pool
    "distributed.scheduler.allowed-failures": 0,
    # nobody reads the profiles, and taking one 100 times a second slows every tile
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
Seats = Sequence[tuple[str, frozenset[int]]] | None  # (device, CPUs) of workers, by number
Work = Callable[..., Any]


def start(workers: int, lanes: int) -> Any:
    """Return a client of new worker processes on this machine, which end when it is closed.

    Args:
        lanes: calls at a time in each.
    """
    import dask
    from distributed import Client

    with dask.config.set(DASK):
        return Client(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=lanes,
            processes=True,
            dashboard_address="127.0.0.1:0",  # its server is started all the same, at a free port
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs=50,
            set_as_default=False,
        )


def connect(address: str, note: Callable[[str], None]) -> tuple[Any, list[int]]:
    """Return a client of a scheduler that others started, and the threads of each worker.

    Args:
        address: such as ``tcp://host:8786``. note: is called where there are no workers yet.

    Raises:
        ClusterError: no dask scheduler answers, it has no workers, or versions differ.
    """
    from distributed import Client

    try:
        # in a thread: where this one has an event loop, as in a notebook, it may not run another
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _greet(address)).result()
        client: Any = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
        try:
            if not client.nthreads():
                note(f"{address} has no workers yet")
            client.wait_for_workers(1, FIRST_WORKER_S)
            _check_versions(*client.run(versions).values())
            return client, list(client.nthreads().values())
        except BaseException:
            client.close()
            raise
    except Exception as error:  # of any kind: anything may answer at that port
        reason = str(error).strip().partition("\n")[0]
        if not reason or isinstance(error, MemoryError | struct.error):
            reason = f"no answer from a dask scheduler within {ANSWER_S} s"
        raise ClusterError(
            "the dask cluster cannot be used",
            expected=f"a scheduler with workers, all with {versions()}",
            found=reason,
            where=f"--cluster {address}",
            hint="check that the scheduler runs, that this is its port and not its dashboard's, "
            "and that it and its workers were started from this program's environment; tls:// "
            "also needs the certificates of dask's configuration, distributed.comm.tls",
        ) from error


async def _greet(address: str) -> None:
    """Connect to a scheduler, check its versions, and disconnect.

    Dask sets no limit to the time of its own handshake (dask/distributed issue 8071), and waits
    for ever for a server that says nothing. So the whole conversation is limited here.

    Raises:
        TimeoutError: no answer in ``ANSWER_S``. Exception: of any kind; the answer is nonsense.
    """
    from distributed import Client

    client: Any = Client(  # type: ignore[no-untyped-call]
        address, timeout=CONNECT_S, asynchronous=True, set_as_default=False
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            await client
            _check_versions(await client.run_on_scheduler(versions))
    finally:
        await client.close()


def versions() -> str:
    """Return the versions that a scheduler and its workers must share with this process."""
    return f"wsi-pgdips {__version__} and dask {version('dask')}"


def _check_versions(*found: str) -> None:
    if set(found) != {versions()}:
        raise ValueError(", ".join(sorted(set(found))))


def cpu_shares(workers: int, threads: int) -> tuple[frozenset[int], ...]:
    """Return the CPUs of each worker: sets, which are empty where a worker may use any.

    Threads of one worker hand Python's lock to one another, which takes longer between CPUs; so
    each worker keeps to its own CPUs. This is done only where the run uses every CPU: two smaller
    runs on one machine would otherwise share the first CPUs and leave the others idle.
    """
    if workers * threads != usable_cpus() or not hasattr(os, "sched_getaffinity"):
        return (frozenset(),) * workers
    cpus = sorted(os.sched_getaffinity(0))
    return tuple(frozenset(cpus[i * threads : (i + 1) * threads]) for i in range(workers))


_STARTING = threading.Lock()


def call(function: Work, job: SlideJob, seats: Seats, *others: Any) -> Any:
    """Call ``function(job, *others)`` in a worker, with the job on the device of that worker.

    Args:
        seats: of the workers, by their numbers; None lets a worker look for its own device.

    Raises:
        DeviceError: the worker has no device of the kind that was asked for.
    """
    from distributed import get_worker

    name = get_worker().name  # its number if it is local; one that replaces it has the same
    device, cpus = seats[int(name)] if seats else (None, frozenset[int]())
    with _STARTING:
        _start_worker(cpus)
    try:
        device = device or choose_device(job.device)
    except DeviceError as error:
        raise DeviceError.like(
            error,
            where=f"the worker {name} on {os.uname().nodename}",
            hint="start workers that have a GPU, or run with --device auto or cpu",
        ) from None
    # the first GPU of those that the worker's environment (CUDA_VISIBLE_DEVICES) leaves it
    return function(replace(job, device="cuda:0" if device == "cuda" else device), *others)


@functools.cache
def _start_worker(cpus: frozenset[int]) -> None:
    """Import what the stages need, and set the threads and CPUs of this process."""
    from wsi_pgdips.layers import store  # noqa: F401
    from wsi_pgdips.pipeline import stage_files  # noqa: F401
    from wsi_pgdips.stages import blend, fit, render  # noqa: F401

    quiet_threads()
    if cpus:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cpus)


def open_slide(job: SlideJob) -> None:
    """Open the slide in a worker before its first block is due."""
    job.context()
