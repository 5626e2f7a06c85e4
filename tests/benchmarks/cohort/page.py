"""The records of the benchmark of cohorts as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cohort.records import (
    FAULTS,
    KILLS,
    MOMENTS,
    PLAN,
    SLIDES,
    CohortRecord,
    figure,
    load_figures,
)
from benchmarks.speed.plots import number
from benchmarks.tables import NOTHING, ordered, table
from wsi_pgdips.disk import write_atomic

OVERHEAD_S, GROWTH = 0.5, 1.2  # bars
INTRODUCTION = """# Benchmark of cohorts

Written by `wsi-pgdips bench cohort-page` from `{records}`, which this made:

    wsi-pgdips bench cohort --out FILE.json

Timings depend on the machine and on what else it does.

## How it is measured

- **Small slides**: phantoms of 384 x 320 to 600 x 600 pixels, preset `fast`, one worker process,
  by one `cohort run`. A few are drawn, the others are copies with a few bytes after their end. The
  **work** of a slide is the seconds of its stages, as its record says: `prepare` looks for tissue
  and glass and makes the empty layers, `calibrate`, `fit` and `blend` estimate, `render` writes the
  layers, `finalize` coarse levels, tables and checksums. All other time is **overhead**: to open
  the slide and keep its state (beside the work), to hand out the next one (between two slides), to
  start the program and its worker, and to end them.
- **Memory** is resident memory as the system sees it from outside, looked at four times a second.
- **Files of a large cohort**: one of {planned} that nobody works on: what is read before a slide
  is begun, all that is done for a slide that cannot be opened, and how all stand.
- **Kills**: a phantom of twelve blocks, whole in one process, with two workers, or stage by stage
  with two processes for the blocks. All processes are ended by SIGKILL at an instant drawn from
  0.1 s to the time that the run takes, or shortly after the file appears with which a stage begins;
  then the same command is given again. A run that comes to its end is compared with an undisturbed
  one of the same preset: every file but `provenance/run.json`, byte for byte; so is one undisturbed
  run of each other way. Where a kill fell is told by the files that exist: `start` is before the
  run holds its output, `end` after its last write.
"""
LABELS = {
    "wall_s": "wall seconds",
    "start_s": "from the start to the first slide, seconds",
    "end_s": "from the last slide to the end, seconds",
    "work_s": "work of all slides, seconds",
    "overhead_s_per_slide": "overhead a slide without the start, seconds",
    "overhead_s_per_slide_with_start": "overhead a slide with the start, seconds",
    "beside_work_s_per_slide": "of it beside the work, seconds a slide",
    "between_s_per_slide": "of it between two slides, seconds a slide",
}
PLANS = {
    "plan_ms_per_slide": "the plan, before each slide",
    "held_ms_per_slide": "whether another works on it, before each slide",
    "dispatch_ms_per_slide": "all that is done for a slide that cannot be opened",
    "status_ms": "how all stand",
}


def write_cohort_page(results: Path, output: Path) -> None:
    """Render a file of records as a page; replaces it.

    Raises:
        SettingsError: the records cannot be read. OutputError: the page cannot be written.
    """
    records = load_figures(results)
    here, folder = results.resolve(), output.resolve().parent
    named = here.relative_to(folder).as_posix() if here.is_relative_to(folder) else here.name
    planned = next((r["how"] for r in records if r["case"] == PLAN), "thousands of slides")
    parts = [INTRODUCTION.format(records=named, planned=planned)]
    for device in ordered(r["device"] for r in records):
        own = [r for r in records if r["device"] == device]
        parts += [f"## {device}\n", _bars(own), _slides(own), _plan(own), _kills(own)]
    write_atomic(output, "\n".join(p for p in parts if p).encode())


def _bars(own: Sequence[CohortRecord]) -> str:
    faults = [sum(r["value"] for r in own if r["metric"] == f) for f in FAULTS]
    killed = any(r["case"] == KILLS for r in own)
    bars = [
        ("overhead a slide, seconds", figure(own, metric="overhead_s_per_slide"), OVERHEAD_S),
        ("memory of the worker, end / 10 %", figure(own, metric="worker_mb_growth"), GROWTH),
        (
            "files wrong, lost or left behind, starts refused",
            sum(faults) if killed else math.nan,
            0,
        ),
    ]
    rows = []
    for what, found, limit in bars:
        verdict = ("yes" if found <= limit else "no") if math.isfinite(found) else NOTHING
        rows.append([f"{what} ≤ {limit:g}", number(found, 3), verdict])
    return "### Bars\n\n" + table(["bar", "found", "met?"], rows)


def _slides(own: Sequence[CohortRecord]) -> str:
    of = [r for r in own if r["case"] == SLIDES]
    if not of:
        return ""
    count = figure(of, metric="slides")
    rows = [[label, number(figure(of, metric=m))] for m, label in LABELS.items()]
    stages = [r for r in of if r["metric"].endswith("_s_per_slide") and r["metric"] not in LABELS]
    names = [r["metric"].removesuffix("_s_per_slide") for r in stages]
    memory = []
    for what in ("worker", "program"):
        cells = [figure(of, metric=f"{what}_mb_at_{share}") for share in (10, 50, 100)]
        memory.append([what, *map(number, [*cells, figure(of, metric=f"{what}_mb_growth")])])
    return "\n".join(
        [
            f"### {count:.0f} small slides\n",
            table(["what", "found"], rows),
            "The work, seconds a slide.\n",
            table(names, [[number(r["value"]) for r in stages]]),
            f"Resident memory, MiB; {figure(of, metric='worker_processes'):.0f} worker process.\n",
            table(["process", "10 % done", "50 % done", "all done", "end / 10 %"], memory),
        ]
    )


def _plan(own: Sequence[CohortRecord]) -> str:
    of = [r for r in own if r["case"] == PLAN]
    rows = [[PLANS[r["metric"]], number(r["value"])] for r in of]
    return f"### The files of {of[0]['how']}\n\n" + table(["what", "ms"], rows) if of else ""


def _kills(own: Sequence[CohortRecord]) -> str:
    of = [r for r in own if r["case"] == KILLS]
    if not of:
        return ""
    ways = ordered(r["how"] for r in of)

    def row(way: str | None, metrics: Sequence[str]) -> list[str]:
        chosen = [r for r in of if way in (None, r["how"])]
        totals = [sum(r["value"] for r in chosen if r["metric"] == m) for m in metrics]
        return [way or "all", *(str(int(t)) for t in totals)]

    counts = ("kills", "runs", "files_compared", *FAULTS)
    fell = [f"killed_in_{m}" for m in MOMENTS]
    return "\n".join(
        [
            "### Kills\n",
            table(
                ["way", *(c.replace("_", " ") for c in counts)],
                [row(w, counts) for w in (*ways, None)],
            ),
            "The stage in hand when they fell.\n",
            table(["way", *MOMENTS], [row(w, fell) for w in (*ways, None)]),
        ]
    )
