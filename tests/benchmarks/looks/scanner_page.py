"""The part of the page of looks that shows the fields of several scanners, and its bars."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.looks import agreement
from benchmarks.looks.bars import LookBar
from benchmarks.looks.scanner_looks import (
    DISJOINT,
    GLASS,
    GROUP,
    NAMED,
    NONE,
    OURS,
    PAIRS,
    SLIDE,
    SLIDE_ONE,
)
from benchmarks.looks.scanner_run import (
    AFTER,
    AMOUNTS,
    BEFORE,
    CHANGE,
    MEDIAN_DE,
    ONE_SET,
    SCANNED,
    TRUTH_SHARE,
)
from benchmarks.records import NOTHING, distinct, lookup, number, only, table
from wsi_pgdips.looks.distance import TISSUE

RATIO = "ratio"
MAX_GROUP = {"hamamatsu": 0.6, "leica": 0.8, "zeiss": 0.6}  # median over organs
MAX_WORST, MIN_KEPT = 1.05, 0.5
KEPT_ON = ("hamamatsu", "zeiss")
MAX_MEDIAN, MAX_TENTH, MAX_SINGLE = 1.0, 1.1, 1.15
MAX_DE, MAX_WORST_DE = 3.0, 4.5
MAX_CHANGE = 0.1
SHOWN = (NONE, GLASS, SLIDE, GROUP, NAMED, PAIRS)  # organ by organ


def trials(records: pd.DataFrame) -> pd.DataFrame:
    """Every normalised scan: method, organ, scanner, part, median dE and its ratio to none."""
    own = only(records, kind=SCANNED, metric=MEDIAN_DE).copy()
    if own.empty:
        return own.assign(organ="", scanner="", ratio=math.nan)
    own[["organ", "scanner"]] = own["case"].str.split(", ", expand=True)
    alone = only(own, method=NONE).set_index("case")["value"]
    own[RATIO] = own["value"] / own["case"].map(alone)
    return own


def by_organ(own: pd.DataFrame, column: str) -> pd.Series:
    """The median over the parts of each organ: of other organs as the target, or of draws."""
    return own.groupby("organ", sort=False)[column].median()


def scanner_bars(records: pd.DataFrame) -> Iterator[LookBar]:
    """The bars of the scanners, in the page's order."""
    every = trials(records)
    for scanner in distinct(every, "scanner"):
        own = only(every, scanner=scanner)

        def ratios(method: str, own: pd.DataFrame = own) -> pd.Series:
            return only(own, method=method)[RATIO]

        group, pairs = ratios(GROUP), ratios(PAIRS)
        where = f"`{GROUP}`, {scanner}"
        limit = MAX_GROUP.get(scanner, MAX_MEDIAN)
        yield _most(f"{where}: median of none at most {limit:.2f}", _median(group), limit)
        yield _most(f"{where}: no organ above {MAX_WORST}", _largest(group), MAX_WORST)
        if scanner in KEPT_ON:
            kept = (1 - _median(group)) / (1 - _median(pairs))
            what = f"{where}: share kept of what `{PAIRS}` gains at least {MIN_KEPT}"
            yield _least(what, kept, MIN_KEPT)
        drawn = ratios(DISJOINT)
        where = f"`{DISJOINT}`, {scanner}"
        yield _most(f"{where}: median of none at most {MAX_MEDIAN:g}", _median(drawn), MAX_MEDIAN)
        tenth = float(np.percentile(drawn, 90)) if len(drawn) else math.nan
        yield _most(f"{where}: 90th percentile at most {MAX_TENTH:g}", tenth, MAX_TENTH)
        for method in (SLIDE, SLIDE_ONE):
            found, where = ratios(method), f"`{method}`, {scanner}"
            what = f"{where}: median of none at most {MAX_MEDIAN:g}"
            yield _most(what, _median(found), MAX_MEDIAN)
            yield _most(f"{where}: worst at most {MAX_SINGLE:g}", _largest(found), MAX_SINGLE)
        de, where = only(own, method=PAIRS)["value"], f"`{PAIRS}`, {scanner}"
        yield _most(f"{where}: median dE at most {MAX_DE:g}", _median(de), MAX_DE)
        yield _most(f"{where}: worst dE at most {MAX_WORST_DE:g}", _largest(de), MAX_WORST_DE)
        percent = f"{100 * MAX_CHANGE:.0f} %"
        what = f"`{GROUP}`, {scanner}: eosin over hematoxylin changes at most {percent}"
        yield _most(what, _largest(_changes(records, scanner)), MAX_CHANGE)


