"""The section of the page on cameras with known spectra."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from benchmarks.quality.margins import OURS, PROSE, is_linear, largest, stains_of
from benchmarks.quality.scale_free import CAMERA
from benchmarks.records import NOTHING, distinct, lookup, means, only, pivot, spreads, table


def spectral(records: pd.DataFrame) -> Iterator[str]:
    """One table of all cameras, then a table for each; nothing without records."""
    if not len(records):
        return
    yield PROSE["spectral"]
    yield _cameras(records)
    for case, own in records.groupby("case", sort=False):
        yield _camera(case, own)


def _cameras(records: pd.DataFrame) -> str:
    known = lookup(only(records, method=CAMERA), "case", "metric")
    rows = []
    for case, own in records.groupby("case", sort=False):
        joint = means(only(own, metric="rmse_scaled_joint"), "method", "blur_px")
        row = [case, f"{100 * known(case, 'departure'):.1f} %"]
        row += [f"{known(case, 'vectors_apart_deg'):.1f}"]
        row += [f"{joint[OURS, 0]:.3f}" if (OURS, 0) in joint else NOTHING]
        for blurred in (False, True):
            linear = [k for k in joint if is_linear(k[0]) and (k[1] > 0) == blurred]
            best = min(linear, key=lambda k: joint[k], default=None)
            if best is None:
                row.append(NOTHING)
                continue
            sigma = f", {best[1]:g} px" if blurred else ""
            row.append(f"{joint[best]:.3f} ({best[0]}{sigma})")
        rows.append(row)
    header = ["camera", "departure", "vectors apart", OURS, "best linear", "best linear, blurred"]
    return table(header, rows)


def _camera(case: str, records: pd.DataFrame) -> str:
    stains, seeds = stains_of(records), records["seed"].nunique()
    own = only(records, blur_px=0)
    columns = {
        "PCC": spreads(own, "pcc", 3, stains),
        "RMSE / sd": spreads(own, "rmse_scaled", 3, stains),
        "x oracle": spreads(own, "rmse_scaled_joint_over_oracle", 2),
        "crosstalk": largest(own, "crosstalk", 3),
        "angle": spreads(own, "angle_deg", 1, stains),
        "B": spreads(own, "background_od", 3),
    }
    methods = [m for m in distinct(records, "method") if m != CAMERA]
    counted = f"{', '.join(stains)}; {seeds} seed{'s' if seeds > 1 else ''}.\n\n"
    return f"### {case}\n\n{counted}" + pivot("method", methods, columns)
