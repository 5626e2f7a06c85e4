"""Records of the benchmark of speed: one figure each, in one JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import load_rows, save_rows
from wsi_pgdips.errors import OutputError

SpeedRecord = dict[str, Any]
SPEED_KEYS = ("device", "case", "method", "stage", "metric", "value")
END_TO_END, ESTIMATE = "end-to-end", "estimate"
WITH_WORKERS = "fast-workers"  # the method fast, by a process of one thread on each core
SECONDS, CPU_SECONDS = "seconds_per_tile", "cpu_seconds_per_tile"


@dataclass
class Speeds:
    """Figures of one run of the benchmark on one device.

    Args:
        device: in words. say: told one line a figure.
    """

    device: str
    records: list[SpeedRecord] = field(default_factory=list)

    def add(self, case: str, method: str, stage: str, metric: str, value: float) -> None:
        """One figure of four digits; what is not finite is null."""
        rounded = float(f"{value:.4g}") if math.isfinite(value) else None
        row = (self.device, case, method, stage, metric, rounded)
        self.records.append(dict(zip(SPEED_KEYS, row, strict=True)))

    def value(self, case: str, method: str, stage: str, metric: str) -> float:
        """A figure that was added, NaN where there is none."""
        return find(self.records, case=case, method=method, stage=stage, metric=metric)


def find(records: Iterable[SpeedRecord], **wanted: Any) -> float:
    """The figure whose keys have the wanted values, NaN where there is none."""
    for r in records:
        if all(r[key] == value for key, value in wanted.items()) and r["value"] is not None:
            return float(r["value"])
    return math.nan


def save_speeds(path: Path, speeds: Speeds) -> None:
    """Write the figures in place of those of the same device; other devices' stay.

    Raises:
        OutputError: the file cannot be written. SettingsError: it holds something else.
    """
    others = [r for r in load_speeds(path) if r["device"] != speeds.device] if path.exists() else []
    save_rows(path, others + speeds.records)


def load_speeds(path: Path) -> list[SpeedRecord]:
    """The records of a file.

    Raises:
        SettingsError: not there, not JSON, or not figures of speed.
    """
    return load_rows(path, SPEED_KEYS, "benchmark of speed")


def check_folder(path: Path) -> None:
    """Refuse a place that cannot be written before hours are spent.

    Raises:
        OutputError: the folder is missing.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError("the folder of the results does not exist", where=path.absolute().parent)
