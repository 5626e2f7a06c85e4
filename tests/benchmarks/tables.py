"""Cells and rows of the benchmark's page: means over seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.records import ALL, Record, select

NOTHING = "-"


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct names in the order of their first appearance."""
    return list(dict.fromkeys(names))


def stains_of(records: Iterable[Record]) -> list[str]:
    """The stains, without that of figures over all of them."""
    return [s for s in ordered(r["stain"] for r in records) if s != ALL]


def values(records: Iterable[Record], metric: str, stain: str = ALL) -> list[float]:
    """The figures of a metric that are known."""
    return [
        r["value"] for r in select(records, metric=metric, stain=stain) if r["value"] is not None
    ]


def mean(records: Iterable[Record], metric: str, stain: str = ALL) -> float:
    """Mean over seeds; NaN where nothing is known."""
    found = values(records, metric, stain)
    return float(np.mean(found)) if found else float("nan")


def cell(records: Sequence[Record], metric: str, stain: str = ALL, digits: int = 4) -> str:
    """``mean ± standard deviation`` over seeds; without the latter for one seed."""
    found = values(records, metric, stain)
    if not found:
        return NOTHING
    text = f"{np.mean(found):.{digits}f}"
    return text if len(found) == 1 else f"{text} ± {np.std(found, ddof=1):.{digits}f}"


def per_stain(
    records: Sequence[Record], metric: str, stains: Sequence[str], digits: int = 4
) -> str:
    """Cells of several stains, ``a / b``."""
    cells = [cell(records, metric, stain, digits) for stain in stains]
    return NOTHING if all(c == NOTHING for c in cells) else " / ".join(cells)


def largest(records: Sequence[Record], metric: str, stains: Sequence[str], digits: int = 4) -> str:
    """The largest over stains of the means over seeds."""
    found = [m for s in stains if np.isfinite(m := mean(records, metric, s))]
    return f"{max(found):.{digits}f}" if found else NOTHING


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with an empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
