"""The records of ``phantom_quality`` as a page of Markdown tables.

python tests/benchmarks/phantom_report.py docs/results/phantom_quality.json docs/phantom-quality.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]

INTRODUCTION = """# Quality on phantoms

Written by `tests/benchmarks/phantom_quality.py`; the records are in `{records}`, explained in
[results/README.md](results/README.md). Phantoms are synthetic slides whose concentrations q, stain
vectors S(x) and background B(x) are known exactly; methods start from library vectors 8.5 or
9 degrees off the true ones. Figures are means over {seeds} seeds, with the standard deviation over
seeds where there are several.

- **RMSE** of q on tissue pixels, OD, one figure per stain. A blurred map pays for its blur here.
- **x oracle**: joint RMSE over that of the oracle, which is told S(x) and B(x) and so shows what
  noise and JPEG leave to no one.
- **angle** of S to the truth at tile centres, weighted by tissue, degrees per stain.
- **B**: largest error of the background on tissue tiles, OD.
- **seam**: 99th percentile of the step across tile borders, OD, largest over stains; in brackets
  that of the tiles' own parameters, not blended.

"""


def write_markdown(records: Path, page: Path) -> None:
    """Render a JSON file of records; replaces the page."""
    rows: list[Record] = json.loads(records.read_text())
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(rows, records.name))


def render(records: Sequence[Record], name: str) -> str:
    """The page: an introduction and one table a case."""
    seeds = len({r["seed"] for r in records})
    parts = [INTRODUCTION.format(records=f"results/{name}", seeds=seeds)]
    for case in _ordered(r["case"] for r in records):
        parts.append(_table(case, [r for r in records if r["case"] == case]))
    return "\n".join(parts)


def _table(case: str, records: list[Record]) -> str:
    stains = [s for s in _ordered(r["stain"] for r in records) if s != "all"]
    seeds = len({r["seed"] for r in records})
    lines = [
        f"## {case}",
        "",
        f"{', '.join(stains)}; {seeds} seed{'s' if seeds > 1 else ''}.",
        "",
        "| method | RMSE | x oracle | angle | B | seam |",
        "|---|---|---|---|---|---|",
    ]
    for method in _ordered(r["method"] for r in records):
        own = [r for r in records if r["method"] == method]

        def per_stain(metric: str, digits: int, own: list[Record] = own) -> str:
            cells = [_cell(own, metric, stain, digits) for stain in stains]
            return " / ".join(cells) if any(c != "-" for c in cells) else "-"

        def largest(metric: str, own: list[Record] = own) -> str:
            means = [_values(own, metric, stain) for stain in stains]
            known = [float(np.mean(v)) for v in means if v]
            return f"{max(known):.4f}" if known else "-"

        seam, unblended = largest("seam_step_od"), largest("seam_step_unblended_od")
        cells = [
            method,
            per_stain("rmse", 4),
            _cell(own, "rmse_ratio_to_oracle", "all", 2),
            per_stain("angle_deg", 1),
            _cell(own, "background_od", "all", 3),
            seam if unblended == "-" else f"{seam} ({unblended})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(records: Iterable[Record], metric: str, stain: str, digits: int) -> str:
    values = _values(records, metric, stain)
    if not values:
        return "-"
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def _values(records: Iterable[Record], metric: str, stain: str) -> list[float]:
    return [
        r["value"]
        for r in records
        if r["metric"] == metric and r["stain"] == stain and r["value"] is not None
    ]


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    write_markdown(Path(sys.argv[1]), Path(sys.argv[2]))
