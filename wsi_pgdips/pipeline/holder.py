"""Who works on an output, and whether it still lives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

BEAT_S = 20.0  # a holder touches its file so often
QUIET_S = 100.0  # a beat, and a minute for which a network share may keep an old time from us
DEAD_S = 300.0  # without a beat
_ASKING_S = 10.0


@dataclass(frozen=True)
class Holder:
    """A process that works on an output.

    Attributes:
        host, boot, space: where its ``pid`` counts. born: when it began, in ticks since ``boot``.
        job: of Slurm, "" outside of it; restart: how often that was started anew.
        since: UTC, for who reads the file.
    """

    host: str = ""
    boot: str = ""
    space: int = 0
    pid: int = 0
    born: str = ""
    job: str = ""
    restart: str = ""
    since: str = ""

    @classmethod
    def this(cls) -> Self:
        """The process that asks."""
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            space=_space(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=os.environ.get("SLURM_RESTART_COUNT", ""),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Who holds a file, as far as this version knows its words; None where it is torn.

        Raises:
            OSError: it cannot be read.
        """
        try:
            said = json.loads(path.read_bytes())
        except ValueError:
            return None
        known = said if isinstance(said, dict) else {}
        return cls(**{f.name: known[f.name] for f in fields(cls) if f.name in known})

    @property
    def is_earlier_start(self) -> bool:
        """Whether Slurm has started this job anew since: it has given up the machine of that."""
        job, restart = (os.environ.get(f"SLURM_{n}", "") for n in ("JOB_ID", "RESTART_COUNT"))
        return bool(job) and job == self.job and restart != self.restart

    def lives(self, silent_s: float) -> bool:
        """Whether it still works, as far as can be told from here.

        What Slurm says counts only of who is silent: a lost node may go on with what it has, one
        job may have processes on several, and the job of another cluster is not known here.

        Args:
            silent_s: seconds since its last beat.
        """
        if (self.host, self.boot, self.space) == (socket.gethostname(), _boot(), _space()):
            return _born(self.pid) == self.born
        if silent_s <= QUIET_S:
            return True
        if silent_s > DEAD_S or self.is_earlier_start:
            return False
        return not (self.job and _has_ended(self.job))

    def __str__(self) -> str:
        if not self.pid:
            return "a process that cannot be told"
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


UNKNOWN = Holder()


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _space() -> int:
    """Process ids of another container are others'."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return 0


def _born(pid: int) -> str:
    """When a process began; "" where there is none: process ids are used again."""
    try:
        # the name, in brackets, may hold spaces and brackets
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _has_ended(job: str) -> bool:
    """Whether Slurm says so; not where it cannot be asked."""
    asked: list[str | Any] = ["squeue", "-h", "-j", job, "-o", "%T"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=_ASKING_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if said.returncode:
        return "Invalid job id" in said.stderr
    return not set(said.stdout.split()) & {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"}
