"""One run at a time works on an output: whoever comes second is told who holds it.

A small file beside the output says who. It spares two runs each other's way; nothing of what is
written relies on it, as every file appears whole and two runs would write the same ones. It takes
an exclusive create that is atomic, as on local disks, NFS from version 3, and Lustre.

A holder that was killed is known to be dead by its process id on the same machine, by its job under
Slurm, and elsewhere when its file has not been touched for a while.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.disk import writing
from wsi_pgdips.run.parts import Part

SUFFIX = ".running"
BEAT_S = 20.0
DEAD_S = 300.0  # without a beat
_ASKING_S = 10.0


@dataclass(frozen=True)
class Holder:
    """A process that works on an output.

    Attributes:
        host, boot, space: where its ``pid`` counts. born: when it began, in ticks since ``boot``.
        job: of Slurm, "" outside of it. since: UTC, for who reads the file.
    """

    host: str
    boot: str
    space: int
    pid: int
    born: str
    job: str
    restart: str
    since: str

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
        """Who holds a file; None where that cannot be told (yet)."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def lives(self, silent_s: float) -> bool:
        """Whether it still works, as far as can be told from here.

        Args:
            silent_s: seconds since its last beat.
        """
        if (self.host, self.boot, self.space) == (socket.gethostname(), _boot(), _space()):
            return _born(self.pid) == self.born
        if self.job and self.job == os.environ.get("SLURM_JOB_ID"):
            return False  # what Slurm starts anew it has ended before
        if silent_s > DEAD_S:
            return False
        return not (self.job and _has_ended(self.job))

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


@contextlib.contextmanager
def holding(output: Path, part: str = "run", *, beside: str | None = None) -> Iterator[None]:
    """Hold an output for a run, or for a part of it that others may work beside.

    Args:
        part: name of what is done. beside: how the names of those begin that may go on meanwhile.

    Raises:
        OutputError: another process holds it.
    """
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        own = _take(output, part, beside)
    stop = threading.Event()
    threading.Thread(target=_beat, args=(own, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        own.unlink(missing_ok=True)


def place(output: Path, part: str, number: int = 0) -> Path:
    """The file that says who does a part of the work on an output.

    Args:
        number: counts those that took it over from a dead one, whose file is still there.
    """
    return output.with_name(f"{output.name}.{part}.{number}{SUFFIX}")


def holders(output: Path) -> dict[Path, Holder | None]:
    """The files of who works on an output, None for those that died."""
    # no pattern: a name may hold brackets
    start = f"{output.name}."
    paths = [p for p in output.parent.iterdir() if p.name.endswith(SUFFIX)]
    return {p: alive(p) for p in sorted(paths) if p.name.startswith(start)}


def clear_dead(output: Path) -> None:
    """Remove the files of holders that were killed, where nobody holds an output."""
    with contextlib.suppress(OSError, OutputError):
        if holders(output):
            with holding(output):
                pass  # whoever holds an output has cleared it


def held_by_another(output: Path, part: Part) -> bool:
    """Whether somebody works on an output so that a part of the work cannot be done."""
    if not output.parent.is_dir():
        return False
    return any(
        holder is not None and _rivals(path, output, part.name, part.beside)
        for path, holder in holders(output).items()
    )


def _rivals(path: Path, output: Path, part: str, beside: str | None) -> bool:
    """Whether who holds a file must not work while a part is done."""
    side_by_side = beside is not None and path.name.startswith(f"{output.name}.{beside}")
    return not side_by_side or _number(path, output, part) is not None


def alive(path: Path) -> Holder | None:
    """Who holds a file and still works."""
    while True:
        holder, silent_s = Holder.read(path), _silent_s(path)
        if silent_s is None:
            return None
        if holder is None and silent_s < BEAT_S:  # being written, or torn by a full disk
            time.sleep(0.1)
            continue
        return holder if holder is not None and holder.lives(silent_s) else None


def _take(output: Path, part: str, beside: str | None) -> Path:
    """The file that this process holds from now on.

    A dead one's is not taken away and made anew: two that find it dead would take each other's.
    The next number is made instead, which one of them can.
    """
    while True:
        before = holders(output)
        numbers = {_number(path, output, part) for path in before}
        own = place(output, part, 1 + max((n for n in numbers if n is not None), default=-1))

        def rival(path: Path, own: Path = own) -> bool:
            return path != own and _rivals(path, output, part, beside)

        _refuse(output, before, rival)
        try:
            with own.open("x") as file:
                file.write(json.dumps(asdict(Holder.this())))
        except FileExistsError:
            continue
        try:  # another may have begun meanwhile, who sees this one now
            _refuse(output, holders(output), rival)
        except BaseException:
            own.unlink(missing_ok=True)
            raise
        for path, holder in before.items():
            if holder is None and rival(path):
                path.unlink(missing_ok=True)
        return own


def _refuse(output: Path, found: dict[Path, Holder | None], rival: Callable[[Path], bool]) -> None:
    for path, holder in found.items():
        if holder is not None and rival(path):
            raise _held(output, holder)


def _number(path: Path, output: Path, part: str) -> int | None:
    """Of a file of a part; None of others'."""
    number = path.name.removeprefix(f"{output.name}.{part}.").removesuffix(SUFFIX)
    return int(number) if number.isdecimal() else None


def _held(output: Path, holder: Holder) -> OutputError:
    return OutputError(
        "another run works on this output",
        expected="an output that nobody works on",
        found=holder,
        where=output.name,
        hint="wait for it, or end it; one that was killed on another machine "
        f"is given up after {DEAD_S / 60:.0f} minutes",
    )


def _silent_s(path: Path) -> float | None:
    """Seconds since the last beat by the clock of the disk; None where the file is gone."""
    try:
        beat = path.stat().st_mtime
        try:
            # it has no name, so that a process that is killed here leaves nothing
            with tempfile.TemporaryFile(dir=path.parent) as probe:
                return os.fstat(probe.fileno()).st_mtime - beat
        except PermissionError:  # who may only read looks by the clock of this machine
            return time.time() - beat
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return time.time() - beat
    except FileNotFoundError:
        return None


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


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
