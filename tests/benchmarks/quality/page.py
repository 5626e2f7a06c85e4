"""The records of the benchmark as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.cases import TIME_QUALITY_CASE, group_of
from benchmarks.quality.margins import OURS, margins
from benchmarks.quality.methods import ABLATION, TIME_QUALITY
from benchmarks.quality.pairs import pair_tables
from benchmarks.records import Record, load_records, select
from benchmarks.tables import (
    NOTHING,
    cell,
    largest,
    mean,
    ordered,
    per_stain,
    stains_of,
    table,
)
from wsi_pgdips.errors import OutputError

UNBLENDED = ("ablation-no-blending", "ablation-no-slide-prior")
GROUPS = {
    "easy": "Easy phantoms",
    "hard": "Hard phantoms",
    "drift": "Phantoms whose S, M and B drift",
    "real": "Phantoms on the tissue of real slides",
}
_INTRODUCTION = """# Quality

Written by `wsi-pgdips bench page` from `{records}`; [results/README.md](results/README.md) says how
the records are made and what each method and metric is. Figures are means over seeds, ± their
standard deviation. q is in optical density.
"""
_PHANTOMS = """## Exact truth: phantoms

Synthetic slides whose q, S(x) and B(x) are known at every pixel. Methods start from library vectors
that are about 9 degrees off. Blur costs here.

- **RMSE** of q over tissue pixels, per stain; **x oracle**: joint RMSE over that of non-negative
  least squares under the true S(x) and B(x). It can be below 1: the oracle knows S and B, not the
  noise.
- **crosstalk**: how much of another stain's truth is found in a stain's error, largest over stains.
- **angle** of S to the truth, degrees per stain. **B**: largest error on tissue tiles.
- **seam**: 99th percentile of the step across tile borders of q less the same render under the
  slide's constants (for linear methods, that of `closed-constant`), largest over stains; in
  brackets the mean of the same across lines where no tile ends. Methods that smooth, and the
  phantom's own JPEG tiles, which end where tiles do, make steps of their own against a closed form.
  **own seam**: as the run measures it.
