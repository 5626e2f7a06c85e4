"""Many small slides as one cohort: what each costs beyond its work, and the memory they take."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.records import Records
from wsi_pgdips.cohort.folder import JobFolder
from wsi_pgdips.cohort.state import State, read_states
from wsi_pgdips.errors import IncompleteRunError
from wsi_pgdips.layers.provenance import read_run_record
from wsi_pgdips.phantom.make import make_phantom

SLIDES = "slides"
SHAPES = ((384, 320), (448, 512), (600, 600))  # of the slides that are drawn; others are copies
SHARES = (10, 50, 100)  # per cent of the slides that are done
INTERVAL_S = 0.25


def make_slides(folder: Path, count: int) -> tuple[Path, Path]:
    """Make small slides; returns their folder and their stains.

    A few are drawn. The others are copies with a few more bytes at the end, so that every slide has
    a checksum of its own.
    """
    drawn = [
        make_phantom(folder / f"drawn-{i}.tiff", shape=shape, seed=i + 1)
        for i, shape in enumerate(SHAPES[:count])
    ]
    slides = folder / "slides"
    slides.mkdir()
    for i in range(count):
        content = drawn[i % len(drawn)].truth.path.read_bytes()
        (slides / f"slide-{i:05d}.tiff").write_bytes(content + i.to_bytes(4, "little"))
    return slides, drawn[0].stains


@dataclass
class Watch:
    """Watches a cohort from outside while it runs.

    Attributes:
        seen: (slides done, MiB of the worker, MiB of the program) at each observation.
        workers: process ids that have worked.
    """

    folder: JobFolder
    program: int
    names: list[str]
    seen: list[tuple[int, float, float]] = field(default_factory=list)
    workers: set[int] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)

    def observe(self) -> None:
        """Read the states of slides that are not done, and the memory of both processes."""
        newest: State | None = None
        for name in self.names:
            if name in self._done:
                continue
            states = read_states(self.folder.path / "state" / name)
            if not states:
                break  # slides are begun in their order
            newest = states[-1]
            if newest.status == "done":
                self._done.add(name)
            self.workers.add(newest.pid)
        pid = newest.pid if newest is not None else max(self.workers, default=0)
        worker, program = resident_mb(pid), resident_mb(self.program)
        if worker and program:
            self.seen.append((len(self._done), worker, program))

    def at(self, share: int) -> tuple[float, float]:
        """MiB of the worker and of the program when ``share`` per cent of the slides were done."""
        wanted = math.ceil(share / 100 * len(self.names))
        late = [mb for done, *mb in self.seen if done >= wanted]
        last = [mb for _, *mb in self.seen[-1:]]  # workers may be gone when the last is seen done
        found = (late or last or [[math.nan, math.nan]])[0]
        return found[0], found[1]


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MiB; 0 where the process has ended or the system hides it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    rss = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(rss[0]) / 1024 if rss else 0.0


def measure_slides(records: Records, folder: Path, count: int) -> None:
    """Run a cohort of ``count`` small slides, as a user does.

    Raises:
        IncompleteRunError: it failed.
    """
    slides, stains = make_slides(folder, count)
    job = JobFolder(folder / "job")
    asked = ["cohort", "run", slides, job.path, "--stains", stains, "--preset", "fast"]
    asked += ["--device", "cpu", "--workers", "1", "--quiet"]
    names = sorted(path.stem for path in slides.iterdir())
    with (folder / "log.txt").open("w+") as log:
        begun, start = time.time(), time.monotonic()
        program = [sys.executable, "-m", "wsi_pgdips", *map(str, asked)]
        process = subprocess.Popen(program, stdout=log, stderr=log)
        watch = Watch(job, process.pid, names)
        try:
            while process.poll() is None:
                watch.observe()
                time.sleep(INTERVAL_S)
        finally:
            process.kill()
            process.wait()
        wall_s = time.monotonic() - start
        if process.returncode != 0:
            log.seek(0)
            raise IncompleteRunError(
                "the cohort of the benchmark failed", found=log.read().strip(), where=slides.name
            )
    _add(records, watch, begun, wall_s)


def _add(records: Records, watch: Watch, begun: float, wall_s: float) -> None:
    job, cohort = JobFolder.opened(watch.folder.path)
    count = len(cohort.entries)
    states = [s for e in cohort.entries for s in read_states(job.state(e))]
    work_s = sum(s.wall_s for s in states)
    in_hand_s = sum(s.updated - s.begun for s in states)
    start_s = min(s.begun for s in states) - begun
    end_s = begun + wall_s - max(s.updated for s in states)
    found: dict[str, float] = {
        "slides": count,
        "wall_s": wall_s,
        "start_s": start_s,
        "end_s": end_s,
        "work_s": work_s,
        "overhead_s_per_slide": (wall_s - start_s - work_s) / count,
        "overhead_s_per_slide_with_start": (wall_s - work_s) / count,
        "beside_work_s_per_slide": (in_hand_s - work_s) / count,
        "between_s_per_slide": (wall_s - start_s - end_s - in_hand_s) / count,
    }
    stages = Counter[str]()
    for entry in cohort.entries:
        stages.update(read_run_record(job.output(entry))["wall_s"])
    found |= {f"{stage}_s_per_slide": seconds / count for stage, seconds in stages.items()}
    memory = {share: watch.at(share) for share in SHARES}
    for k, what in enumerate(("worker", "program")):
        found |= {f"{what}_mb_at_{share}": memory[share][k] for share in SHARES}
        found[f"{what}_mb_growth"] = memory[100][k] / memory[10][k]
    found["worker_processes"] = len(watch.workers)
    records.add(found, case=SLIDES, how="fast")
