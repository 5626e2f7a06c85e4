"""Who works on the blocks: this process, or dask workers, one a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from wsi_pgdips.config import ExecutionSettings
from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.machine import devices_of, usable_cpus
from wsi_pgdips.pipeline.block import BlockReport, SlideJob
from wsi_pgdips.pipeline.ledger import Block
from wsi_pgdips.pipeline.record import Usage

LANES = 3  # one block is computed while others are written, which takes as long
OnTile = Callable[[], None]
Work = Callable[..., BlockReport]
Outcome = tuple[Block, BlockReport | Exception]


class Pool(Protocol):
    """Runs a function over blocks; an outcome is a report or the exception of that block."""

    @property
    def remote(self) -> bool:
        """Whether workers look for their devices themselves, which this process may lack."""
        ...

    def prepare(self, job: SlideJob) -> None:
        """The slide that blocks are to be of: it is opened while something else is done."""
        ...

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]: ...

    def once(self, function: Callable[..., Any], job: SlideJob, *others: Any) -> Any:
        """``function(job, *others)``, where the job's device is; its exception is raised."""
        ...

    def used(self) -> Usage:
        """By workers that are processes of their own, as far as they live."""
        ...

    def close(self) -> None: ...


class WorkerDiedError(RuntimeError):
    """What becomes of a block that twice ended the process that worked on it."""

    def __init__(self) -> None:
        super().__init__(
            "the worker process died twice while working on it (out of memory, or killed)"
        )


class _Stopped(BaseException):
    """Ends a block that nobody waits for any more."""


class InlinePool:
    """One process: this one. While a block is written the next is computed.

    Args:
        lanes: blocks at a time.
    """

    def __init__(self, lanes: int = 1) -> None:
        self._lanes = lanes

    @property
    def remote(self) -> bool:
        return False

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

    def once(self, function: Callable[..., Any], job: SlideJob, *others: Any) -> Any:
        return function(job, *others)

    def used(self) -> Usage:
        return Usage()  # all of it is used here

    def close(self) -> None:
        pass


def who_works(device: str, workers: int | None, threads: int | None) -> tuple[int, int, int]:
    """(workers, threads a worker, lanes a worker): one worker a GPU, one process on a CPU."""
    workers = workers or len(devices_of(device))
    threads = threads or max(usable_cpus() // workers, 1)
    # a worker of one thread has nothing to write a block with while it computes the next
    return workers, threads, 1 if threads == 1 and device == "cpu" else LANES


def make_pool(
    device: str,
    workers: int | None,
    threads: int | None = None,
    cluster: str = "local",
    *,
    logs: Path | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> tuple[Pool, int, int]:
    """(pool, workers, threads a worker) for a device.

    Args:
        device: of ``device_for``. cluster: as in ``ExecutionSettings``.
        logs: folder for those of jobs, which they can reach. note: what a user should know.

    Raises:
        ClusterError: it cannot be reached or used.
    """
    if cluster != "local":
        from wsi_pgdips.pipeline.dask_pool import remote_pool

        return remote_pool(cluster, device, workers, threads, logs, note)
    count, threads, lanes = who_works(device, workers, threads)
    if count == 1:
        return InlinePool(lanes), 1, threads
    from wsi_pgdips.pipeline.dask_pool import DaskPool

    return DaskPool(count, devices_of(device), lanes, threads), count, threads


def slide_pool(how: ExecutionSettings, logs: Path, note: Callable[[str], None]) -> tuple[Pool, int]:
    """(pool, threads a worker) of processes that serve whole slides, one at a time each.

    One process at least: a slide that takes its process with it leaves the others alone.

    Raises:
        DeviceError, ClusterError: as ``make_pool``.
    """
    from wsi_pgdips.machine import device_for
    from wsi_pgdips.pipeline.dask_pool import DaskPool, remote_pool

    device = device_for(how.device, how.cluster)
    if how.cluster != "local":
        pool, _, threads = remote_pool(
            how.cluster, device, how.workers, how.threads, logs, note, lanes=1
        )
        return pool, threads
    workers, threads, _ = who_works(device, how.workers, how.threads)
    return DaskPool(workers, devices_of(device), 1, threads), threads
