"""What the project asks of a normalised look, and what was found: met or not, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.looks.reading import LAYERS_PSNR, PSNR, RANDOM, RASTER, RATIO
from benchmarks.looks.records import (
    FAITHFUL,
    IDENTICAL,
    LAB,
    OD,
    OURS,
    PAIR_KINDS,
    PARTS,
    READING,
    REAL,
    SSIM,
    STRUCTURES,
    LookRecord,
    figure,
)
from benchmarks.tables import NOTHING, ordered

MIN_SSIM = 0.95
MAX_RATIO = {RASTER: 3.0, RANDOM: 5.0}
MIN_SELF_DB, MIN_LAYERS_DB = 60.0, 28.0
# Reinhard's matches the moments of all pixels: held against ours structure by structure
RIVALS = {"macenko": PARTS, "vahadane": PARTS, "reinhard": STRUCTURES}
SPACES = {OD: "OD", LAB: "CIELAB"}


@dataclass(frozen=True)
class LookBar:
    """One bar; ``met`` is None where nothing was measured."""

    what: str
    found: str
    met: bool | None

    def row(self) -> list[str]:
        """Cells of the page's table."""
        verdict = NOTHING if self.met is None else "met" if self.met else "**not met**"
        return [self.what, self.found, verdict]


def bars(records: Sequence[LookRecord]) -> Iterator[LookBar]:
    """All bars, in the page's order."""
    for case in cases(records, REAL):
        yield from _against_rivals(records, REAL, case)
        value = figure(records, kind=REAL, case=case, method=OURS, metric=SSIM)
        what = f"`{OURS}`, {case}: SSIM of gradients at least {MIN_SSIM:g}"
        yield _bar(what, value, MIN_SSIM, at_least=True)
    for kind in PAIR_KINDS:
        if kind != REAL and cases(records, kind):
            yield from _counts(records, kind)
    for case in ordered(r["case"] for r in records if r["metric"] == RATIO):
        for order, limit in MAX_RATIO.items():
            value = figure(records, kind=READING, case=case, method=order, metric=RATIO)
            what = f"reading {case}, {order}: at most {limit:g} times OpenSlide"
            yield _bar(what, value, limit, at_least=False)
    for r in records:
        if r["kind"] == FAITHFUL and r["metric"] == PSNR:
            what = f"`self`, {r['case']}, {r['part']}: PSNR at least {MIN_SELF_DB:g} dB"
            yield _bar(what, _known(r), MIN_SELF_DB, at_least=True)
        if r["kind"] == FAITHFUL and r["metric"] == LAYERS_PSNR:
            what = f"layers alone, {r['case']}, tissue: PSNR at least {MIN_LAYERS_DB:g} dB"
            yield _bar(what, _known(r), MIN_LAYERS_DB, at_least=True)


def cases(records: Sequence[LookRecord], kind: str) -> list[str]:
    """The pairs of a kind."""
    return ordered(r["case"] for r in records if r["kind"] == kind)


def ratios(
    records: Sequence[LookRecord], kind: str, case: str, rival: str
) -> dict[tuple[str, str], float]:
    """(metric, part) -> our distance over a rival's, where both are known."""
    found = {}
    for metric in SPACES:
        for part in RIVALS.get(rival, PARTS):
            ours, other = (
                figure(records, kind=kind, case=case, method=m, metric=metric, part=part)
                for m in (OURS, rival)
            )
            if math.isfinite(ours) and math.isfinite(other) and other > 0:
                found[metric, part] = ours / other
    return found


def _against_rivals(records: Sequence[LookRecord], kind: str, case: str) -> Iterator[LookBar]:
    for rival, parts in RIVALS.items():
        found = ratios(records, kind, case, rival)
        where = "every distance" if len(parts) == len(PARTS) else "distances of structures"
        what = f"`{OURS}` below `{rival}`, {case}: {where}"
        if not found:
            yield LookBar(what, NOTHING, None)
            continue
        below = sum(v < 1 for v in found.values())
        (metric, part), worst = max(found.items(), key=lambda item: item[1])
        text = f"{below} of {len(found)}; at worst {worst:.2f} times ({SPACES[metric]}, {part})"
        yield LookBar(what, text, below == len(found))


def _counts(records: Sequence[LookRecord], kind: str) -> Iterator[LookBar]:
    names = cases(records, kind)
    for rival, parts in RIVALS.items():
        each = [r for c in names if (r := ratios(records, kind, c, rival))]
        every = [v for found in each for v in found.values()]
        where = "every distance" if len(parts) == len(PARTS) else "every distance of structures"
        what = f"`{OURS}` below `{rival}`, pairs {kind}: {where}"
        if not every:
            yield LookBar(what, NOTHING, None)
            continue
        pairs = sum(max(found.values()) < 1 for found in each)
        below = sum(v < 1 for v in every)
        text = (
            f"{pairs} of {len(each)} pairs; {below} of {len(every)} distances, "
            f"at worst {max(every):.2f} times"
        )
        yield LookBar(what, text, pairs == len(each))
    values = [figure(records, kind=kind, case=c, method=OURS, metric=SSIM) for c in names]
    known = [v for v in values if math.isfinite(v)]
    what = f"`{OURS}`, pairs {kind}: SSIM of gradients at least {MIN_SSIM:g}"
    if not known:
        yield LookBar(what, NOTHING, None)
    else:
        good = sum(v >= MIN_SSIM for v in known)
        text = f"{good} of {len(known)} pairs; at worst {min(known):.3f}"
        yield LookBar(what, text, good == len(known))


def _bar(what: str, value: float, limit: float, *, at_least: bool) -> LookBar:
    if not math.isfinite(value):
        return LookBar(what, NOTHING, None)
    text = "identical" if value == IDENTICAL else f"{value:.4g}"
    return LookBar(what, text, value >= limit if at_least else value <= limit)


def _known(record: LookRecord) -> float:
    return math.nan if record["value"] is None else float(record["value"])
