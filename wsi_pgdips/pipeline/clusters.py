"""Where worker processes live: on this machine, in jobs of Slurm, or with a scheduler of dask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.client import ClosedClientError

from wsi_pgdips import __version__
from wsi_pgdips.errors import ClusterError
from wsi_pgdips.pipeline import on_worker
from wsi_pgdips.pipeline.pool import LANES

Note = Callable[[str], None]
CONNECT_S = 10
PATIENCE_S = 60.0  # without a worker; one that is restarted is back in a few seconds
LOOK_S = 5.0
# of schedulers that are ours
DASK = {
    # whoever was at work when a worker died is redone alone, which tells who it was
    "distributed.scheduler.allowed-failures": 0,
    # nobody looks at a profile, and one that is taken 100 times a second costs every tile
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
# its server is started all the same: at any port that is free
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


class Place:
    """Workers, and the client that they are reached by; closing it ends what is ours of them.

    Args:
        client: of their scheduler. cluster: that is closed with it. where: for messages.
    """

    def __init__(self, client: Client, cluster: Any = None, *, where: str = "--cluster") -> None:
        self.client: Any = client
        self._cluster, self._where = cluster, where
        self._seen = self._looked = 0.0

    @property
    def ours(self) -> bool:
        """Whether the workers end with it."""
        return self._cluster is not None

    def room(self) -> float:
        """Blocks that may be handed out at a time."""
        return math.inf

    def begin(self) -> None:
        """Something is about to be waited for."""
        self._seen = self._looked = time.monotonic()

    def look(self) -> None:
        """See whether anybody is there to work.

        Raises:
            ClusterError: the scheduler is lost, or there has been nobody for long.
        """
        if time.monotonic() - self._looked < LOOK_S:
            return
        if self.running():
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > PATIENCE_S:
            self.nobody()
        self._looked = time.monotonic()

    def running(self) -> list[dict[str, Any]]:
        """What the scheduler knows of each worker that works, or takes work."""
        with self.words():
            workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        # one that is paused, as its memory is full, ends what it has begun
        return [
            w
            for w in workers
            if w["status"] == "running" or w["metrics"].get("task_counts", {}).get("executing")
        ]

    def nobody(self) -> None:
        raise ClusterError(
            "nobody works on the slide",
            expected="worker processes that take work",
            found=f"none for {PATIENCE_S:g} s",
            where=self._where,
            hint="see why the workers ended, or paused for want of memory; the same command "
            "goes on where it stopped",
        )

    @contextmanager
    def words(self) -> Iterator[None]:
        """What dask says of a scheduler that is gone, as an error of ours."""
        try:
            yield
        except (OSError, CancelledError, ClosedClientError) as error:
            raise ClusterError(
                "the scheduler of the workers was lost",
                found=f"{type(error).__name__}: {error}",
                where=self._where,
                hint="see whether it runs; the same command goes on where it stopped",
            ) from error

    def close(self) -> None:
        self.client.close()
        if self._cluster is not None:
            self._cluster.close()


class LocalPlace(Place):
    """Processes of this machine."""

    def __init__(self, workers: int, lanes: int) -> None:
        self._workers = workers
        with dask.config.set(DASK):
            cluster: Any = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=lanes,
                processes=True,
                dashboard_address=NO_DASHBOARD["dashboard_address"],
                scheduler_kwargs={"dashboard": NO_DASHBOARD["dashboard"]},
                memory_limit=0,
                silence_logs=50,
            )
            client = Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
        super().__init__(client, cluster, where="this machine")

    def look(self) -> None:
        super().look()
        # one that took long to come back was given up; it comes under the name it had
        if len(self._cluster.workers) < self._workers:
            self._cluster.scale(self._workers)


class OuterPlace(Place):
    """Whatever workers a scheduler has that others started; it is left as it was.

    Args:
        address: of the scheduler. workers: the most that are used at a time.
    """

    def __init__(self, address: str, workers: int | None, note: Note) -> None:
        super().__init__(_connect(address), where=address)
        self._most = workers or math.inf
        try:
            known = self._wait(note)
            self.workers = int(min(len(known), self._most))
            self.threads = min(int(w["nthreads"]) for w in known)
            self._same_version()
        except BaseException:
            self.close()
            raise

    def room(self) -> float:
        # workers may have many threads, and all blocks that one has begun would die with it
        with self.words():
            count = len(self.client.scheduler_info(n_workers=-1)["workers"])
        return LANES * max(min(count, self._most), 1)

    def _wait(self, note: Note) -> list[dict[str, Any]]:
        self.begin()
        noted = False
        while not (found := self.running()):
            if not noted:
                note(f"{self._where} has no workers yet")
                noted = True
            if time.monotonic() - self._seen > PATIENCE_S:
                self.nobody()
            time.sleep(0.2)
        return found

    def _same_version(self) -> None:
        try:
            found = set(self.client.run(on_worker.version).values())
        except Exception as error:  # dask makes a plain one of what they cannot import
            found = {str(error)}
        if found != {__version__}:
            raise ClusterError(
                "the workers cannot do the work of this version",
                expected=f"wsi-pgdips {__version__} in the environment of each worker",
                found=", ".join(sorted(found)),
                where=self._where,
                hint="start the workers from the environment of this program",
            )


def _connect(address: str) -> Client:
    try:
        with dask.config.set({"distributed.comm.timeouts.connect": f"{CONNECT_S}s"}):
            return Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    # without or with wrong certificates it may be any of them
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        with suppress(IndexError):
            found = str(error).strip().splitlines()[0]
        tls = address.startswith("tls:")
        raise ClusterError(
            "the scheduler cannot be reached",
            expected="a scheduler of dask that answers",
            found=found or type(error).__name__,
            where=f"--cluster {address}",
            hint="certificates are those of dask's configuration, distributed.comm.tls"
            if tls
            else "see whether it runs, and whether this machine may connect to it",
        ) from None
