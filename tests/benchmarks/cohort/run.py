"""The benchmark of cohorts: what a slide costs beyond its work, and what kills do to a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.cohort.kills import measure_kills
from benchmarks.cohort.plan import measure_plan
from benchmarks.cohort.slides import measure_slides
from benchmarks.machine import device_name
from benchmarks.records import Records, Say, check_places, silent

SLIDES, QUICK_SLIDES = 200, 12
KILLS, QUICK_KILLS = 50, 5
PLANNED, QUICK_PLANNED = 5000, 200  # slides of a cohort that nobody works on


def run(
    out: Path,
    *,
    slides: int | None = None,
    kills: int | None = None,
    quick: bool = False,
    say: Say = silent,
) -> Records:
    """Measure; the file is rewritten after each part.

    Args:
        out: file of records. slides, kills: how many; None for the usual. quick: a small slice.
        say: told one line a part and a kill.

    Raises:
        OutputError: the results cannot be written. IncompleteRunError: a run failed.
    """
    check_places(out)
    count = slides or (QUICK_SLIDES if quick else SLIDES)
    killed = (QUICK_KILLS if quick else KILLS) if kills is None else kills
    device = device_name("cpu")
    records = Records("cohort", {"device": device})
    parts: dict[str, Callable[[Path], None]] = {
        f"a cohort of {count} small slides": lambda at: measure_slides(records, at, count),
        "the files of a large cohort": lambda at: measure_plan(
            records, at, QUICK_PLANNED if quick else PLANNED
        ),
        f"{killed} kills": lambda at: measure_kills(records, at, killed, say, quick=quick),
    }
    for what, measure in parts.items():
        say(f"{device}: {what}")
        with tempfile.TemporaryDirectory(prefix="wsi-pgdips-cohort-") as folder:
            measure(Path(folder))
        records.save(out)
    return records
