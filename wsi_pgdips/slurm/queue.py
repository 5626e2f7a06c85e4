"""Ask and command Slurm, by its own programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pgdips.errors import SlurmError

ANSWER_S = 60.0
MAX_ARRAY = 1001  # Slurm's own default
_OF_A_JOB = ("SLURM_ARRAY_", "SLURM_STEP", "SLURM_RESTART_COUNT")


@dataclass(frozen=True)
class Queued:
    """A job, or one task of an array, that has not ended.

    Attributes:
        job: id of the job. task: of an array, or None. state, reason: as Slurm says.
    """

    job: str
    task: int | None
    state: str
    reason: str

    @property
    def text(self) -> str:
        reason = "" if self.reason in ("None", "") else f" ({self.reason})"
        return f"job {self.job} {self.state.lower()}{reason}"


def submit_script(script: Path, after: Iterable[str] = ()) -> str:
    """Submit a script; return the job's id.

    Args:
        after: ids of jobs that must have ended, well or not.

    Raises:
        SlurmError: there is no Slurm, or it refuses.
    """
    # a job would take variables of the job that submits it for its own
    own = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_JOB)}
    ids = list(after)
    wait = [f"--dependency=afterany:{':'.join(ids)}"] if ids else []
    answer = _ask(["sbatch", "--parsable", *wait, str(script)], "the job was refused", own)
    words = answer.split()
    job = words[-1].partition(";")[0] if words else ""
    if not job.isdecimal():
        raise SlurmError(
            "sbatch does not say which job it took",
            expected="a number, as of sbatch --parsable",
            found=answer.strip() or "nothing",
            where=script,
        )
    return job


def queued(jobs: Sequence[str]) -> list[Queued] | None:
    """Return those of some jobs that wait or run; None where there is no Slurm.

    Raises:
        SlurmError: it does not answer.
    """
    if not jobs:
        return []
    if shutil.which("squeue") is None:
        return None
    # in a format of our own: accounting may be off, and squeue's JSON is younger than many sites
    query = ["squeue", "-h", "-r", "-j", ",".join(jobs), "-o", "%F|%K|%T|%r"]
    try:
        answer = _ask(query, "Slurm does not say which jobs wait or run")
    except SlurmError as error:  # jobs are forgotten some minutes after their end
        if "Invalid job id" in str(error.found):
            return []
        raise
    rows = [line.split("|", 3) for line in answer.splitlines() if line.count("|") >= 3]
    return [Queued(job, int(n) if n.isdecimal() else None, *others) for job, n, *others in rows]


def cancel(jobs: Sequence[str]) -> None:
    """End jobs, waiting or running.

    Raises:
        SlurmError: Slurm refuses.
    """
    if jobs:
        _ask(["scancel", *jobs], "the jobs could not be cancelled")


def requeue_this() -> bool:
    """Ask Slurm to restart the job of this process; return whether Slurm agreed."""
    job, task = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if job is None:
        return False
    if task and job == os.environ.get("SLURM_ARRAY_JOB_ID"):  # it would mean the whole array
        job = f"{job}_{task}"
    try:
        asked = ["scontrol", "requeue", job]
        done = subprocess.run(asked, capture_output=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    # Slurm ends every process of the job at once, and may be faster than its own answer
    return done.returncode <= 0


def max_array() -> int:
    """Return how many tasks an array may have here."""
    try:
        answer = _ask(["scontrol", "show", "config"], "")
    except SlurmError:
        answer = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
    return max(int(found.group(1)) if found else MAX_ARRAY, 2) - 1


def _ask(command: list[str], refused: str, environment: dict[str, str] | None = None) -> str:
    """Return what a program of Slurm prints.

    Raises:
        SlurmError: there is no such program, it does not answer, or it refuses.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, env=environment
        )
    except OSError as error:
        there = not isinstance(error, FileNotFoundError)
        raise SlurmError(
            "there is no Slurm here",
            expected=f"the command {command[0]}",
            found=error.strerror if there else "not on the PATH",
            hint="submit from a machine of the cluster, or use `wsi-pgdips cohort run`",
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            "Slurm does not answer", where=command[0], hint="try again when it does"
        ) from None
    if done.returncode:
        raise SlurmError(refused, found=done.stderr.strip(), where=" ".join(command))
    return done.stdout
