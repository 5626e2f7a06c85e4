"""The records of the benchmark of quality as one page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.quality.cases import TIME_QUALITY_CASE, group_of
from benchmarks.quality.margins import OURS, PROSE, largest, margins, stains_of
from benchmarks.quality.methods import ABLATION, TIME_QUALITY
from benchmarks.quality.pictures import REGISTRATION
from benchmarks.quality.spectral_page import spectral
from benchmarks.records import NOTHING, distinct, means, only, pivot, spreads, table

UNBLENDED = ("ablation-no-blending", "ablation-no-slide-prior")
GROUPS = {
    "easy": "Easy phantoms",
    "hard": "Hard phantoms",
    "drift": "Phantoms whose S, M and B drift",
    "foreign": "Easy phantoms with ink, carbon and black tiles on them",
    "real": "Phantoms on the tissue of real slides",
}
# heads of columns of pairs -> metric, blur of the map, digits
_OF_PAIRS = {
    "PCC =": ("pcc_equal", 0, 3),
    "SSIM =": ("ssim_equal", 0, 3),
    "sigma": ("equal_sigma_px", 0, 2),
    "PCC": ("pcc", 0, 3),
    "SSIM": ("ssim", 0, 3),
    "sharpness": ("sharpness", 0, 3),
    "PCC, 2 px": ("pcc", 2, 3),
    "SSIM, 2 px": ("ssim", 2, 3),
}


def render(records: pd.DataFrame, name: str, images: Path) -> str:
    """The page: what there are no records of is left out.

    Args:
        name: of the file of records, as the page calls it. images: where plots go; there are none.
    """
    timed = records["case"] == TIME_QUALITY_CASE
    phantoms = only(records[~timed], kind="phantom")
    parts = [PROSE["introduction"].format(records=name)]
    if len(phantoms):
        parts += [*margins(phantoms), PROSE["phantoms"], *_phantoms(phantoms)]
    parts += [*_fields(phantoms), *spectral(only(records, kind="spectral"))]
    parts += [*_pairs(only(records, kind=("paired", "semisynthetic")))]
    shifts = only(records, kind="consistency")
    if len(shifts):
        parts += [PROSE["shifts"], _shifts(shifts)]
    if timed.any():
        parts += _time_quality(records[timed])
    return "\n".join(parts)


def _phantoms(records: pd.DataFrame) -> Iterator[str]:
    cases = distinct(records, "case")
    for group, title in GROUPS.items():
        members = [case for case in cases if group_of(case) == group]
        if members:
            yield f"### {title}\n"
        for case in members:
            own = only(records, case=case)
            yield _phantom(case, own)
            blurred = own[own["blur_px"] > 0]
            columns = {
                f"{s:g} px": spreads(only(own, blur_px=s), "rmse_joint")
                for s in sorted(own["blur_px"].unique())
            }
            yield pivot("joint RMSE, blurred by", distinct(blurred, "method"), columns)


def _phantom(case: str, records: pd.DataFrame) -> str:
    stains, seeds = stains_of(records), records["seed"].nunique()
    own = only(records, blur_px=0)
    seam, control = largest(own, "seam_step_od"), largest(own, "seam_control_od")
    columns = {
        "RMSE": spreads(own, "rmse", stains=stains),
        "x oracle": spreads(own, "rmse_joint_over_oracle", 2),
        "crosstalk": largest(own, "crosstalk", 3),
        "angle": spreads(own, "angle_deg", 1, stains),
        "B": spreads(own, "background_od", 3),
        "seam": {m: f"{seam.get(m, NOTHING)} ({v})" for m, v in control.items()},
        "own seam": largest(own, "seam_own_od"),
    }
    columns["seam"] = {**seam, **columns["seam"]}
    counted = f"{', '.join(stains)}; {seeds} seed{'s' if seeds > 1 else ''}.\n\n"
    return f"#### {case}\n\n{counted}" + pivot("method", distinct(records, "method"), columns)


def _fields(records: pd.DataFrame) -> Iterator[str]:
    cases = distinct(only(records, metric="gap_closed"), "case")
    if not cases:
        return
    own, heads = only(records, case=tuple(cases), blur_px=0), ("constant", "blended", "true fields")
    columns = {
        head: spreads(only(own, method=f"fields-{fields}"), "rmse_joint", row="case")
        for head, fields in zip(heads, ("constant", "blended", "oracle"), strict=True)
    }
    blended = only(own, method="fields-blended")
    columns["gap closed"] = spreads(blended, "gap_closed", 2, row="case")
    columns["per stain"] = {
        case: cell
        for case in cases
        for cell in spreads(
            only(blended, case=case), "gap_closed", 2, stains_of(only(own, case=case))
        ).values()
    }
    yield PROSE["fields"]
    yield pivot("case", cases, columns)


def _pairs(records: pd.DataFrame) -> Iterator[str]:
    """One table of all pairs, then a table for each pair of map and truth."""
    if not len(records):
        return
    yield PROSE["pairs"]
    methods = [m for m in distinct(records, "method") if m != REGISTRATION]
    groups = list(only(records, kind="paired").groupby("case", sort=False))
    # pictures with nothing but their field to tell them apart share a table
    shared = only(records, kind="semisynthetic")
    cases = distinct(shared, "case")
    if cases:
        title = cases[0] if len(cases) == 1 else f"semisynthetic, {len(cases)} pictures"
        groups.append((title, shared))
    yield _equal_sharpness(records, methods)
    for title, own in groups:
        for label in stains_of(own):
            yield f"### {title}: {label}\n\n" + _pair(only(own, stain=label), label)


def _equal_sharpness(records: pd.DataFrame, methods: list[str]) -> str:
    """Mean figures at equal sharpness, by pair of map and truth, and of all such pairs."""
    plain = means(only(records, blur_px=0), "method", "kind", "stain", "metric")
    pairs = [
        (kind, label)
        for kind in distinct(records, "kind")
        for label in stains_of(only(records, kind=kind))
    ]
    rows = []
    for method in methods:
        found = [
            [plain.get((method, *pair, metric), np.nan) for metric in ("pcc_equal", "ssim_equal")]
            for pair in pairs
        ]
        if np.isfinite(found).all():
            found.append(list(np.mean(found, axis=0)))
            rows.append([method, *(f"{pcc:.4f} / {ssim:.4f}" for pcc, ssim in found)])
    header = ["PCC / SSIM =", *(f"{label}, {kind}" for kind, label in pairs), "mean"]
    return "### All pairs at equal sharpness\n\n" + table(header, rows)


def _pair(records: pd.DataFrame, label: str) -> str:
    shifts = (only(records, metric=f"shift_{axis}_px")["value"].dropna() for axis in "yx")
    moved = ", ".join(f"({y:g}, {x:g})" for y, x in zip(*shifts, strict=True))
    columns = {
        head: spreads(only(records, blur_px=blur), metric, digits, [label])
        for head, (metric, blur, digits) in _OF_PAIRS.items()
    }
    methods = [m for m in distinct(records, "method") if m != REGISTRATION]
    return f"Moved by (y, x) {moved} pixels.\n\n" + pivot("method", methods, columns)


def _shifts(records: pd.DataFrame) -> str:
    methods = distinct(records, "method")
    header = ["case", "stains", *methods, *(f"/ {m.removeprefix(ABLATION)}" for m in UNBLENDED)]
    rows = []
    for case, own in records.groupby("case", sort=False):
        cells = spreads(own, "rmse", stains=stains_of(own))
        joint = means(only(own, metric="rmse_joint"), "method")
        shares = (
            f"{joint[OURS] / joint[m]:.2f}" if {OURS, m} <= joint.keys() else NOTHING
            for m in UNBLENDED
        )
        stains = ", ".join(stains_of(own))
        rows.append([case, stains, *(cells.get(m, NOTHING) for m in methods), *shares])
    return table(header, rows)


def _time_quality(records: pd.DataFrame) -> list[str]:
    ratio = spreads(records, "seconds_ratio", 0).get(TIME_QUALITY, NOTHING)
    columns = {
        "seconds": spreads(records, "seconds", 1),
        "joint RMSE": spreads(records, "rmse_joint"),
        "PCC": spreads(records, "pcc", 3),
    }
    methods = [m for m in distinct(records, "method") if m != TIME_QUALITY]
    return [PROSE["time_quality"].format(ratio=ratio), pivot("method", methods, columns)]