"""


def write_page(records: Path, page: Path) -> None:
    """Render a file of records; replaces the page.

    Raises:
        SettingsError: the records cannot be read. OutputError: the page cannot be written.
    """
    text = render(load_records(records), records.name)
    partial = page.with_name(page.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(page)
    except OSError as error:
        raise OutputError("the page cannot be written", where=page, found=error.strerror) from None


def render(records: Sequence[Record], name: str = "quality.json") -> str:
    """The page: what there are no records of is left out."""
    phantoms = [r for r in select(records, kind="phantom") if r["case"] != TIME_QUALITY_CASE]
    parts = [_INTRODUCTION.format(records=f"results/{name}")]
    if phantoms:
        parts += [*margins(phantoms), _PHANTOMS, *_phantom_tables(phantoms)]
    fields = select(phantoms, metric="gap_closed")
    if fields:
        parts.append(_fields(phantoms))
    pairs = [r for kind in ("paired", "semisynthetic") for r in select(records, kind=kind)]
    if pairs:
        parts += pair_tables(pairs)
    shifts = select(records, kind="consistency")
    if shifts:
        parts.append(_shifts(shifts))
    timed = select(records, case=TIME_QUALITY_CASE)
    if timed:
        parts.append(_time_quality(timed))
    return "\n".join(parts)


def _phantom_tables(records: Sequence[Record]) -> list[str]:
    parts = []
    cases = ordered(r["case"] for r in records)
    for group, title in GROUPS.items():
        members = [case for case in cases if group_of(case) == group]
        if members:
            parts.append(f"### {title}\n")
        for case in members:
            parts += [
                _phantom(case, select(records, case=case)),
                _blurs(select(records, case=case)),
            ]
    return parts


def _phantom(case: str, records: Sequence[Record]) -> str:
    stains = stains_of(records)
    seeds = len({r["seed"] for r in records})
    rows = []
    for method in ordered(r["method"] for r in records):
        own = select(records, method=method, blur_px=0)
        rows.append(
            [
                method,
                per_stain(own, "rmse", stains),
                cell(own, "rmse_joint_over_oracle", digits=2),
                largest(own, "crosstalk", stains, 3),
                per_stain(own, "angle_deg", stains, 1),
                cell(own, "background_od", digits=3),
                _seam(own, stains),
                largest(own, "seam_own_od", stains),
            ]
        )
    header = ["method", "RMSE", "x oracle", "crosstalk", "angle", "B", "seam", "own seam"]
    said = f"#### {case}\n\n{', '.join(stains)}; {seeds} seed{'s' if seeds > 1 else ''}.\n\n"
    return said + table(header, rows)


def _seam(records: Sequence[Record], stains: Sequence[str]) -> str:
    at, beside = (largest(records, m, stains) for m in ("seam_step_od", "seam_control_od"))
    return at if beside == NOTHING else f"{at} ({beside})"


def _blurs(records: Sequence[Record]) -> str:
    """Joint RMSE at equal blur."""
    sigmas = sorted({r["blur_px"] for r in records})
    rows = []
    for method in ordered(r["method"] for r in records if r["blur_px"]):
        own = select(records, method=method)
        rows.append([method, *(cell(select(own, blur_px=s), "rmse_joint") for s in sigmas)])
    header = ["joint RMSE, blurred by", *(f"{s:g} px" for s in sigmas)]
    return table(header, rows)


def _fields(records: Sequence[Record]) -> str:
    rows = []
    for case in ordered(r["case"] for r in select(records, metric="gap_closed")):
        own = select(records, case=case, blur_px=0)
        joint = [
            cell(select(own, method=f"fields-{f}"), "rmse_joint")
            for f in ("constant", "blended", "oracle")
        ]
        blended = select(own, method="fields-blended")
        each = per_stain(blended, "gap_closed", stains_of(own), 2)
        rows.append([case, *joint, cell(blended, "gap_closed", digits=2), each])
    header = ["case", "constant", "blended", "true fields", "gap closed", "per stain"]
    said = (
        "## What the fields are worth\n\nThe render of `balanced`, with one network, under the "
        "slide's constants, the blended fields and the true fields: joint RMSE, and the share of "
        "the way that the blended fields go; none where the true fields are no better.\n\n"
    )
    return said + table(header, rows)


def _shifts(records: Sequence[Record]) -> str:
    methods = ordered(r["method"] for r in records)
    rows = []
    for case in ordered(r["case"] for r in records):
        own = select(records, case=case)
        cells = [per_stain(select(own, method=m), "rmse", stains_of(own)) for m in methods]
        ours = mean(select(own, method=OURS), "rmse_joint")
        shares = [ours / mean(select(own, method=m), "rmse_joint") for m in UNBLENDED]
        rows.append(
            [
                case,
                ", ".join(stains_of(own)),
                *cells,
                *(f"{s:.2f}" if np.isfinite(s) else NOTHING for s in shares),
            ]
        )
    said = (
        "## The same tissue on a shifted tile grid\n\nRMS difference of q between two runs whose "
        f"tile grids are half a tile apart, per stain; then that of `{OURS}`, all stains together, "
        "as a share of what tiles without blending and tiles alone differ by.\n\n"
    )
    header = ["case", "stains", *methods, *(f"/ {m.removeprefix(ABLATION)}" for m in UNBLENDED)]
    return said + table(header, rows)


def _time_quality(records: Sequence[Record]) -> str:
    rows = []
    for method in ordered(r["method"] for r in records if r["method"] != TIME_QUALITY):
        own = select(records, method=method)
        rows.append(
            [
                method,
                cell(own, "seconds", digits=1),
                cell(own, "rmse_joint"),
                cell(own, "pcc", digits=3),
            ]
        )
    ratio = cell(select(records, method=TIME_QUALITY), "seconds_ratio", digits=0)
    said = (
        "## Time and quality\n\nOne picture of 256 x 256 pixels of a phantom, all iterations of "
        f"`paper`; it takes {ratio} times as long.\n\n"
    )
    return said + table(["method", "seconds", "joint RMSE", "PCC"], rows)
