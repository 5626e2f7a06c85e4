"""Records of the benchmark of cohorts: one figure each, in one JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import load_rows, save_rows

CohortRecord = dict[str, Any]
COHORT_KEYS = ("device", "case", "how", "metric", "value")
SLIDES, PLAN, KILLS = "slides", "plan", "kills"
# where a kill may fall, in the order of a run: before it holds its output, then stage by stage
MOMENTS = ("start", "prepare", "calibrate", "fit", "blend", "render", "finalize", "end")
FAULTS = ("wrong_files", "lost_files", "left_behind", "refused_starts")


@dataclass
class CohortFigures:
    """Figures of one run of the benchmark, in the order in which they are measured.

    Args:
        device: in words.
    """

    device: str
    records: list[CohortRecord] = field(default_factory=list)

    def add(self, case: str, how: str, metric: str, value: float) -> None:
        """One figure of four digits, counts as they are; what is not finite is null."""
        shown: float | None = value
        if not isinstance(value, int):
            shown = float(f"{value:.4g}") if math.isfinite(value) else None
        row = (self.device, case, how, metric, shown)
        self.records.append(dict(zip(COHORT_KEYS, row, strict=True)))


def figure(records: Iterable[CohortRecord], **wanted: Any) -> float:
    """The figure whose keys have the wanted values, NaN where there is none."""
    for r in records:
        if all(r[key] == value for key, value in wanted.items()) and r["value"] is not None:
            return float(r["value"])
    return math.nan


def save_figures(path: Path, figures: CohortFigures) -> None:
    """Write the figures; replaces the file.

    Raises:
        OutputError: the file cannot be written.
    """
    save_rows(path, figures.records)


def load_figures(path: Path) -> list[CohortRecord]:
    """The records of a file.

    Raises:
        SettingsError: not there, not JSON, or not figures of cohorts.
    """
    return load_rows(path, COHORT_KEYS, "benchmark of cohorts")
