"""Worker processes by dask; imported where a run has more than one, or has them elsewhere."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker, fire_and_forget

from wsi_pgdips.errors import IncompleteRunError, WsiPgdipsError
from wsi_pgdips.pipeline import on_worker
from wsi_pgdips.pipeline.block import BlockReport, SlideJob
from wsi_pgdips.pipeline.clusters import LocalPlace, Note, OuterPlace, Place
from wsi_pgdips.pipeline.ledger import Block
from wsi_pgdips.pipeline.on_worker import Start, cpu_shares
from wsi_pgdips.pipeline.pool import OnTile, Outcome, Work, WorkerDiedError
from wsi_pgdips.pipeline.record import Usage, used_by_all, used_here

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.slurm_jobs import SlurmPlace


class ClusterPool:
    """Worker processes, wherever they live; one that dies is replaced and its blocks redone.

    Args:
        place: where they live.
        devices: which they have in turn; None where each looks for its own.
        shares: CPUs of each worker, by its number; empty where they may use any.
    """

    def __init__(
        self,
        place: Place,
        devices: Sequence[str] | None = None,
        shares: Sequence[frozenset[int]] = (),
    ) -> None:
        self._place, self._client = place, place.client
        self._devices = None if devices is None else tuple(devices)
        # a name of its own: another run may have workers of the same scheduler
        self._plugin = f"wsi-pgdips-{uuid.uuid4().hex}"
        try:
            with place.words():
                self._client.register_plugin(Start(shares), name=self._plugin)
        except BaseException:
            place.close()
            raise

    @property
    def remote(self) -> bool:
        return self._devices is None

    def prepare(self, job: SlideJob) -> None:
        with self._place.words():
            for worker in self._client.scheduler_info(n_workers=-1)["workers"]:
                opened = self._client.submit(
                    on_worker.open_slide,
                    job,
                    self._devices,
                    workers=[worker],
                    allow_other_workers=True,
                    pure=False,
                )
                fire_and_forget(opened)  # type: ignore[no-untyped-call]

    def once(self, function: Callable[..., Any], job: SlideJob, *others: Any) -> Any:
        for _ in range(2):
            with suppress(KilledWorker):
                self._place.begin()
                return self._result(self._submit(function, job, *others))
        raise IncompleteRunError(
            "the worker process died twice",
            found="it was out of memory, or killed",
            where=getattr(function, "__name__", function),
            hint="give each worker more memory; the same command goes on where it stopped",
        )

    def map(
        self, work: Work, job: SlideJob, blocks: Sequence[Block], on_tile: OnTile
    ) -> Iterator[Outcome]:
        blamed = []
        for block, outcome in self._each(work, job, blocks):
            if isinstance(outcome, KilledWorker):
                blamed.append(block)
            else:
                yield block, _counted(outcome, on_tile)
        # dask blames all that a dead worker had at hand: alone, each shows what it does
        for block in blamed:
            for _, outcome in self._each(work, job, [block]):
                if isinstance(outcome, KilledWorker):
                    outcome = WorkerDiedError()
                yield block, _counted(outcome, on_tile)

    def used(self) -> Usage:
        with self._place.words():
            return used_by_all(self._client.run(used_here, on_error="ignore").values())

    def close(self) -> None:
        if not self._place.ours and self._client.status == "running":
            # it may be lost at this very moment, or have lost a worker
            with suppress(Exception):
                self._client.unregister_worker_plugin(self._plugin)
        self._place.close()

    def _each(
        self, work: Work, job: SlideJob, blocks: Sequence[Block]
    ) -> Iterator[tuple[Block, BlockReport | Exception]]:
        left, out = deque(blocks), dict[str, Block]()
        ended = SimpleQueue[Any]()
        self._place.begin()
        while left or out:
            if left and len(out) < (room := self._place.room()):
                while left and len(out) < room:
                    block = left.popleft()
                    future = self._submit(work, job, block)
                    out[future.key] = block
                    future.add_done_callback(ended.put)
            try:
                future = ended.get(timeout=1)
            except Empty:
                self._place.look()
                continue
            self._place.begin()  # somebody is there
            block = out.pop(future.key)
            try:
                outcome = self._result(future)
            except WsiPgdipsError:
                raise
            except Exception as error:
                outcome = error
            yield block, outcome

    def _submit(self, function: Callable[..., Any], job: SlideJob, *others: Any) -> Any:
        with self._place.words():
            return self._client.submit(
                on_worker.do, function, job, self._devices, *others, pure=False
            )

    def _result(self, future: Any) -> Any:
        """What a task gave, however long it takes; its exception is raised."""
        while future.status != "error":
            try:
                return future.result(timeout=1 if future.status == "pending" else 60)
            except Exception as error:
                if future.status == "error":  # and the exception may be any
                    break
                if isinstance(error, TimeoutError):
                    self._place.look()
                    continue
                with self._place.words():
                    raise
        return future.result()


class DaskPool(ClusterPool):
    """Worker processes on this machine.

    Args:
        workers: processes. devices: of which each worker has one to itself, or shares it in turn.
        lanes: blocks at a time in each. threads: that compute in each.
    """

    def __init__(
        self, workers: int, devices: Sequence[str], lanes: int = 1, threads: int = 1
    ) -> None:
        on_cpu = all(device.partition(":")[0] == "cpu" for device in devices)
        shares = cpu_shares(workers, threads) if on_cpu else ()
        super().__init__(LocalPlace(workers, lanes), devices, shares)


def remote_pool(
    cluster: str,
    device: str,
    workers: int | None,
    threads: int | None,
    logs: Path | None,
    note: Note,
    lanes: int | None = None,
) -> tuple[ClusterPool, int, int]:
    """(pool, workers, threads a worker) of ``slurm`` or of a scheduler's address.

    Args:
        lanes: blocks or slides at a time in each job of ours; None for what suits blocks.
    """
    place: OuterPlace | SlurmPlace
    if cluster == "slurm":
        from wsi_pgdips.pipeline.slurm_jobs import SlurmPlace

        place = SlurmPlace(workers, threads, device, logs, note, lanes)
    else:
        place = OuterPlace(cluster, workers, note)
    return ClusterPool(place), place.workers, threads or place.threads


def _counted(outcome: BlockReport | Exception, on_tile: OnTile) -> BlockReport | Exception:
    if not isinstance(outcome, Exception):
        for _ in range(outcome.tiles):
            on_tile()
    return outcome
