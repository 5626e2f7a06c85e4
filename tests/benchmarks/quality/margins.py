"""Ours beside the best of the linear baselines: error, crosstalk, and error at equal blur."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from benchmarks.quality.cases import group_of
from benchmarks.quality.methods import BY_NAME
from benchmarks.records import ALL, NOTHING, distinct, means, only, prose, spreads, table

OURS = "balanced"
PROSE = prose("quality")


def margins(records: pd.DataFrame) -> list[str]:
    """Two tables of phantoms; the second only where a blur helps a linear method."""
    rows, blurred = [], []
    for case, own in records.groupby("case", sort=False):
        joint = means(only(own, metric="rmse_joint"), "method", "blur_px")
        if (OURS, 0) in joint:
            rows.append([case, group_of(case), *_joint(own, joint), *_crosstalk(own)])
            blurred += [[case, *row] for row in _at_equal_blur(own)]
    header = ["case", "group", OURS, "best linear", "best linear, blurred", "x oracle"]
    parts = [PROSE["margins"], table([*header, "crosstalk", "best linear"], rows)]
    if blurred:
        header = ["case", "stain", "linear, blurred", f"{OURS}, blurred", OURS]
        parts += [PROSE["blurred"], table(header, blurred)]
    return parts


def stains_of(records: pd.DataFrame) -> list[str]:
    """The stains, without that of figures over all of them."""
    return [stain for stain in distinct(records, "stain") if stain != ALL]


def largest(records: pd.DataFrame, metric: str, digits: int = 4) -> dict[str, str]:
    """Cells by method: the largest over stains of the means over seeds."""
    found: dict[str, float] = {}
    known = only(records, metric=metric, stain=tuple(stains_of(records)))
    for (method, _), value in means(known, "method", "stain").items():
        found[method] = max(value, found.get(method, -math.inf))
    return {method: f"{value:.{digits}f}" for method, value in found.items()}


def _joint(records: pd.DataFrame, joint: Mapping[tuple[str, float], float]) -> Iterator[str]:
    """Ours, the best linear methods without and with a blur, and ours over the oracle."""
    ours = joint[OURS, 0]
    yield f"{ours:.4f}"
    for blurred in (False, True):
        linear = [k for k in joint if is_linear(k[0]) and (k[1] > 0) == blurred]
        if linear:
            yield _beside(joint, min(linear, key=lambda k: joint[k]), ours)
        else:
            yield NOTHING
    plain = only(records, blur_px=0)
    yield spreads(plain, "rmse_joint_over_oracle", 2).get(OURS, NOTHING)


def _crosstalk(records: pd.DataFrame) -> list[str]:
    """Ours, and the smallest of a linear method."""
    found = largest(records, "crosstalk", 3)
    linear = [method for method in distinct(records, "method") if is_linear(method)]
    best = min((m for m in linear if m in found), key=lambda m: float(found[m]), default="")
    return [found.get(OURS, NOTHING), f"{found[best]} ({best})" if best else NOTHING]


def _at_equal_blur(records: pd.DataFrame) -> Iterator[list[str]]:
    """A row for each stain of which a blur lowers a linear method's error."""
    for stain in stains_of(records):
        known = only(records, metric="rmse", stain=stain)
        own = means(known, "method", "blur_px")
        sigmas = sorted({sigma for _, sigma in own if sigma})
        helped = {
            (m, s): own[m, s] / own[OURS, s]
            for m in distinct(known, "method")
            for s in sigmas
            if is_linear(m) and (OURS, s) in own and own.get((m, s), math.inf) < own[m, 0]
        }
        if helped:
            best = min(helped, key=lambda k: helped[k])
            ours = own[OURS, best[1]]
            yield [stain, _beside(own, best, ours), f"{ours:.4f}", f"{own[OURS, 0]:.4f}"]


def _beside(errors: Mapping[tuple[str, float], float], at: tuple[str, float], ours: float) -> str:
    """``0.0503 (fixed-glass, 1 px, +89%)``: a method's error, and its excess over ours."""
    method, sigma = at
    blur = f", {sigma:g} px" if sigma else ""
    return f"{errors[at]:.4f} ({method}{blur}, {errors[at] / ours - 1:+.0%})"


def is_linear(method: str) -> bool:
    """Whether a method is one of the linear baselines."""
    return method in BY_NAME and BY_NAME[method].family == "linear"
