"""The records of the benchmark of looks as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.looks import reading
from benchmarks.looks.bars import SPACES, Values, bars, cases, values_of
from benchmarks.looks.methods import METHODS, NONE, OURS
from benchmarks.looks.pairs import ELSEWHERE, KINDS, PHANTOM, REAL, SIMULATED
from benchmarks.looks.scanner_page import (
    agreement_table,
    amounts_table,
    scanner_bars,
    scanner_tables,
)
from benchmarks.looks.scores import NUCLEAR, PARTS, SSIM, TEXTURE
from benchmarks.records import NOTHING, distinct, lookup, number, only, prose, table
from wsi_pgdips.looks.distance import TISSUE

IMAGE, SCANNERS_IMAGE, SLIDES_IMAGE = "looks.png", "multiscanner.png", "normalized.png"
PROSE = prose("looks")
TITLES = {
    REAL: "The real pair",
    SIMULATED: "Simulated scanners",
    ELSEWHERE: "Simulated scanners, other tissue as the target",
    PHANTOM: "A phantom in two laboratories",
}


def render(records: pd.DataFrame, name: str, images: Path) -> str:
    """The page: what there are no records of is left out.

    Args:
        name: of the file of records, as the page calls it.
        images: folder of the figures of pictures, each of which is shown where it is there.
    """
    parts, value = [PROSE["introduction"].format(records=name)], values_of(records)
    rows = [bar.row() for bar in (*scanner_bars(records), *bars(records))]
    if rows:
        heading = "## Bars\n\nWhat the project set itself.\n\n"
        parts.append(heading + table(["bar", "found", "met?"], rows))
    parts += _scanners(records, images)
    if (images / SLIDES_IMAGE).exists():
        parts.append(
            f"{PROSE['slides']}\n![Slides before and after]({images.name}/{SLIDES_IMAGE})\n"
        )
    if (images / IMAGE).exists():
        parts.append(
            f"## Pictures of pairs\n\n![One crop under each method]({images.name}/{IMAGE})\n"
        )
    shown = {kind: found for kind in KINDS if (found := cases(records, kind))}
    if shown:
        parts.append("## In short\n\n" + _short(records, value, shown))
    for kind, found in shown.items():
        parts += [f"## {TITLES[kind]}\n\n{PROSE[kind]}"]
        parts += [_pair(only(records, kind=kind, case=case), kind, case) for case in found]
    parts += _reading(only(records, kind=reading.READING))
    parts += _faithful(only(records, kind=reading.FAITHFUL))
    return "\n".join(parts)


def _scanners(records: pd.DataFrame, images: Path) -> Iterator[str]:
    """The fields of several scanners: colours, pictures, amounts, and how alike they are seen."""
    for name, text in (
        ("scanners", scanner_tables(records)),
        ("amounts", amounts_table(records)),
        ("agreement", agreement_table(records)),
    ):
        if text:
            yield PROSE[name]
            yield text
        if text and name == "scanners" and (images / SCANNERS_IMAGE).exists():
            yield f"{PROSE['sheet']}\n![Before and after]({images.name}/{SCANNERS_IMAGE})\n"


def _short(records: pd.DataFrame, value: Values, shown: dict[str, list[str]]) -> str:
    """The share that is left of each distance, geometric mean over the pairs of a kind."""
    found = []
    for kind, names in shown.items():
        parts = _parts(only(records, kind=kind))
        rows = []
        for method in METHODS[1:]:
            left = [_mean_left(value, kind, names, method, s, p) for s in SPACES for p in parts]
            rows.append([_named(method), *(number(v, 2) for v in left)])
        header = ["method", *(f"{space}, {part}" for space in SPACES.values() for part in parts)]
        found.append(f"{TITLES[kind]}, {len(names)} pairs.\n\n" + table(header, rows))
    return PROSE["short"] + "\n" + "\n".join(found)


def _mean_left(
    value: Values, kind: str, names: Sequence[str], method: str, metric: str, part: str
) -> float:
    logs = []
    for case in names:
        own, none = (value(kind, case, m, metric, part) for m in (method, NONE))
        if own > 0 and none > 0:
            logs.append(math.log(own / none))
    return math.exp(float(np.mean(logs))) if logs else math.nan


def _parts(records: pd.DataFrame) -> list[str]:
    """Tissue, and those of its structures that have a known distance."""
    known = set(only(records, metric=tuple(SPACES)).dropna(subset="value")["part"])
    return [part for part in PARTS if part in known]


def _pair(own: pd.DataFrame, kind: str, case: str) -> str:
    value, parts = values_of(own), _parts(own)
    header = ["method", *(f"{s}, {p}" for s in ("OD x 1000", "CIELAB") for p in parts)]
    rows = []
    for method in METHODS:
        cells = [
            value(kind, case, method, metric, part) * scale
            for metric, scale in zip(SPACES, (1000, 1), strict=True)
            for part in parts
        ]
        cells += [value(kind, case, method, m, TISSUE) for m in (SSIM, TEXTURE, NUCLEAR)]
        rows.append([_named(method), *map(number, cells)])
    shares = ", ".join(
        f"{part} {share:.1%}"
        for part in PARTS
        if math.isfinite(share := value(kind, case, "pair", "share", part))
    )
    tiles = number(value(kind, case, "pair", "tiles", TISSUE))
    heading = f"### {case}\n\nOf the picture: {shares}. Features of {tiles} tiles.\n\n"
    return heading + table([*header, "SSIM", "drift, texture", "drift, nuclei"], rows)


def _reading(own: pd.DataFrame) -> Iterator[str]:
    value, metrics = (
        lookup(own, "case", "method", "metric"),
        (reading.OPENSLIDE_MS, reading.NORMALIZED_MS, reading.RATIO),
    )
    rows = [
        [case, order, *(number(value(case, order, m)) for m in (*metrics, "reads"))]
        for case in distinct(only(own, metric=reading.RATIO), "case")
        for order in (reading.RASTER, reading.RANDOM)
    ]
    if rows:
        device = next(iter(distinct(only(own, metric="machine"), "method")), NOTHING)
        header = ["slide", "order", "OpenSlide, ms", "normalised, ms", "ratio", "places"]
        yield PROSE["reading"].format(device=device)
        yield table(header, rows)


def _faithful(own: pd.DataFrame) -> Iterator[str]:
    if len(own):
        rows = [[r.case, r.method, r.part, _decibel(r.value)] for r in own.itertuples()]
        yield PROSE["true"]
        yield table(["slide", "what", "where", "PSNR, dB"], rows)


def _decibel(value: float) -> str:
    if not math.isfinite(value):
        return NOTHING
    if value == reading.IDENTICAL:
        return f"{value:g} (identical bytes)"
    return f"{value:.1f}"


def _named(method: str) -> str:
    return f"**{method}**" if method == OURS else method
