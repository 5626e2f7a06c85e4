"""The records of pictures with a second acquisition as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.quality.pictures import REGISTRATION
from benchmarks.records import Record, select
from benchmarks.tables import cell, mean, ordered, stains_of, table, values

_EQUAL = ("pcc_equal", "ssim_equal")
_PAIRS = """## Against a second acquisition

The same field stained or lit in another way, in register. Such scores reward blur (decision 10), so
methods are first compared at equal sharpness: every map is blurred by the Gaussian (sigma, pixels)
that brings it down to the softest method's. SSIM looks at small windows: it falls where glass is
taken off and the empty part of a map is cut to zero, though PCC rises.
"""


def pair_tables(records: Sequence[Record]) -> list[str]:
    """What all pairs say together, then a table for each pair of map and truth."""
    parts = [_PAIRS, _summary(records)]
    for kind in ("paired", "semisynthetic"):
        own = select(records, kind=kind)
        cases = ordered(r["case"] for r in own)
        # pictures of one kind with nothing but their field to tell them apart share a table
        groups = [[case] for case in cases] if kind == "paired" else [cases]
        for group in groups:
            members = [r for r in own if r["case"] in group]
            for label in stains_of(members):
                title = group[0] if len(group) == 1 else f"{kind}, {len(group)} pictures"
                parts.append(f"### {title}: {label}\n\n" + _pair(members, label))
    return parts


def _summary(records: Sequence[Record]) -> str:
    """Mean figures at equal sharpness, by pair of map and truth, and of all such pairs."""
    plain = select(records, blur_px=0)
    groups = [
        (kind, label)
        for kind in ordered(r["kind"] for r in records)
        for label in stains_of(select(records, kind=kind))
    ]
    rows = []
    for method in ordered(r["method"] for r in records if r["method"] != REGISTRATION):
        own = select(plain, method=method)
        figures = [
            [mean(select(own, kind=kind), metric, label) for metric in _EQUAL]
            for kind, label in groups
        ]
        if np.isfinite(figures).all():
            figures.append(list(np.mean(figures, axis=0)))
            rows.append([method, *(f"{pcc:.4f} / {ssim:.4f}" for pcc, ssim in figures)])
    header = ["PCC / SSIM =", *(f"{label}, {kind}" for kind, label in groups), "mean"]
    return "### All pairs at equal sharpness\n\n" + table(header, rows)


def _pair(records: Sequence[Record], label: str) -> str:
    shifts = [values(records, f"shift_{axis}_px", label) for axis in "yx"]
    moved = [f"({y:g}, {x:g})" for y, x in zip(*shifts, strict=True)]
    rows = []
    for method in ordered(r["method"] for r in records if r["method"] != REGISTRATION):
        own = select(records, method=method, stain=label)
        plain, blurred = select(own, blur_px=0), select(own, blur_px=2)
        rows.append(
            [
                method,
                cell(plain, "pcc_equal", label, 3),
                cell(plain, "ssim_equal", label, 3),
                cell(plain, "equal_sigma_px", label, 2),
                cell(plain, "pcc", label, 3),
                cell(plain, "ssim", label, 3),
                cell(plain, "sharpness", label, 3),
                cell(blurred, "pcc", label, 3),
                cell(blurred, "ssim", label, 3),
            ]
        )
    header = [
        "method",
        "PCC =",
        "SSIM =",
        "sigma",
        "PCC",
        "SSIM",
        "sharpness",
        "PCC, 2 px",
        "SSIM, 2 px",
    ]
    return f"Moved by (y, x) {', '.join(moved)} pixels.\n\n" + table(header, rows)
