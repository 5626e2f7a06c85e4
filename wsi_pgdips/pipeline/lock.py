"""One process at a time works on an output, or several on parts that may go on side by side.

An output in use is marked by a small file beside it, because file locks are unreliable on network
disks. The file is created exclusively, which is atomic on local disks, NFS from version 3, and
Lustre; its process touches it now and then. Nothing that is written relies on the mark: every
file appears whole, and two runs would write the same ones.

A process that was killed is known to be dead by its process id on the same machine. On another
machine it counts as dead after a silence, which is shorter where Slurm says that its job is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from wsi_pgdips.disk import make_folder, share, writing
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline.part import STAGES, Part

SUFFIX = ".running"
BEAT_S = 20.0  # between two touches of a lock file
QUIET_S = 100.0  # a beat, and a minute for which a network share may show an old time
DEAD_S = 300.0  # silence after which a process counts as dead
WAIT_S = 5.0  # between two looks at a lock that is waited for
BEATS = 3  # of a process that is not waited for any longer, as it goes on working
TORN_S = 5.0  # a lock file is created and written in less
_ANSWER_S = 10.0  # of Slurm
_WHOLE = Part()
_OURS = re.compile(rf"(run|({'|'.join(STAGES)})(-\d+-of-\d+)?)\.\d+{re.escape(SUFFIX)}")


class LockedError(OutputError):
    """Another process works on the output."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host, machine, pid: where its process id counts, and the id; ``machine`` names a boot and a
            container. born: when the process began, in ticks since the boot.
        job: id of its Slurm job, "" outside of Slurm. restart: how often Slurm restarted the job.
        since: UTC, for people who read the file.
    """

    host: str = ""
    machine: str = ""
    pid: int = 0
    born: str = ""
    job: str = ""
    restart: str = ""
    since: str = ""

    @classmethod
    def this(cls) -> Self:
        """Return this process as a holder."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=os.environ.get("SLURM_RESTART_COUNT", ""),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def is_earlier_start(self) -> bool:
        """Whether Slurm has restarted the holder's job as this process, and given up on it."""
        job, restart = (os.environ.get(f"SLURM_{n}", "") for n in ("JOB_ID", "RESTART_COUNT"))
        return bool(job) and job == self.job and restart != self.restart

    def lives(self, silent_s: float) -> bool:
        """Return whether the process still works, as far as this process can tell.

        Slurm is asked only about a silent process: a lost node may go on with its work, one job
        may have processes on several nodes, and jobs of another cluster are unknown here.

        Args:
            silent_s: seconds since the lock file was touched.
        """
        if self.machine and (self.host, self.machine) == (socket.gethostname(), _machine()):
            return _born(self.pid) == self.born
        if silent_s <= QUIET_S:
            return True
        if silent_s > DEAD_S or self.is_earlier_start:
            return False
        return not (self.job and _has_ended(self.job))

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


