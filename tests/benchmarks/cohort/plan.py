"""The time that a cohort's own files take when it has thousands of slides."""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.records import Records
from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import rows_of
from wsi_pgdips.cohort.runner import CohortJob, on_slide
from wsi_pgdips.cohort.state import State
from wsi_pgdips.cohort.work import WHOLE
from wsi_pgdips.pipeline.lock import is_locked

PLAN = "plan"
REPEATS = 5


def measure_plan(records: Records, folder: Path, count: int) -> None:
    """Time the work on files before each slide and for the whole cohort, with ``count`` slides.

    No process works on the slides: they do not exist, and all but the last are marked as done.
    """
    job = JobFolder(folder / "job")
    entries = tuple(
        Entry(f"slide-{i:05d}", f"/slides/slide-{i:05d}.svs", f"layers/slide-{i:05d}.ome.zarr")
        for i in range(count)
    )
    cohort = Cohort(entries, {"preset": "fast", "device": "cpu"}, retries=0)
    job.keep(cohort)
    done = json.dumps(asdict(State("run", "done")))
    for entry in entries:
        job.output(entry).mkdir(parents=True)
        job.state(entry).mkdir(parents=True)
        (job.state(entry) / "run.json").write_text(done)
    last = entries[-1]

    def opened() -> Any:
        return JobFolder.opened(job.path)[1].entry(last.name)

    acts: dict[str, Callable[[], Any]] = {
        "plan_ms_per_slide": opened,
        "held_ms_per_slide": lambda: is_locked(job.output(last), WHOLE),
        # a slide that cannot be opened: everything beside the work
        "dispatch_ms_per_slide": lambda: on_slide(CohortJob(str(job.path), "cpu", 1), last.name),
        "status_ms": lambda: rows_of(job, cohort),
    }
    took = {metric: 1e3 * _seconds(act) for metric, act in acts.items()}
    records.add(took, case=PLAN, how=f"{count} slides")


def _seconds(act: Callable[[], Any]) -> float:
    """The shortest of a few times, so that other work of the machine does not count."""
    return min(timeit.repeat(act, number=1, repeat=1 + REPEATS)[1:])
