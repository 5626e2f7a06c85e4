"""Records of the benchmark of looks: one figure each, in one JSON file that is written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.layers.disk import write_atomic
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
    lines = ",\n".join(json.dumps(r) for r in looks.records)
    write_atomic(path, f"[\n{lines}\n]\n".encode())


def load_looks(path: Path) -> list[LookRecord]:
    """The records of a file.

    Raises:
        SettingsError: not there, not JSON, or not figures of looks.
    """
    try:
        records = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            "the results cannot be read", where=path, found=error.strerror
        ) from None
    except ValueError as error:
        raise SettingsError("the results are not valid JSON", where=path, found=error) from None
    if not isinstance(records, list) or not all(
        isinstance(r, dict) and set(LOOK_KEYS) <= set(r) for r in records
    ):
        raise SettingsError(
            "these are not results of the benchmark of looks",
            expected=f"a list of records with {', '.join(LOOK_KEYS)}",
            where=path,
        )
    return records
