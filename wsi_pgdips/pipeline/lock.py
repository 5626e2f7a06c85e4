"""One run at a time works on an output: whoever comes second is told who holds it.

A small file beside the output says who. It spares two runs each other's way; nothing of what is
written relies on it, as every file appears whole and two runs would write the same ones. It takes
an exclusive create that is atomic, as on local disks, NFS from version 3, and Lustre.

A holder that was killed is known to be dead by its process id on the same machine, and elsewhere by
its silence: sooner where Slurm says that its job is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from wsi_pgdips.disk import writing
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline.holder import BEAT_S, DEAD_S, UNKNOWN, Holder
from wsi_pgdips.pipeline.part import STAGES, Part

SUFFIX = ".running"
WAIT_S = 5.0
BEATS = 3  # of one that goes on working
_TORN_S = 5.0  # a file is made and written in less
_OURS = re.compile(rf"(run|({'|'.join(STAGES)})(-\d+-of-\d+)?)\.\d+{re.escape(SUFFIX)}")


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
        _outwait_earlier_start(output, part, beside)
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
    start = f"{output.name}."  # of another output too, such as a.b beside a
    paths = [p for p in output.parent.iterdir() if p.name.startswith(start)]
    ours = [p for p in paths if _OURS.fullmatch(p.name.removeprefix(start))]
    return {p: alive(p) for p in sorted(ours)}


def clear_dead(output: Path) -> None:
    """Remove the files of holders that were killed, where nobody holds an output."""
    with contextlib.suppress(OSError, OutputError):
        if holders(output):
            with holding(output):
                pass  # whoever holds an output has cleared it


def held_by_another(output: Path, part: Part) -> bool:
    """Whether somebody works on an output so that a part of the work cannot be done."""
    return bool(_held_by(output, part.name, part.beside))


def _held_by(output: Path, part: str, beside: str | None) -> dict[Path, Holder]:
    """Who works on an output so that a part cannot be done."""
    if not output.parent.is_dir():
        return {}
    return {
        path: holder
        for path, holder in holders(output).items()
        if holder is not None and _rivals(path, output, part, beside)
    }


def outwait(output: Path, part: Part, check: Callable[[], None] = lambda: None) -> bool:
    """Wait for who works on an output and may be gone, or about to go; whether nobody does then.

    A process that was killed on another machine counts as alive until it has been silent for a
    while. One that goes on touching its file is not waited for.

    Args:
        check: called now and then, may raise.
    """
    beats: dict[Path, set[float]] = {}
    until = time.monotonic() + DEAD_S + 60
    while rivals := _held_by(output, part.name, part.beside):
        for path, holder in rivals.items():
            # an earlier start of this job will be ended, by the machine that was given up at last
            if not holder.is_earlier_start:
                with contextlib.suppress(OSError):
                    beats.setdefault(path, set()).add(path.stat().st_mtime)
        if time.monotonic() > until or any(len(seen) > BEATS for seen in beats.values()):
            return False
        check()
        time.sleep(WAIT_S)
    return True


def _rivals(path: Path, output: Path, part: str, beside: str | None) -> bool:
    """Whether who holds a file must not work while a part is done."""
    side_by_side = beside is not None and path.name.startswith(f"{output.name}.{beside}")
    return not side_by_side or _number(path, output, part) is not None


def alive(path: Path) -> Holder | None:
    """Who holds a file and still works."""
    until = time.monotonic() + _TORN_S
    while True:
        silent_s = _silent_s(path)
        if silent_s is None:
            return None
        try:
            holder = Holder.read(path)
        except FileNotFoundError:
            return None
        except OSError:
            holder = UNKNOWN
        if holder is None and silent_s <= BEAT_S and time.monotonic() < until:  # being written
            time.sleep(0.1)
            continue
        holder = holder or UNKNOWN
        return holder if holder.lives(silent_s) else None


def _outwait_earlier_start(output: Path, part: str, beside: str | None) -> None:
    """Of a machine that Slurm has given up, and which may go on all the same for a while."""
    until = time.monotonic() + DEAD_S
    while time.monotonic() < until and any(
        holder.is_earlier_start for holder in _held_by(output, part, beside).values()
    ):
        time.sleep(WAIT_S)


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
            _write(own)
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


def _write(own: Path) -> None:
    with own.open("x") as file:
        try:
            file.write(json.dumps(asdict(Holder.this())))
            file.flush()
        except BaseException:  # a full disk
            own.unlink(missing_ok=True)
            raise


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
    except FileNotFoundError:
        return None
    except OSError:  # a share that is away
        return 0.0
    try:
        # it has no name, so that a process that is killed here leaves nothing
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - beat
    except OSError:  # who may not write, or cannot, looks by the clock of this machine
        return time.time() - beat


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)
