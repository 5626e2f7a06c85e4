"""The benchmark of cohorts: what a slide costs beyond its work, and what kills do to a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cohort.kills import measure_kills
from benchmarks.cohort.plan import measure_plan
from benchmarks.cohort.records import CohortFigures, save_figures
from benchmarks.cohort.slides import measure_slides
from benchmarks.machine import device_name
from benchmarks.speed.records import check_folder

Say = Callable[[str], None]
SLIDES, QUICK_SLIDES = 200, 12
KILLS, QUICK_KILLS = 50, 5
PLANNED, QUICK_PLANNED = 5000, 200  # slides of a cohort that nobody works on


@dataclass(frozen=True)
class CohortRequest:
    """What is to be measured.

    Attributes:
        out: file of records. slides, kills: how many; None for the usual. quick: a small slice.
    """

    out: Path
    slides: int | None = None
    kills: int | None = None
    quick: bool = False


def run_cohort_bench(request: CohortRequest, say: Say = lambda line: None) -> CohortFigures:
    """Measure; the file is rewritten after each part.

    Raises:
        OutputError: the results cannot be written. IncompleteRunError: a run failed.
    """
    check_folder(request.out)
    quick = request.quick
    slides = request.slides or (QUICK_SLIDES if quick else SLIDES)
    kills = (QUICK_KILLS if quick else KILLS) if request.kills is None else request.kills
    figures = CohortFigures(device_name("cpu"))
    parts: tuple[tuple[str, Callable[[Path], None]], ...] = (
        (f"a cohort of {slides} small slides", lambda at: measure_slides(figures, at, slides)),
        (
            "the files of a large cohort",
            lambda at: measure_plan(figures, at, QUICK_PLANNED if quick else PLANNED),
        ),
        (f"{kills} kills", lambda at: measure_kills(figures, at, kills, say, quick=quick)),
    )
    for what, measure in parts:
        say(f"{figures.device}: {what}")
        with tempfile.TemporaryDirectory(prefix="wsi-pgdips-cohort-") as folder:
            measure(Path(folder))
        save_figures(request.out, figures)
    return figures
