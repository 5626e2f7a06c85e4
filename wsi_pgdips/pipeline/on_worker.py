"""What runs in the worker processes of dask around the work itself."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from wsi_pgdips import __version__
from wsi_pgdips.errors import DeviceError
from wsi_pgdips.machine import choose_device, usable_cpus
from wsi_pgdips.pipeline.block import SlideJob

Devices = Sequence[str] | None


class Start(WorkerPlugin):
    """What a worker does before its first block, one that replaces a dead one too.

    Args:
        shares: CPUs of each worker, by its number; empty where they may use any.
    """

    def __init__(self, shares: Sequence[frozenset[int]] = ()) -> None:
        self._shares = tuple(shares)

    def setup(self, worker: Worker) -> None:
        # imports take as long as many tiles
        import zarr  # noqa: F401

        from wsi_pgdips.machine import quiet_threads
        from wsi_pgdips.stages import blend as blending  # noqa: F401

        quiet_threads()
        if self._shares:
            share = self._shares[int(worker.name) % len(self._shares)]
            for thread in Path("/proc/self/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setaffinity(int(thread.name), share)


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


def version() -> str:
    """Of the package that a worker has."""
    return __version__


def open_slide(job: SlideJob, devices: Devices) -> None:
    """Open the slide before its first block is due."""
    own_job(job, devices).context()


def do(function: Callable[..., Any], job: SlideJob, devices: Devices, *others: Any) -> Any:
    """Call a function with the job as this worker has to do it."""
    return function(own_job(job, devices), *others)


def own_job(job: SlideJob, devices: Devices) -> SlideJob:
    """The job on the device of this worker.

    Args:
        devices: which workers have in turn; None where each looks for its own.

    Raises:
        DeviceError: the worker has none of the kind that was asked for.
    """
    name = get_worker().name
    if devices is not None:
        # a worker that is restarted keeps its name, and with it the device
        return replace(job, device=devices[int(name) % len(devices)])
    try:
        device = choose_device(job.device)
    except DeviceError as error:
        raise DeviceError.like(
            error,
            where=f"the worker {name} on {socket.gethostname()}",
            hint="start workers that have a GPU, or run with --device auto or cpu",
        ) from None
    # the first of those that its environment (CUDA_VISIBLE_DEVICES) leaves it
    return replace(job, device="cuda:0" if device == "cuda" else device)
