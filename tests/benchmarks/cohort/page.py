"""The records of the benchmark of cohorts as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from benchmarks.cohort.kills import FAULTS, KILLS, METRICS
from benchmarks.cohort.moments import MOMENTS
from benchmarks.cohort.plan import PLAN
from benchmarks.cohort.slides import SHARES, SLIDES
from benchmarks.records import NOTHING, bar, distinct, lookup, number, only, pivot, prose, table

OVERHEAD_S, GROWTH = 0.5, 1.2  # bars
PER_SLIDE = "_s_per_slide"  # the ending of a stage's metric
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


def render(records: pd.DataFrame, name: str, images: Path) -> str:
    """The page: what there are no records of is left out.

    Args:
        name: of the file of records, as the page calls it. images: where plots go; there are none.
    """
    planned = next(iter(distinct(only(records, case=PLAN), "how")), "thousands of slides")
    parts = [prose("cohort")["introduction"].format(records=name, planned=planned)]
    for device, own in records.groupby("device", sort=False):
        cases = {case: only(own, case=case) for case in distinct(own, "case")}
        parts += [f"## {device}\n", _bars(own)]
        for case, section in ((SLIDES, _slides), (PLAN, _plan), (KILLS, _kills)):
            if case in cases:
                parts += section(cases[case])
    return "\n".join(parts)


def _bars(own: pd.DataFrame) -> str:
    faults = only(own, metric=FAULTS)["value"].sum() if KILLS in distinct(own, "case") else math.nan
    value = lookup(own, "metric")
    rows = [
        bar("overhead a slide, seconds", value("overhead_s_per_slide"), OVERHEAD_S, digits=3),
        bar("memory of the worker, end / 10 %", value("worker_mb_growth"), GROWTH, digits=3),
        bar("files wrong, lost or left behind, starts refused", faults, 0, digits=3),
    ]
    return "### Bars\n\n" + table(["bar", "found", "met?"], rows)


def _slides(own: pd.DataFrame) -> Iterator[str]:
    found = {m: number(v) for m, v in zip(own["metric"], own["value"], strict=True)}
    stages = [m for m in found if m.endswith(PER_SLIDE) and m not in LABELS]
    yield f"### {found['slides']} small slides\n"
    yield table(["what", "found"], [[LABELS[m], found.get(m, NOTHING)] for m in LABELS])
    yield "The work, seconds a slide.\n"
    yield table([m.removesuffix(PER_SLIDE) for m in stages], [[found[m] for m in stages]])
    processes = found.get("worker_processes", NOTHING)
    yield f"Resident memory, MiB; {processes} worker process.\n"
    heads = {f"{'all' if s == 100 else f'{s} %'} done": f"_mb_at_{s}" for s in SHARES}
    memory = {
        head: {what: found.get(what + ending, NOTHING) for what in ("worker", "program")}
        for head, ending in {**heads, "end / 10 %": "_mb_growth"}.items()
    }
    yield pivot("process", ("worker", "program"), memory)


def _plan(own: pd.DataFrame) -> Iterator[str]:
    rows = [[PLANS[m], number(v)] for m, v in zip(own["metric"], own["value"], strict=True)]
    yield f"### The files of {distinct(own, 'how')[0]}\n\n" + table(["what", "ms"], rows)


def _kills(own: pd.DataFrame) -> Iterator[str]:
    counts = own.pivot_table("value", "how", "metric", "sum", sort=False)
    counts = counts.reindex(columns=METRICS).fillna(0)
    counts.loc["all"] = counts.sum()
    texts = counts.astype(int).astype(str)

    def part(columns: Mapping[str, str]) -> str:
        return pivot("way", texts.index, {head: texts[m] for head, m in columns.items()})

    yield "### Kills\n"
    yield part({m.replace("_", " "): m for m in ("kills", "runs", "files_compared", *FAULTS)})
    yield "The stage in hand when they fell.\n"
    yield part({m: f"killed_in_{m}" for m in MOMENTS})
