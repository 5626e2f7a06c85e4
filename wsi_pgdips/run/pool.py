"""Who works on the blocks: this process, or dask workers, one a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from wsi_pgdips.errors import DeviceError, WsiPgdipsError
from wsi_pgdips.run.context import SlideJob
from wsi_pgdips.run.ledger import Block
from wsi_pgdips.run.worker import BlockReport

OnTile = Callable[[], None]
Work = Callable[..., BlockReport]
Outcome = tuple[Block, BlockReport | Exception]


class Pool(Protocol):
    """Runs a function over blocks; an outcome is a report or the exception of that block."""

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]: ...

    def close(self) -> None: ...


class InlinePool:
    """One process: this one."""

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        for block in blocks:
            try:
                yield block, work(job, block, on_tile)
            except WsiPgdipsError:
                raise  # the output is full or gone: nothing else would succeed either
            except Exception as error:
                yield block, error

    def close(self) -> None:
        pass


class DaskPool:
    """Worker processes on this machine; one that dies is replaced and its block redone."""

    def __init__(self, workers: int, devices: int) -> None:
        import dask
        from distributed import Client, LocalCluster

        self._devices = devices
        # a nanny restarts a dead worker; a block that kills three of them is given up
        with dask.config.set({"distributed.scheduler.allowed-failures": 2}):
            self._cluster: Any = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                memory_limit=0,
                silence_logs=50,
            )
            self._client: Any = Client(self._cluster)  # type: ignore[no-untyped-call]

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        from distributed import as_completed

        futures = {
            self._client.submit(_on_worker, work, job, block, self._devices, pure=False): block
            for block in blocks
        }
        for future in as_completed(futures):  # type: ignore[no-untyped-call]
            block = futures.pop(future)
            error = future.exception()
            if isinstance(error, WsiPgdipsError):
                raise error
            if error is not None:
                yield block, error
            else:
                report: BlockReport = future.result()
                for _ in range(report.tiles):
                    on_tile()
                yield block, report

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def _on_worker(work: Work, job: SlideJob, block: Block, devices: int) -> Any:
    from dataclasses import replace

    from distributed import get_worker

    if devices > 1:
        job = replace(job, device=f"cuda:{int(get_worker().name) % devices}")
    return work(job, block)


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


def make_pool(device: str, workers: int | None) -> tuple[Pool, int, int]:
    """(pool, workers, threads a worker) for a device; one worker a GPU, one process on a CPU."""
    import torch

    devices = torch.cuda.device_count() if device == "cuda" else 0
    count = workers or max(devices, 1)
    threads = max(usable_cpus() // count, 1)
    if count == 1:
        return InlinePool(), 1, threads
    return DaskPool(count, devices), count, threads
