"""Ours beside the best of the linear baselines: error, crosstalk, and error at equal blur."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.quality.cases import group_of
from benchmarks.quality.methods import BY_NAME
from benchmarks.records import Record, select
from benchmarks.tables import (
    NOTHING,
    cell,
    largest,
    mean,
    ordered,
    stains_of,
    table,
    values,
)

OURS = "balanced"
_MARGINS = f"""## Margins

Joint RMSE of q, and crosstalk (largest over stains) of unblurred maps. In brackets the method, and
by how much its error is larger than that of `{OURS}`.
"""
_BLURRED = f"""### At equal blur

Where a blur lowers a linear method's error of a stain: the method and sigma (pixels) that come
nearest to `{OURS}` under the same blur, and `{OURS}` as it is.
"""


def margins(records: Sequence[Record]) -> list[str]:
    """Two tables of phantoms; the second only where a blur helps a linear method."""
    cases = [
        (case, own)
        for case in ordered(r["case"] for r in records)
        if np.isfinite(mean(select(own := select(records, case=case), method=OURS), "rmse_joint"))
    ]
    header = ["case", "group", OURS, "best linear", "best linear, blurred", "x oracle"]
    header += ["crosstalk", "best linear"]
    parts = [_MARGINS, table(header, [_row(case, own) for case, own in cases])]
    rows = [row for case, own in cases for row in _at_equal_blur(case, own)]
    if rows:
        header = ["case", "stain", "linear, blurred", f"{OURS}, blurred", OURS]
        parts += [_BLURRED, table(header, rows)]
    return parts


def _row(case: str, records: Sequence[Record]) -> list[str]:
    own = select(records, metric="rmse_joint")
    ours = mean(select(own, method=OURS, blur_px=0), "rmse_joint")
    plain, blurred = (
        _best(own, lambda r: r["blur_px"] == 0),
        _best(own, lambda r: r["blur_px"] > 0),
    )
    cells = [
        f"{v:.4f} ({name}, {v / ours - 1:+.0%})" if name else NOTHING
        for v, name in (plain, blurred)
    ]
    ratio = cell(select(records, method=OURS, blur_px=0), "rmse_joint_over_oracle", digits=2)
    return [case, group_of(case), f"{ours:.4f}", *cells, ratio, *_crosstalk(records)]


def _best(records: Sequence[Record], chosen: Callable[[Record], bool]) -> tuple[float, str]:
    """Smallest mean joint RMSE of a linear method, and its name with its blur."""
    found: dict[str, list[float]] = {}
    for r in records:
        if r["value"] is not None and chosen(r) and _is_linear(r["method"]):
            found.setdefault(r["method"] + _blur(r["blur_px"]), []).append(r["value"])
    means = {name: float(np.mean(v)) for name, v in found.items()}
    name = min(means, key=lambda n: means[n], default="")
    return means.get(name, float("nan")), name


def _crosstalk(records: Sequence[Record]) -> list[str]:
    """Ours, and the smallest of a linear method."""
    stains = stains_of(records)
    found = {
        method: largest(select(records, method=method), "crosstalk", stains, 3)
        for method in ordered(r["method"] for r in records)
        if method == OURS or _is_linear(method)
    }
    ours = found.pop(OURS)
    others = {m: v for m, v in found.items() if v != NOTHING}
    best = min(others, key=lambda m: float(others[m]), default="")
    return [ours, f"{others[best]} ({best})" if best else NOTHING]


def _at_equal_blur(case: str, records: Sequence[Record]) -> Iterator[list[str]]:
    """A row for each stain of which a blur lowers a linear method's error."""
    for stain in stains_of(records):
        own = select(records, metric="rmse", stain=stain)
        means = {
            (m, s): float(np.mean(v))
            for m in ordered(r["method"] for r in own)
            for s in sorted({r["blur_px"] for r in own})
            if (v := values(select(own, method=m, blur_px=s), "rmse", stain))
        }
        helped = {
            (m, s): error / means[OURS, s]
            for (m, s), error in means.items()
            if s and _is_linear(m) and error < means[m, 0] and (OURS, s) in means
        }
        if helped:
            method, sigma = min(helped, key=lambda k: helped[k])
            error, ours = means[method, sigma], means[OURS, sigma]
            yield [
                case,
                stain,
                f"{error:.4f} ({method}{_blur(sigma)}, {error / ours - 1:+.0%})",
                f"{ours:.4f}",
                f"{means[OURS, 0]:.4f}",
            ]


def _blur(sigma: float) -> str:
    return f", {sigma:g} px" if sigma else ""


def _is_linear(method: str) -> bool:
    return method in BY_NAME and BY_NAME[method].family == "linear"
