"""Records of the benchmark of looks: one figure each, in one JSON file that is written whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import load_rows, save_rows
from wsi_pgdips.looks.distance import DAB, NUCLEI, STROMA, TISSUE

LookRecord = dict[str, Any]
LOOK_KEYS = ("kind", "case", "method", "part", "metric", "value")
REAL, SIMULATED, ELSEWHERE, PHANTOM = "real", "simulated", "elsewhere", "phantom"
PAIR_KINDS = (REAL, SIMULATED, ELSEWHERE, PHANTOM)
READING, FAITHFUL = "reading", "faithful"
IDENTICAL = 999.0  # stands for the infinite PSNR of equal bytes
OD, LAB, SSIM = "w1_od", "w1_lab", "gradient_ssim"
TEXTURE, NUCLEAR = "drift_texture", "drift_nuclei"
STRUCTURES = (NUCLEI, STROMA, DAB)
PARTS = (TISSUE, *STRUCTURES)
NONE, OURS = "none", "typical"
PEERS = ("macenko", "vahadane", "reinhard")
METHODS = (NONE, *PEERS, OURS, "augmented", "percentile", "stains")


@dataclass
class Looks:
    """Figures of one run of the benchmark."""

    records: list[LookRecord] = field(default_factory=list)

    def add(
        self, kind: str, case: str, method: str, metric: str, value: float, part: str = TISSUE
    ) -> None:
        """One figure of four digits; what is not finite is null."""
        rounded = float(f"{value:.4g}") if math.isfinite(value) else None
        row = (kind, case, method, part, metric, rounded)
        self.records.append(dict(zip(LOOK_KEYS, row, strict=True)))


def figure(records: Iterable[LookRecord], **wanted: Any) -> float:
    """The figure whose keys have the wanted values, NaN where there is none."""
    for r in records:
        if all(r[key] == value for key, value in wanted.items()) and r["value"] is not None:
            return float(r["value"])
    return math.nan


def save_looks(path: Path, looks: Looks) -> None:
    """Write the figures; replaces the file.

    Raises:
        OutputError: the file cannot be written.
    """
    save_rows(path, looks.records)


def load_looks(path: Path) -> list[LookRecord]:
    """The records of a file.

    Raises:
        SettingsError: not there, not JSON, or not figures of looks.
    """
    return load_rows(path, LOOK_KEYS, "benchmark of looks")