@contextlib.contextmanager
def lock_output(output: Path, part: Part = _WHOLE) -> Iterator[None]:
    """Lock an output for a run, or for a part of it that others may work beside.

    Raises:
        LockedError: another process works on it. OutputError: the lock file cannot be written.
    """
    with writing(output):
        make_folder(output.parent)
        _wait_for_earlier_start(output, part)
        own = _take(output, part)
    stop = threading.Event()
    threading.Thread(target=_beat, args=(own, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        own.unlink(missing_ok=True)


def lock_path(output: Path, part: str = "run", number: int = 0) -> Path:
    """Return the lock file of a part of the work on an output.

    Args:
        part: name of the part. number: one more than that of a dead lock that is still there.
    """
    return output.with_name(f"{output.name}.{part}.{number}{SUFFIX}")


def locks_of(output: Path) -> dict[Path, Holder | None]:
    """Return the lock files of an output and their holders, None for those that died."""
    if not output.parent.is_dir():
        return {}
    start = f"{output.name}."  # of another output too, such as a.b beside a
    found = [p for p in output.parent.iterdir() if p.name.startswith(start)]
    ours = [p for p in found if _OURS.fullmatch(p.name.removeprefix(start))]
    return {p: living_holder(p) for p in sorted(ours)}


def living_holder(path: Path) -> Holder | None:
    """Return the holder of a lock file; None where it has died, or the file is gone."""
    until = time.monotonic() + TORN_S
    while True:
        silent_s, content = 0.0, None
        try:
            silent_s = _silent_s(path)
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError:  # a network share that is away, or a file that may not be read
            pass
        except ValueError:
            if silent_s <= BEAT_S and time.monotonic() < until:  # it is being written
                time.sleep(0.1)
                continue
        # another version may have other fields
        known = content.items() if isinstance(content, dict) else ()
        holder = Holder(**{k: v for k, v in known if k in Holder.__dataclass_fields__})
        return holder if holder.lives(silent_s) else None


def is_locked(output: Path, part: Part) -> bool:
    """Return whether another process works on an output, so that a part cannot be done."""
    return bool(_living(output, part))


def remove_dead_locks(output: Path) -> None:
    """Remove the locks of processes that were killed, where nobody works on an output."""
    with contextlib.suppress(OSError, OutputError):
        if locks_of(output):
            with lock_output(output):
                pass  # taking a lock removes dead ones


def wait_until_free(output: Path, part: Part, check: Callable[[], None] = lambda: None) -> bool:
    """Wait for processes that may be gone, or about to go; return whether the output is free.

    A process that was killed on another machine counts as alive until it has been silent for a
    while. One that goes on touching its lock file is not waited for.

    Args:
        check: called now and then, may raise.
    """
    beats: dict[Path, set[float]] = {}
    until = time.monotonic() + DEAD_S + 60
    while living := _living(output, part):
        for path, holder in living.items():
            # an earlier start of this job will be ended by the node that Slurm gave up
            if not holder.is_earlier_start:
                with contextlib.suppress(OSError):
                    beats.setdefault(path, set()).add(path.stat().st_mtime)
        if time.monotonic() > until or any(len(seen) > BEATS for seen in beats.values()):
            return False
        check()
        time.sleep(WAIT_S)
    return True


def _rivals(output: Path, part: Part) -> dict[Path, Holder | None]:
    """Return the locks, dead ones too, of work that must not go on while a part is done."""
    same, beside = f"{output.name}.{part.name}.", f"{output.name}.{part.beside}"
    return {
        path: holder
        for path, holder in locks_of(output).items()
        if path.name.startswith(same) or not (part.beside and path.name.startswith(beside))
    }


def _living(output: Path, part: Part) -> dict[Path, Holder]:
    """Return the locks, and their holders, that keep a part from being done."""
    return {path: holder for path, holder in _rivals(output, part).items() if holder}


def _wait_for_earlier_start(output: Path, part: Part) -> None:
    """Wait for a start of this job on a node that Slurm gave up, which may go on for a while."""
    until = time.monotonic() + DEAD_S
    while any(holder.is_earlier_start for holder in _living(output, part).values()):
        if time.monotonic() > until:
            return
        time.sleep(WAIT_S)


def _take(output: Path, part: Part) -> Path:
    """Create a lock file, and return its path.

    A dead lock is not replaced: two processes that find it dead could each remove the other's new
    lock. They try to create the lock of the next number instead, which one of them can.
    """
    while True:
        dead = _rivals(output, part)
        _refuse(output, dead)
        numbers = (int(p.name.removesuffix(SUFFIX).rpartition(".")[2]) for p in dead)
        own = lock_path(output, part.name, 1 + max(numbers, default=-1))
        try:
            with own.open("x") as file:
                try:
                    share(own)
                    file.write(json.dumps(asdict(Holder.this())))
                    file.flush()
                    # another process may have locked it meanwhile, and sees this lock now
                    _refuse(output, _rivals(output, part), own)
                except BaseException:
                    own.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            continue  # another process was faster
        for path in dead:
            path.unlink(missing_ok=True)
        return own


def _refuse(output: Path, rivals: dict[Path, Holder | None], own: Path | None = None) -> None:
    for path, holder in rivals.items():
        if holder is not None and path != own:
            raise LockedError(
                "another run works on this output",
                expected="an output that nobody works on",
                found=holder,
                where=output.name,
                hint="wait for it, or end it; one that was killed on another machine "
                f"is given up after {DEAD_S / 60:.0f} minutes",
            )


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _silent_s(path: Path) -> float:
    """Return the seconds since the last beat, by the clock of the disk.

    Raises:
        OSError: the file is gone, or the disk is away.
    """
    beat = path.stat().st_mtime
    try:
        # the probe has no name, so that a process that is killed here leaves nothing
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - beat
    except OSError:  # nothing can be written there: use the clock of this machine
        return time.time() - beat


def _machine() -> str:
    """Return the name of this boot and this container, in which process ids are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # processes of this machine are then told by their silence too


def _born(pid: int) -> str:
    """Return when a process began, "" where there is none: process ids are used again."""
    try:
        # the name, in brackets, may hold spaces and brackets
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _has_ended(job: str) -> bool:
    """Return whether Slurm says that a job has ended; False where Slurm cannot be asked."""
    command = ["squeue", "-h", "-j", job, "-o", "%T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if answer.returncode:
        return "Invalid job id" in answer.stderr
    return not set(answer.stdout.split()) & {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"}
