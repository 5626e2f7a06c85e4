"""The project's bars for a normalised look: what was found, whether it is met, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from benchmarks.looks import reading
from benchmarks.looks.methods import OURS
from benchmarks.looks.pairs import KINDS, REAL
from benchmarks.looks.scores import LAB, OD, PARTS, SSIM, STRUCTURES
from benchmarks.records import NOTHING, distinct, lookup, only
from wsi_pgdips.looks.distance import TISSUE

MIN_SSIM = 0.95
MAX_RATIO = {reading.RASTER: 3.0, reading.RANDOM: 5.0}
MIN_SELF_DB, MIN_LAYERS_DB = 60.0, 28.0
# Reinhard's matches the moments of all pixels: held against ours structure by structure
RIVALS = {"macenko": PARTS, "vahadane": PARTS, "reinhard": STRUCTURES}
SPACES = {OD: "OD", LAB: "CIELAB"}
Values = Callable[..., float]  # of kind, case, method, metric and part


@dataclass(frozen=True)
class LookBar:
    """One bar; ``met`` is None where nothing was measured."""

    what: str
    found: str = NOTHING
    met: bool | None = None

    def row(self) -> list[str]:
        """Cells of the page's table."""
        verdict = NOTHING if self.met is None else "met" if self.met else "**not met**"
        return [self.what, self.found, verdict]


def values_of(records: pd.DataFrame) -> Values:
    """The figures of records, by kind, case, method, metric and part."""
    return lookup(records, "kind", "case", "method", "metric", "part")


def bars(records: pd.DataFrame) -> Iterator[LookBar]:
    """All bars, in the page's order."""
    value = values_of(records)
    for case in cases(records, REAL):
        yield from (_below(value, case, rival) for rival in RIVALS)
        what = f"`{OURS}`, {case}: SSIM of gradients at least {MIN_SSIM:g}"
        yield _bar(what, value(REAL, case, OURS, SSIM, TISSUE), MIN_SSIM, at_least=True)
    for kind in KINDS:
        names = cases(records, kind)
        if kind != REAL and names:
            yield from (_all_below(value, kind, names, rival) for rival in RIVALS)
            yield _all_similar(value, kind, names)
    for case in distinct(only(records, metric=reading.RATIO), "case"):
        for order, limit in MAX_RATIO.items():
            what = f"reading {case}, {order}: at most {limit:g} times OpenSlide"
            found = value(reading.READING, case, order, reading.RATIO, "level 0")
            yield _bar(what, found, limit, at_least=False)
    for r in only(records, kind=reading.FAITHFUL).itertuples():
        if r.metric == reading.PSNR:
            what = f"`self`, {r.case}, {r.part}: PSNR at least {MIN_SELF_DB:g} dB"
            yield _bar(what, r.value, MIN_SELF_DB, at_least=True)
        if r.metric == reading.LAYERS_PSNR:
            what = f"layers alone, {r.case}, tissue: PSNR at least {MIN_LAYERS_DB:g} dB"
            yield _bar(what, r.value, MIN_LAYERS_DB, at_least=True)


def cases(records: pd.DataFrame, kind: str) -> list[str]:
    """The pairs of a kind."""
    return distinct(only(records, kind=kind), "case")


def ratios(value: Values, kind: str, case: str, rival: str) -> dict[tuple[str, str], float]:
    """(metric, part) -> our distance over a rival's, where both are known."""
    found = {}
    for metric in SPACES:
        for part in RIVALS.get(rival, PARTS):
            ours, other = (value(kind, case, m, metric, part) for m in (OURS, rival))
            if math.isfinite(ours) and other > 0:
                found[metric, part] = ours / other
    return found


def _below(value: Values, case: str, rival: str) -> LookBar:
    """Our distances beside a rival's on one real pair."""
    found = ratios(value, REAL, case, rival)
    where = "every distance" if RIVALS[rival] == PARTS else "distances of structures"
    what = f"`{OURS}` below `{rival}`, {case}: {where}"
    if not found:
        return LookBar(what)
    below = sum(v < 1 for v in found.values())
    (metric, part), worst = max(found.items(), key=lambda item: item[1])
    text = f"{below} of {len(found)}; at worst {worst:.2f} times ({SPACES[metric]}, {part})"
    return LookBar(what, text, below == len(found))


def _all_below(value: Values, kind: str, names: list[str], rival: str) -> LookBar:
    """Our distances beside a rival's on all pairs of a kind."""
    each = [r for case in names if (r := ratios(value, kind, case, rival))]
    every = [v for found in each for v in found.values()]
    where = "every distance" if RIVALS[rival] == PARTS else "every distance of structures"
    what = f"`{OURS}` below `{rival}`, pairs {kind}: {where}"
    if not every:
        return LookBar(what)
    pairs, below = sum(max(found.values()) < 1 for found in each), sum(v < 1 for v in every)
    text = f"{pairs} of {len(each)} pairs; {below} of {len(every)} distances"
    return LookBar(what, f"{text}, at worst {max(every):.2f} times", pairs == len(each))


def _all_similar(value: Values, kind: str, names: list[str]) -> LookBar:
    """The similarity of gradients on all pairs of a kind."""
    known = [v for case in names if math.isfinite(v := value(kind, case, OURS, SSIM, TISSUE))]
    what = f"`{OURS}`, pairs {kind}: SSIM of gradients at least {MIN_SSIM:g}"
    if not known:
        return LookBar(what)
    good = sum(v >= MIN_SSIM for v in known)
    text = f"{good} of {len(known)} pairs; at worst {min(known):.3f}"
    return LookBar(what, text, good == len(known))


def _bar(what: str, value: float, limit: float, *, at_least: bool) -> LookBar:
    if not math.isfinite(value):
        return LookBar(what)
    text = "identical" if value == reading.IDENTICAL else f"{value:.4g}"
    return LookBar(what, text, value >= limit if at_least else value <= limit)
