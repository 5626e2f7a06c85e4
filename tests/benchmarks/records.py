"""Records of the benchmark: one figure each, kept in one JSON file that is rewritten whole."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import load_rows, save_rows
from wsi_pgdips.errors import OutputError

Record = dict[str, Any]
KEYS = ("case", "kind", "seed", "method", "blur_px", "stain", "metric", "value", "seconds")
KINDS = ("phantom", "paired", "semisynthetic", "consistency")
ALL = "all"  # the stain of a figure over all stains


@dataclass
class Sheet:
    """Records of one case and seed, in the order in which they are measured.

    Args:
        kind: one of ``KINDS``. seed: of the phantom; None where there is nothing to draw.
    """

    case: str
    kind: str
    seed: int | None
    records: list[Record] = field(default_factory=list)

    def add(
        self,
        method: str,
        metric: str,
        value: float,
        stain: str = ALL,
        *,
        blur_px: float = 0,
        seconds: float | None = None,
    ) -> None:
        """One figure of four digits; what is not finite is recorded as null.

        Args:
            blur_px: sigma of the Gaussian over the map. seconds: wall time of the method.
        """
        record = (
            self.case,
            self.kind,
            self.seed,
            method,
            blur_px,
            stain,
            metric,
            float(f"{value:.4g}") if math.isfinite(value) else None,
            None if seconds is None else float(f"{seconds:.3g}"),
        )
        self.records.append(dict(zip(KEYS, record, strict=True)))

    def add_each(
        self, method: str, metric: str, labels: Sequence[str], values: Iterable[float], **how: Any
    ) -> None:
        """One figure per stain."""
        for label, value in zip(labels, values, strict=True):
            self.add(method, metric, float(value), label, **how)


@dataclass
class Results:
    """All records of a file. Use ``open_results``."""

    path: Path
    records: list[Record]

    def methods(self, kind: str, case: str, seed: int | None) -> set[str]:
        """Methods of which this case and seed has records."""
        return {r["method"] for r in self.records if _place(r) == (kind, case, seed)}

    def merge(self, sheet: Sheet) -> None:
        """Take a sheet in place of the records of the same case, seed and methods; write the file.

        Raises:
            OutputError: the file cannot be written.
        """
        place = (sheet.kind, sheet.case, sheet.seed)
        new = {r["method"] for r in sheet.records}
        kept = [r for r in self.records if _place(r) != place or r["method"] not in new]
        self.records = kept + sheet.records
        save_rows(self.path, self.records)


def open_results(path: Path, *, keep: bool) -> Results:
    """Results to add to: empty, or with ``keep`` what the file holds.

    Raises:
        OutputError: the folder is missing. SettingsError: kept records that cannot be read.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError("the folder of the results does not exist", where=path.absolute().parent)
    return Results(path, load_records(path) if keep and path.exists() else [])


def load_records(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        SettingsError: not there, not JSON, or not records of the benchmark.
    """
    return load_rows(path, KEYS, "benchmark")


def select(
    records: Iterable[Record],
    *,
    methods: Collection[str] | None = None,
    **wanted: Any,
) -> list[Record]:
    """Records whose keys have the wanted values."""
    return [
        r
        for r in records
        if (methods is None or r["method"] in methods)
        and all(r[key] == value for key, value in wanted.items())
    ]


def _place(record: Record) -> tuple[Any, ...]:
    return record["kind"], record["case"], record["seed"]
