"""Worker processes on this machine, by dask; imported where a run has more than one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Worker, as_completed, fire_and_forget, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.run.context import SlideJob
from wsi_pgdips.run.ledger import Block
from wsi_pgdips.run.pool import OnTile, Outcome, Work, usable_cpus
from wsi_pgdips.run.usage import Usage, used_by_all, used_here
from wsi_pgdips.run.worker import BlockReport

_DASK = {
    # a nanny restarts a dead worker; a block that kills three of them is given up
    "distributed.scheduler.allowed-failures": 2,
    # nobody looks at a profile, and one that is taken 100 times a second costs every tile
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}


class DaskPool:
    """Worker processes; one that dies is replaced and its block redone.

    Args:
        workers: processes. devices: of which each worker has one to itself, or shares it in turn.
        lanes: blocks at a time in each. threads: that compute in each.
    """

    def __init__(
        self, workers: int, devices: Sequence[str], lanes: int = 1, threads: int = 1
    ) -> None:
        self._devices = tuple(devices)
        with dask.config.set(_DASK):
            self._cluster: Any = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=lanes,
                processes=True,
                # its server is started all the same: at any port that is free, seen by nobody else
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                memory_limit=0,
                silence_logs=50,
            )
            self._client: Any = Client(self._cluster)  # type: ignore[no-untyped-call]
        on_cpu = all(device.partition(":")[0] == "cpu" for device in devices)
        shared = cpu_shares(workers, threads) if on_cpu else ()
        self._client.register_plugin(_Start(shared))

    def prepare(self, job: SlideJob) -> None:
        for worker in self._client.scheduler_info(n_workers=-1)["workers"]:
            opened = self._client.submit(
                _open, job, self._devices, workers=[worker], allow_other_workers=True, pure=False
            )
            fire_and_forget(opened)  # type: ignore[no-untyped-call]

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        futures = {
            self._client.submit(_on_worker, work, job, block, self._devices, pure=False): block
            for block in blocks
        }
        for future in as_completed(futures):  # type: ignore[no-untyped-call]
            block = futures.pop(future)
            if future.status == "finished":
                report: BlockReport = future.result()
                for _ in range(report.tiles):
                    on_tile()
                yield block, report
                continue
            error = future.exception()
            if isinstance(error, WsiPgdipsError):
                raise error
            yield block, error

    def used(self) -> Usage:
        return used_by_all(self._client.run(used_here, on_error="ignore").values())

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def cpu_shares(workers: int, threads: int) -> tuple[frozenset[int], ...]:
    """The CPUs of each worker, or none where a worker may use any.

    A worker's threads hand the interpreter's lock to one another, which takes longer from one CPU
    to another; so each keeps to a share of its own. Only where the run uses every CPU it has: two
    such runs on a machine still burden all alike, where smaller ones would meet on the first.
    """
    if workers * threads != usable_cpus() or not hasattr(os, "sched_getaffinity"):
        return ()
    cpus = sorted(os.sched_getaffinity(0))
    return tuple(frozenset(cpus[i * threads : (i + 1) * threads]) for i in range(workers))


class _Start(WorkerPlugin):
    """What a worker does before its first block, one that replaces a dead one too."""

    def __init__(self, shares: Sequence[frozenset[int]]) -> None:
        self._shares = tuple(shares)

    def setup(self, worker: Worker) -> None:
        # imports take as long as many tiles
        import zarr  # noqa: F401

        from wsi_pgdips.layers import store  # noqa: F401
        from wsi_pgdips.run import blending, fit_files, fitting, rendering  # noqa: F401
        from wsi_pgdips.run.worker import quiet_threads

        quiet_threads()
        if self._shares:
            share = self._shares[int(worker.name) % len(self._shares)]
            for thread in Path("/proc/self/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setaffinity(int(thread.name), share)


def _open(job: SlideJob, devices: Sequence[str]) -> None:
    _own(job, devices).context()


def _on_worker(work: Work, job: SlideJob, block: Block, devices: Sequence[str]) -> Any:
    return work(_own(job, devices), block)


def _own(job: SlideJob, devices: Sequence[str]) -> SlideJob:
    # a worker that is restarted keeps its name, and with it the device
    return replace(job, device=devices[int(get_worker().name) % len(devices)])
