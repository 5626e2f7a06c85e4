"""Pools call a function for each block of a slide, or for each slide of a cohort.

One worker is this process, with threads. More are processes of dask, here or on other machines.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from wsi_pgdips.config import ExecutionSettings
from wsi_pgdips.errors import ClusterError, IncompleteRunError, WsiPgdipsError
from wsi_pgdips.machine import device_for, devices_of, thread_pool, usable_cpus
from wsi_pgdips.pipeline import dask_workers
from wsi_pgdips.pipeline.block import BlockReport, SlideJob
from wsi_pgdips.pipeline.ledger import Block
from wsi_pgdips.pipeline.record import Usage, used_by_all, used_here

LANES = 3  # blocks at a time: one is computed while others are written, which takes as long
LOOK_S = 5.0
PATIENCE_S = 60.0  # without a running worker; one that is restarted is back in a few seconds
OnTile = Callable[[], None]
Work = Callable[..., Any]
Outcome = tuple[Block, BlockReport | Exception]
Note = Callable[[str], None]


class WorkerDiedError(RuntimeError):
    """The outcome of a block that ended its worker process twice."""


def who_works(device: str, workers: int | None, threads: int | None) -> tuple[int, int, int]:
    """Return (workers, threads a worker, lanes a worker): one worker a GPU, or one on a CPU."""
    workers = workers or len(devices_of(device))
    threads = threads or max(usable_cpus() // workers, 1)
    # a worker of one thread cannot write a block while it computes the next
    return workers, threads, 1 if threads == 1 and device == "cpu" else LANES


def make_pool(
    device: str,
    workers: int | None,
    threads: int | None = None,
    cluster: str = "local",
    *,
    note: Note = lambda message: None,
    slides: bool = False,
) -> tuple[Pool, int, int]:
    """Return (pool, workers, threads a worker) for a device.

    Args:
        device: of ``device_for``. cluster: as in ``ExecutionSettings``.
        note: is called with what a user should know.
        slides: the work is whole slides, one at a time in each worker, not blocks. A single worker
            is then a process too, so that a slide which kills it does not end the cohort.

    Raises:
        ClusterError: the cluster cannot be reached or used.
    """
    if cluster != "local":
        client, each = dask_workers.connect(cluster, note)
        count = min(len(each), workers or len(each))
        return DaskPool(client, cluster, workers), count, threads or min(each)
    count, threads, lanes = who_works(device, workers, threads)
    if count == 1 and not slides:
        return Pool(lanes), 1, threads
    lanes = 1 if slides else lanes
    return local_pool(count, devices_of(device), lanes, threads), count, threads


def slide_pool(how: ExecutionSettings, note: Note) -> tuple[Pool, int]:
    """Return (pool, threads a worker) for whole slides.

    Raises:
        DeviceError, ClusterError: as ``device_for`` and ``make_pool``.
    """
    device = device_for(how.device, how.cluster)
    pool, _, threads = make_pool(
        device, how.workers, how.threads, how.cluster, note=note, slides=True
    )
    return pool, threads


def local_pool(workers: int, devices: Sequence[str], lanes: int = 1, threads: int = 1) -> DaskPool:
    """Return a pool of worker processes on this machine.

    Args:
        workers: processes. devices: worker i uses device i, and starts over after the last.
        lanes: blocks at a time in each. threads: that compute in each.
    """
    on_cpu = devices[0].startswith("cpu")
    shares = dask_workers.cpu_shares(workers, threads) if on_cpu else [frozenset()] * workers
    seats = [(devices[i % len(devices)], shares[i]) for i in range(workers)]
    return DaskPool(dask_workers.start(workers, lanes), "this machine", workers, seats)


class Pool:
    """Threads of this process: a block is computed while others are written.

    Args:
        lanes: blocks at a time.

    Attributes:
        remote: whether workers look for their own devices, which this process may lack.
    """

    remote = False

    def __init__(self, lanes: int = 1) -> None:
        self._lanes = lanes

    def prepare(self, job: SlideJob) -> None:
        """Let other processes open the slide; return at once."""

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        """Yield each block with its report or exception, as the blocks end.

        Raises:
            WsiPgdipsError: from the work; if the output is full or gone no block can be done.
            ClusterError: the scheduler or all workers were lost.
        """
        stopped, counting = threading.Event(), threading.Lock()

        def tile_done() -> None:
            if stopped.is_set():
                raise _Stopped
            with counting:
                on_tile()

        with thread_pool(self._lanes, "block") as threads:
            try:
                at_work = {threads.submit(work, job, block, tile_done): block for block in blocks}
                for future in futures.as_completed(at_work):
                    error = future.exception()
                    if isinstance(error, Exception) and not isinstance(error, WsiPgdipsError):
                        yield at_work[future], error
                    else:
                        yield at_work[future], future.result()
            finally:
                stopped.set()

    def once(self, function: Work, job: SlideJob, *others: Any) -> Any:
        """Return ``function(job, *others)`` from where the job's device is.

        Raises:
            IncompleteRunError: its process died twice. ClusterError: as ``map``.
        """
        return function(job, *others)

    def used(self) -> Usage:
        """Return what the other processes have used, as far as they are alive."""
        return Usage()

    def close(self) -> None:
        """End the processes of this pool."""


class _Stopped(BaseException):
    """Ends a block whose outcome is not wanted any more."""


@dataclass(eq=False)
class DaskPool(Pool):
    """Worker processes of dask; one that dies is replaced, and its blocks are done again.

    A block that kills its worker twice gets a ``WorkerDiedError``.

    Attributes:
        client: a ``distributed.Client``. where: its scheduler, for messages.
        workers: the most that are given work at a time; None for all.
        seats: (device, CPUs) of each worker; None lets each worker look for its own device.
    """

    client: Any
    where: str
    workers: int | None = None
    seats: dask_workers.Seats = None

    def __post_init__(self) -> None:
        self.remote = self.seats is None

    def prepare(self, job: SlideJob) -> None:
        from distributed import fire_and_forget

        with self._lost_as_error():
            for _ in self.running():  # dask gives each to a worker that has least to do
                fire_and_forget(self._submit(dask_workers.open_slide, job))  # type: ignore[no-untyped-call]

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        for (block,), outcome in self._each(work, job, [(block,) for block in blocks]):
            for _ in range(getattr(outcome, "tiles", 0)):  # an exception has none
                on_tile()
            yield block, outcome

    def once(self, function: Work, job: SlideJob, *others: Any) -> Any:
        ((_, outcome),) = self._each(function, job, [others])
        if isinstance(outcome, WorkerDiedError):
            hint = "give each worker more memory, then repeat the command to resume"
            raise IncompleteRunError(str(outcome), where=function.__name__, hint=hint)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def used(self) -> Usage:
        with self._lost_as_error():
            return used_by_all(self.client.run(used_here, on_error="ignore").values())

    def close(self) -> None:
        self.client.close()

    def running(self) -> list[str]:
        """Return the addresses of the workers that work or take work.

        Raises:
            ConnectionError: the scheduler is gone.
        """
        if self.client.status != "running":
            raise ConnectionError("the scheduler does not answer")
        workers = self.client.scheduler_info(n_workers=-1)["workers"].items()
        # a worker that is paused because its memory is full still ends what it has begun
        return [
            address
            for address, worker in workers
            if worker["status"] == "running"
            or worker["metrics"].get("task_counts", {}).get("executing")
        ]

    def _each(self, function: Work, job: SlideJob, calls: Sequence[Any]) -> Iterator[Any]:
        """Yield the arguments of each call and its result or exception, as the calls end."""
        from distributed import KilledWorker, wait

        waiting, at_work, seen = deque(calls), dict[Any, Any](), time.monotonic()
        suspects, alone = deque[Any](), False
        with self._lost_as_error():
            while waiting or at_work or suspects:
                if not waiting and not at_work:
                    # dask blames every call that a dead worker had; alone, only the guilty dies
                    waiting, suspects, alone = suspects, waiting, True
                running = self.running()
                # a worker may have many threads, and would take all that it has begun with it
                room = 1 if alone else LANES * max(len(running[: self.workers]), 1)
                while waiting and len(at_work) < room:
                    call = waiting.popleft()
                    at_work[self._submit(function, job, *call)] = call
                done: Any = ()
                with suppress(TimeoutError), self.client.as_current():
                    done = wait(list(at_work), LOOK_S, "FIRST_COMPLETED").done  # type: ignore[no-untyped-call]
                if done or running:
                    seen = time.monotonic()
                elif time.monotonic() - seen > PATIENCE_S:
                    raise TimeoutError(f"no worker process has been running for {PATIENCE_S:g} s")
                if self.client.cluster:  # dask gives up a worker that is slow to come back
                    self.client.cluster.scale(self.workers)
                for future in done:
                    try:
                        outcome = future.result(timeout=LOOK_S)
                    except Exception as error:
                        if future.status == "cancelled":
                            raise
                        if future.status != "error":  # lost with its worker: it is computed again
                            continue
                        outcome = error
                    call = at_work.pop(future)
                    if isinstance(outcome, WsiPgdipsError):
                        raise outcome
                    if not isinstance(outcome, KilledWorker):
                        yield call, outcome
                    elif alone:
                        text = "the worker process died twice while working on it"
                        yield call, WorkerDiedError(f"{text} (out of memory, or killed)")
                    else:
                        suspects.append(call)

    def _submit(self, function: Work, job: SlideJob, *others: Any) -> Any:
        # the futures of dask's executor never end if a worker dies with a result that was not read
        return self.client.submit(dask_workers.call, function, job, self.seats, *others, pure=False)

    @contextmanager
    def _lost_as_error(self) -> Iterator[None]:
        """Turn the errors of a scheduler that is gone into a ClusterError."""
        from distributed.client import ClosedClientError

        try:
            yield
        except (OSError, futures.CancelledError, ClosedClientError) as error:
            raise ClusterError(
                "the scheduler or all of its workers were lost",
                # dask's error for cancelled calls only lists their names
                found=(str(error) if isinstance(error, OSError) else "")
                or "the scheduler ended the connection",
                where=self.where,
                hint="see why they ended, or were paused for want of memory; repeat the command "
                "to resume",
            ) from error
