"""Who works on the blocks: this process, or dask workers, one a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from wsi_pgdips.config import ExecutionSettings
from wsi_pgdips.errors import DeviceError, WsiPgdipsError
from wsi_pgdips.run.context import SlideJob
from wsi_pgdips.run.ledger import Block
from wsi_pgdips.run.usage import Usage
from wsi_pgdips.run.worker import BlockReport

LANES = 3  # one block is computed while others are written, which takes as long
OnTile = Callable[[], None]
Work = Callable[..., BlockReport]
Outcome = tuple[Block, BlockReport | Exception]


class Pool(Protocol):
    """Runs a function over blocks; an outcome is a report or the exception of that block."""

    def prepare(self, job: SlideJob) -> None:
        """The slide that blocks are to be of: it is opened while something else is done."""
        ...

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]: ...

    def used(self) -> Usage:
        """By workers that are processes of their own, as far as they live."""
        ...

    def close(self) -> None: ...


class _Stopped(BaseException):
    """Ends a block that nobody waits for any more."""


class InlinePool:
    """One process: this one. While a block is written the next is computed.

    Args:
        lanes: blocks at a time.
    """

    def __init__(self, lanes: int = 1) -> None:
        self._lanes = lanes

    def prepare(self, job: SlideJob) -> None:
        pass  # it is open here already

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        stopped, counting = threading.Event(), threading.Lock()

        def tile_done() -> None:
            if stopped.is_set():
                raise _Stopped
            with counting:
                on_tile()

        pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="block")
        try:
            futures = {pool.submit(work, job, block, tile_done): block for block in blocks}
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, Exception) and not isinstance(error, WsiPgdipsError):
                    yield futures[future], error
                else:  # where the output is full or gone nothing else would succeed either
                    yield futures[future], future.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)

    def used(self) -> Usage:
        return Usage()  # all of it is used here

    def close(self) -> None:
        pass


def devices_of(device: str) -> tuple[str, ...]:
    """The devices that a chosen one stands for: all GPUs for ``cuda``, else itself."""
    import torch

    if device != "cuda":
        return (device,)
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))


def choose_device(asked: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: CUDA was asked for and is not there, or the name is unknown.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = asked.partition(":")
    if asked != "cpu" and not (name == "cuda" and (asked == name or number.isdecimal())):
        raise DeviceError(
            "unknown device",
            expected="auto, cpu, cuda or cuda:N",
            found=asked,
            where="--device",
        )
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


def usable_cpus() -> int:
    """CPUs this process may use: fewer than the machine's in a container or a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def who_works(device: str, workers: int | None, threads: int | None) -> tuple[int, int, int]:
    """(workers, threads a worker, lanes a worker): one worker a GPU, one process on a CPU."""
    workers = workers or len(devices_of(device))
    threads = threads or max(usable_cpus() // workers, 1)
    # a worker of one thread has nothing to write a block with while it computes the next
    return workers, threads, 1 if threads == 1 and device == "cpu" else LANES


def make_pool(
    device: str, workers: int | None, threads: int | None = None
) -> tuple[Pool, int, int]:
    """(pool, workers, threads a worker) for a device."""
    count, threads, lanes = who_works(device, workers, threads)
    if count == 1:
        return InlinePool(lanes), 1, threads
    from wsi_pgdips.run.dask_pool import DaskPool

    return DaskPool(count, devices_of(device), lanes, threads), count, threads


def slide_pool(how: ExecutionSettings) -> tuple[Pool, int]:
    """(pool, threads a worker) of processes that serve whole slides, one at a time each.

    One process at least: a slide that takes its process with it leaves the others alone.
    """
    from wsi_pgdips.run.dask_pool import DaskPool

    device = choose_device(how.device)
    workers, threads, _ = who_works(device, how.workers, how.threads)
    return DaskPool(workers, devices_of(device), 1, threads), threads
