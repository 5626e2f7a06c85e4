"""A slide by workers that are jobs of a real Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

import dask
import dask_jobqueue  # noqa: F401  # its defaults, before others are laid over them
import pytest
from cheap_runs import FAST, differing, phantom
from distributed.core import Status

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import ClusterError
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.run import clusters
from wsi_pgdips.run.context import SlideJob
from wsi_pgdips.run.pool import make_pool

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# a node that may have little memory, and no network but loopback
SITE = {"memory": "2GB", "interface": "lo", "scheduler-options": {"host": "127.0.0.1"}}
OPTIONS = [f"--{key.replace('_', '-')}={value}" for key, value in FAST.items()]


def jobs(name: str) -> list[str]:
    """Those that wait or run; one that was cancelled is seen for a moment more."""
    command = ["squeue", "-h", "-t", "pending,running", "-n", name, "-o", "%A"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    return asked.stdout.split()


def test_a_slide_by_jobs_of_slurm(tmp_path: Path) -> None:
    slide = phantom(tmp_path, "tiny", (1100, 1500))
    inline, output, cwd = tmp_path / "inline", tmp_path / "slurm", tmp_path / "cwd"
    slide.run(inline, **FAST)
    cwd.mkdir()
    name = f"test-{uuid.uuid4().hex}"
    said = {**SITE, "name": name}
    site = {key.upper().replace("-", "_"): str(value) for key, value in said.items()}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "wsi_pgdips", "run", slide.path, output),
            *("--stains", slide.stains, *OPTIONS),
            *("--cluster", "slurm", "--workers", "2", "--threads", "1"),
        ],
        env={**os.environ, **{f"DASK_JOBQUEUE__SLURM__{key}": site[key] for key in site}},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert differing(inline, output) == []
    assert open_layers(output).run_record["workers"] == 2
    assert not (output / "work").exists()
    assert list(cwd.iterdir()) == []
    assert jobs(name) == []


def who(job: SlideJob) -> tuple[str, str]:
    return os.environ["SLURM_JOB_ID"], job.device


def die(job: SlideJob) -> str:
    """What a job that the node kills looks like: neither worker nor nanny is left."""
    mark = Path(job.output) / "died"
    if not mark.exists():
        mark.touch()
        subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=True)
        signal.pause()
    return os.environ["SLURM_JOB_ID"]


def test_a_job_that_is_cancelled_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that jobs find the functions above
    path = [str(HERE), str(HERE.parent / "run"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    job = SlideJob("a.svs", str(tmp_path), ScientificSettings(), "auto", 1, 0)
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in SITE.items()}):
        pool, workers, threads = make_pool("auto", 1, 2, "slurm", logs=tmp_path / "logs")
        with closing(pool):
            assert (workers, threads) == (1, 2)
            first, device = pool.once(who, job)
            assert device == "cpu"
            asked = subprocess.run(
                ["scontrol", "show", "job", first], capture_output=True, text=True, check=True
            )
            assert "NumCPUs=2" in asked.stdout
            assert "TimeLimit=04:00:00" in asked.stdout
            assert str(tmp_path / "logs") in asked.stdout
            assert pool.once(die, job) != first


def test_jobs_that_slurm_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PATIENCE_S", 8.0)
    monkeypatch.setattr(clusters, "LOOK_S", 1.0)
    job = SlideJob("a.svs", str(tmp_path), ScientificSettings(), "cpu", 1, 0)
    site = {**SITE, "queue": "nowhere"}
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in site.items()}):
        pool, *_ = make_pool("cpu", 1, 1, "slurm", logs=tmp_path / "logs")
        with closing(pool), pytest.raises(ClusterError, match="invalid partition"):
            pool.once(who, job)
    # else it warns when it is collected, in whatever test that is
    assert pool._place._cluster.status == Status.closed
