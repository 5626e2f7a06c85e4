"""A real Slurm as the tests drive it, and slides that keep it busy for a while."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = (sys.executable, "-m", "wsi_pgdips")
PATIENCE_S = 300
# little memory each, so that tasks run side by side on a small machine
JOB = ("--mem=3G", "--cpus-per-task=2", "--time=20")
CHEAP = ("--tile=256", "--block=1024", "--calibration-tiles=2", "--calibration-steps=5")


def program(*arguments: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run ``wsi-pgdips``; its exit code is as said, or any for None."""
    done = subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def slurm(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stdout


def jobs_of(folder: Path, submission: str = "001") -> dict[str, str]:
    """Ids of the jobs of a submission, by name."""
    facts = json.loads((folder / "slurm" / submission / "jobs.json").read_bytes())
    return dict(facts["ids"])


def logs(folder: Path) -> str:
    return "\n".join(f"{p.name}:\n{p.read_text()}" for p in folder.glob("slurm/*/logs/*"))


def until(what: Callable[[], Any], folder: Path) -> Any:
    """What comes of asking again and again until there is something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.3)
    queue = slurm("squeue", "-a", "-r")
    return pytest.fail(f"nothing came of it in {PATIENCE_S} s\n{queue}\n{logs(folder)}")


def wait_for_jobs(folder: Path, submission: str = "001") -> None:
    ids = ",".join(jobs_of(folder, submission).values())
    until(lambda: not slurm("squeue", "-h", "-j", ids).strip(), folder)


def states(job: str) -> list[str]:
    """Of a job, or of each task of an array."""
    return slurm("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split()
