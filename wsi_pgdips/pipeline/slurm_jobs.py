"""Worker processes as jobs of Slurm; what a site wants said is dask's configuration.

That is the section ``jobqueue.slurm`` of ``~/.config/dask/*.yaml``, or ``DASK_JOBQUEUE__SLURM__*``.
"""

from __future__ import annotations

import getpass
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue.slurm import SLURMCluster
from distributed import Client
from distributed.core import Status

from wsi_pgdips.errors import ClusterError
from wsi_pgdips.pipeline.clusters import DASK, NO_DASHBOARD, Note, Place
from wsi_pgdips.pipeline.pool import LANES

JOBS, THREADS = 4, 4
MEMORY, WALLTIME = "16GB", "04:00:00"
# leave before the time is up, so that nobody is blamed, and not all at once
LIFETIME = ["--lifetime", "220m", "--lifetime-stagger", "10m"]
_SETTINGS = {
    **DASK,
    # until a block has shown how long it takes: long enough to ask for all jobs
    "distributed.scheduler.unknown-task-duration": "10m",
}
_IDLE_LOOKS = 60  # of 5 s: between stages jobs are kept


class SlurmPlace(Place):
    """As many jobs as there is work for, of one process each.

    Args:
        workers: the most jobs at a time. threads: that compute in each.
        device: a GPU is asked for where it is ``cuda``.
        logs: folder for the jobs' output, which the nodes can reach.
        lanes: pieces of work at a time in each.
    """

    def __init__(
        self,
        workers: int | None,
        threads: int | None,
        device: str,
        logs: Path | None,
        note: Note,
        lanes: int | None = None,
    ) -> None:
        if shutil.which("sbatch") is None:
            raise ClusterError(
                "there is no Slurm on this machine",
                expected="the command sbatch",
                found="none",
                where="--cluster slurm",
                hint="run on a login node of the cluster",
            )
        self.workers = workers or JOBS
        self.threads = threads or _said("job-cpu") or _said("cores") or THREADS
        lanes = lanes or (1 if self.threads == 1 and device == "cpu" else LANES)
        self._note, self._noted = note, False
        with dask.config.set(_SETTINGS):
            options = _options(self.threads, lanes, device, logs)
            self._logs = Path(options["log_directory"])
            try:
                cluster: Any = SLURMCluster(**options)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                raise ClusterError(
                    "the scheduler of the workers cannot be started",
                    found=error,
                    where="--cluster slurm",
                    hint="see jobqueue.slurm in dask's configuration, ~/.config/dask",
                ) from error
            client = Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
        super().__init__(client, cluster, where="--cluster slurm")
        cluster.adapt(minimum=0, maximum=self.workers, interval="5s", wait_count=_IDLE_LOOKS)

    def nobody(self) -> None:
        """Jobs may wait in the queue for days, but somewhere they must be."""
        ours = {str(job.job_id) for job in dict(self._cluster.workers).values()}
        known = _queued()
        if known is None or ours & known:
            if not self._noted:
                self._note(f"waiting for jobs of Slurm: {', '.join(sorted(ours))}")
                self._noted = True
            self.begin()  # Slurm is not to be asked more often than this
            return
        raise ClusterError(
            "no job of Slurm came to work",
            expected="jobs that run, or wait in the queue",
            found=self._reason(),
            where="--cluster slurm",
            hint=f"see {self._logs} and jobqueue.slurm in dask's configuration, ~/.config/dask",
        )

    def close(self) -> None:
        # dask is startled to find jobs that were never accepted, and stops half way
        for job in list(self._cluster._created):
            if job.status == Status.created:
                job.status = Status.failed
        try:
            super().close()
        except AssertionError:  # one more was asked for meanwhile; all else is closed by now
            self._cluster.status = Status.closed
        # it makes the folder again and again
        with suppress(OSError):
            self._logs.rmdir()
            self._logs.parent.rmdir()

    def _reason(self) -> str:
        """What Slurm says of such a job, or the last words of one."""
        test = ["sbatch", "--test-only"]
        script = self._cluster.job_script()
        asked = subprocess.run(test, input=script, capture_output=True, text=True, check=False)
        if asked.returncode:
            return str(asked.stderr.strip())
        logs = sorted(self._logs.glob("*.err"), key=lambda path: path.stat().st_mtime)
        lines = logs[-1].read_text().strip().splitlines() if logs else []
        return lines[-1] if lines else "they ended before they joined"


def _options(threads: int, lanes: int, device: str, logs: Path | None) -> dict[str, Any]:
    """Of ``SLURMCluster``: what the configuration does not say, or says of another program."""
    folder = _said("log-directory") or logs or tempfile.mkdtemp(prefix="wsi-pgdips-slurm-")
    directives = [*(_said("job-extra-directives") or []), *(_said("job-extra") or [])]
    if device.startswith("cuda") and not directives:
        directives = ["--gres=gpu:1"]
    said_walltime = _said("walltime")
    return {
        "cores": lanes,  # dask's threads are blocks at a time; Slurm is told those that compute
        "job_cpu": threads,
        "processes": 1,
        "memory": _said("memory") or MEMORY,
        "walltime": said_walltime or WALLTIME,
        "log_directory": str(folder),
        "job_extra_directives": directives,
        # the memory is Slurm's to watch: dask would pause a worker that keeps what it has freed
        "worker_extra_args": [
            *("--memory-limit", "0"),
            *([] if said_walltime else LIFETIME),
            *(_said("worker-extra-args") or []),
        ],
        "job_script_prologue": [
            "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
            *(_said("job-script-prologue") or []),
        ],
        "scheduler_options": {**NO_DASHBOARD, **(_said("scheduler-options") or {})},
        "silence_logs": 50,
    }


def _said(key: str) -> Any:
    """What the configuration says, if it does."""
    name = f"jobqueue.slurm.{key}"
    value = dask.config.get(name, None)
    if key != "walltime" or value != "00:30:00":
        return value
    # dask-jobqueue's own default, unless somebody wrote it down
    return dask.config.get(name, None, config=dask.config.collect())


def _queued() -> set[str] | None:
    """Ids of the user's jobs that wait or run; None where Slurm is too busy to say."""
    command = ["squeue", "-h", "-u", getpass.getuser(), "-o", "%A"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(asked.stdout.split())
