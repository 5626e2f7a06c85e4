"""A run that is killed before one of its changes of the disk, each time in a process of its own.

    python killed_at.py SLIDE STAINS FOLDER

Prints a line of JSON for each kill: what it fell before, the exit code of the run that came after,
which files differ from those of an undisturbed run, and what was left behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr  # noqa: F401

from support.cheap_runs import FAST, Slide, differing

# a forked process has what its parent has imported
from wsi_pgdips.layers import store, tables  # noqa: F401
from wsi_pgdips.looks import slide_look  # noqa: F401
from wsi_pgdips.pipeline import slide_run  # noqa: F401
from wsi_pgdips.stages import finish  # noqa: F401

FIRST, LAST, BETWEEN = 14, 3, 8  # changes: the first ones, the last ones, and some between
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.link")


def on_change(folder: Path, act: Callable[[str], None]) -> None:
    """Call ``act`` before each change of the disk that this process makes below a folder."""
    counting = threading.Lock()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes or event in CHANGES) and str(args[0]).startswith(str(folder)):
            with counting:
                act(f"{event} {str(args[0]).removeprefix(str(folder))}")

    sys.addaudithook(hook)


def run_forked(slide: Slide, output: Path, kill_before: int = 0) -> tuple[int, list[str]]:
    """(exit code, changes of the disk) of a run; negative where it was killed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        seen = 0

        def count(what: str) -> None:
            nonlocal seen
            seen += 1
            os.write(writing, f"{what}\n".encode())
            if seen == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

        on_change(output.parent, count)
        try:
            os._exit(slide.run(output, **FAST).exit_code)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(9)
    os.close(writing)
    with os.fdopen(reading) as said:
        changes = said.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), changes


def main() -> None:
    slide, folder = Slide(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3])
    reference = folder / "undisturbed" / "out.ome.zarr"
    code, changes = run_forked(slide, reference)
    assert code == 0, changes[-1]
    n = len(changes)
    some = {FIRST + k * (n - FIRST - LAST) // BETWEEN for k in range(1, BETWEEN)}
    for number in sorted({*range(1, FIRST + 1), *some, *range(n - LAST + 1, n + 1)}):
        output = folder / str(number) / "out.ome.zarr"
        killed, changes = run_forked(slide, output, number)
        code, after = run_forked(slide, output)
        names = ((p, p.relative_to(output.parent).as_posix()) for p in output.parent.rglob("*"))
        found = {
            "before": changes[-1],
            "killed": killed,
            "code": code,
            "said": after[-1] if code else "",
            "differing": differing(reference, output) if output.is_dir() else ["all"],
            "left": [name for p, name in names if p.suffix in (".partial", ".running")],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