def scanner_tables(records: pd.DataFrame) -> str:
    """A table a scanner, a row a method; and one of all scans under the main settings."""
    every = trials(records)
    if every.empty:
        return ""
    parts = []
    for scanner in distinct(every, "scanner"):
        rows = []
        for method in distinct(only(every, scanner=scanner), "method"):
            own = only(every, scanner=scanner, method=method)
            ratio, de = by_organ(own, RATIO), by_organ(own, "value")
            cells = [ratio.median(), ratio.max(), own[RATIO].max(), de.median(), de.max()]
            name = f"**{method}**" if method in OURS else method
            rows.append([name, str(len(own)), *(number(float(v)) for v in cells)])
        header = ["method", "pictures", "of none", "worst organ", "worst picture", "dE", "worst dE"]
        parts.append(f"### {scanner.capitalize()}\n\n" + table(header, rows))
    value = lookup(only(every, part=TISSUE), "case", "method")
    shown = [m for m in SHOWN if m in set(every["method"])]
    rows = [
        [case, *(number(value(case, method)) for method in shown)]
        for case in distinct(every, "case")
    ]
    parts.append("### Scan by scan, median dE\n\n" + table(["scan", *shown], rows))
    return "\n".join(parts)


def amounts_table(records: pd.DataFrame) -> str:
    """A row a scan: eosin over hematoxylin relative to the mean of organs."""
    own = only(records, kind=AMOUNTS)
    if own.empty:
        return ""
    value = lookup(own, "case", "part", "metric")
    at = [(TISSUE, m) for m in (BEFORE, AFTER, TRUTH_SHARE, CHANGE)] + [(ONE_SET, CHANGE)]
    rows = []
    for case in distinct(own, "case"):
        *shares, change, fixed = (value(case, *where) for where in at)
        rows.append([case, *map(number, shares), _percent(change), _percent(fixed)])
    return table(["scan", "before", "after", "truth", "change", "change, one set"], rows)


def agreement_table(records: pd.DataFrame) -> str:
    """A row a pair of scanners; where the interval holds 0, the change is no difference."""
    own = only(records, kind=agreement.KIND)
    pairs = distinct(only(own, method="pair", metric="tiles"), "case")
    value = lookup(own, "case", "method", "part", "metric")
    rows = []
    for case in pairs:
        row = [case, number(value(case, "pair", TISSUE, "tiles"))]
        for method in (NONE, GROUP):
            row += [
                number(value(case, method, TISSUE, m)) for m in ("cosine", "others", "retrieval")
            ]
        for figure in agreement.FIGURES:
            ends = [value(case, GROUP, "change", f"{figure}_{end}") for end in ("low", "high")]
            row.append(verdict(*ends))
        rows.append(row)
    header = ["pair", "tiles", "cosine", "of others", "retrieval"]
    header += [f"{name} after" for name in header[2:]]
    return table([*header, *agreement.FIGURES], rows) if rows else ""


def verdict(low: float, high: float) -> str:
    """What an interval of a change says."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    word = "better" if low > 0 else "worse" if high < 0 else "no difference"
    return f"{word} ({low:+.3f} to {high:+.3f})"


def _changes(records: pd.DataFrame, scanner: str) -> pd.Series:
    own = only(records, kind=AMOUNTS, metric=CHANGE, part=TISSUE)
    return own[own["case"].str.endswith(f", {scanner}")]["value"].abs()


def _median(values: pd.Series) -> float:
    return float(values.median()) if len(values) else math.nan


def _largest(values: pd.Series) -> float:
    return float(values.max()) if len(values) else math.nan


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %" if math.isfinite(value) else NOTHING


def _most(what: str, found: float, limit: float) -> LookBar:
    if not math.isfinite(found):
        return LookBar(what)
    return LookBar(what, number(found, 4), found <= limit)


def _least(what: str, found: float, limit: float) -> LookBar:
    if not math.isfinite(found):
        return LookBar(what)
    return LookBar(what, number(found, 4), found >= limit)
