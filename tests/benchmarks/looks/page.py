"""The records of the benchmark of looks as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.looks.bars import SPACES, bars, cases
from benchmarks.looks.plots import Panel, draw_panels
from benchmarks.looks.reading import NORMALIZED_MS, OPENSLIDE_MS, RANDOM, RASTER, RATIO
from benchmarks.looks.records import (
    ELSEWHERE,
    FAITHFUL,
    IDENTICAL,
    METHODS,
    NONE,
    NUCLEAR,
    OURS,
    PAIR_KINDS,
    PARTS,
    PHANTOM,
    READING,
    REAL,
    SIMULATED,
    SSIM,
    TEXTURE,
    LookRecord,
    figure,
    load_looks,
)
from benchmarks.speed.plots import number
from benchmarks.tables import NOTHING, ordered, table
from wsi_pgdips.disk import write_atomic

IMAGE = "images/looks.png"
TITLES = {
    REAL: "The real pair",
    SIMULATED: "Simulated scanners",
    ELSEWHERE: "Simulated scanners, other tissue as the target",
    PHANTOM: "A phantom in two laboratories",
}
SAID = {
    REAL: "A Ki-67 field that a Hamamatsu and an Olympus scanner have seen, hematoxylin and DAB.",
    SIMULATED: "Crops of real slides, themselves and through the cameras of "
    "`tests/benchmarks/looks/cameras.py`. These pairs are not two real scans: what scanners do "
    "beyond colour, tone, sharpness, noise and JPEG is not in them.",
    ELSEWHERE: "The source is scored against its own field in the target's look, but methods are "
    "shown another place of the slide: nothing is gained by matching how much of each structure "
    "there is.",
    PHANTOM: "The same synthetic tissue under two sets of S, M and B, noise included.",
}
INTRODUCTION = """# Looks

Written by `wsi-pgdips bench looks-page` from `{records}`, which this made:

    wsi-pgdips bench looks --data DIR --out docs/results/looks.json --page docs/looks.md

How near a slide in another look comes to that look, beside tiatoolbox's normalisers, and what it
costs to read. `typical` is the default, `augmented` and `stains` are as PGDIPS was published,
`percentile` scales by the 99th percentiles of q.

## How it is measured

- A pair is the same tissue under two looks, in register by whole pixels. Each method sees the whole
  target and normalises the whole source. That favours methods that match all pixels' moments
  (Reinhard): both pictures hold the same share of every structure, as slides do not.
- Ours deconvolves each picture once (preset `balanced`; `fast` with `--quick`), and goes on as
  `NormalizedSlide` does.
- **W1**: Wasserstein-1 distance of the result to the truth, by channel, mean of three; in OD and
  in CIELAB, smaller is better. 512 quantiles of a sample of the pixels. Over tissue, and within
  structures: nuclei, stroma and DAB, found once per pair in source and truth by the library's
  fixed vectors and Otsu's threshold, where both agree: no method has a part in it.
- **SSIM** of the length of the gradient of L with that of the source: whether texture is kept. Each
  gradient picture is over its own standard deviation, since contrast is what a look may change.
- **Drift** of features on tiles of 256 pixels: mean over features of |difference of means to the
  target| over the standard deviation over the target's tiles. *Texture*: GLCM (contrast,
  homogeneity, energy, correlation) and LBP of L; sharpness and noise of a camera are in it, and
  no change of colour takes them out. *Nuclei*: number, area, eccentricity, solidity and mean
  hematoxylin, found at the threshold of the target. 0 is perfect.
- Figures that cannot be had (a structure of fewer than 500 pixels) are `-`.
"""


def write_looks_page(results: Path, output: Path, panels: Sequence[Panel] = ()) -> None:
    """Render a file of records; with the rows of the figure draw that too. Replaces them.

    Raises:
        SettingsError: the records cannot be read. OutputError: a file cannot be written.
    """
    records = load_looks(results)
    image = output.parent / IMAGE
    if panels:
        image.parent.mkdir(exist_ok=True)
        draw_panels(panels, image)
    here, folder = results.resolve(), output.resolve().parent
    named = here.relative_to(folder).as_posix() if here.is_relative_to(folder) else here.name
    write_atomic(output, render_looks(records, named, pictured=image.exists()).encode())


def render_looks(
    records: Sequence[LookRecord], name: str = "looks.json", *, pictured: bool = False
) -> str:
    """The page: what there are no records of is left out."""
    parts = [INTRODUCTION.format(records=name)]
    rows = [bar.row() for bar in bars(records)]
    if rows:
        said = "What the project set itself.\n\n"
        parts.append(f"## Bars\n\n{said}" + table(["bar", "found", "met?"], rows))
    if pictured:
        parts.append(f"## Pictures\n\n![One crop under each method]({IMAGE})\n")
    shown = [kind for kind in PAIR_KINDS if cases(records, kind)]
    if shown:
        parts.append("## In short\n\n" + _short(records, shown))
    for kind in shown:
        parts += [f"## {TITLES[kind]}\n\n{SAID[kind]}\n", *_tables(records, kind)]
    parts += [*_reading(records), *_faithful(records)]
    return "\n".join(parts)


def _short(records: Sequence[LookRecord], kinds: Sequence[str]) -> str:
    """What is left of each distance, geometric mean over the pairs of a kind."""
    found = []
    for kind in kinds:
        rows, parts = [], _parts([r for r in records if r["kind"] == kind])
        for method in METHODS[1:]:
            left = [
                _mean_left(records, kind, method, metric, part)
                for metric in SPACES
                for part in parts
            ]
            rows.append([_named(method), *(number(v, 2) for v in left)])
        heading = f"{TITLES[kind]}, {len(cases(records, kind))} pairs.\n\n"
        header = ["method", *(f"{space}, {part}" for space in SPACES.values() for part in parts)]
        found.append(heading + table(header, rows))
    said = "W1 over that of the source as it is (1: nothing gained), geometric mean over pairs.\n\n"
    return said + "\n".join(found)


def _mean_left(
    records: Sequence[LookRecord], kind: str, method: str, metric: str, part: str
) -> float:
    logs = []
    for case in cases(records, kind):
        own, none = (
            figure(records, kind=kind, case=case, method=m, metric=metric, part=part)
            for m in (method, NONE)
        )
        if own > 0 and none > 0:
            logs.append(math.log(own / none))
    return math.exp(float(np.mean(logs))) if logs else math.nan


def _parts(records: Sequence[LookRecord]) -> list[str]:
    """Tissue and those of its structures of which something is said."""
    known = {r["part"] for r in records if r["metric"] in SPACES and r["value"] is not None}
    return [part for part in PARTS if part in known]


def _tables(records: Sequence[LookRecord], kind: str) -> Iterator[str]:
    for case in cases(records, kind):
        own = [r for r in records if r["kind"] == kind and r["case"] == case]
        rows, parts = [], _parts(own)
        header = ["method", *(f"{s}, {p}" for s in ("OD x 1000", "CIELAB") for p in parts)]
        header += ["SSIM", "drift, texture", "drift, nuclei"]
        for method in METHODS:
            cells = [
                figure(own, method=method, metric=metric, part=part) * scale
                for metric, scale in zip(SPACES, (1000, 1), strict=True)
                for part in parts
            ]
            cells += [figure(own, method=method, metric=m) for m in (SSIM, TEXTURE, NUCLEAR)]
            rows.append([_named(method), *map(number, cells)])
        shares = ", ".join(
            f"{part} {share:.1%}"
            for part in PARTS
            if math.isfinite(share := figure(own, metric="share", part=part))
        )
        tiles = figure(own, metric="tiles")
        said = f"### {case}\n\nOf the picture: {shares}. Features of {number(tiles)} tiles.\n\n"
        yield said + table(header, rows)


def _reading(records: Sequence[LookRecord]) -> Iterator[str]:
    own = [r for r in records if r["kind"] == READING]
    rows = []
    for case in ordered(r["case"] for r in own if r["metric"] == RATIO):
        for order in (RASTER, RANDOM):
            cells = [
                figure(own, case=case, method=order, metric=m)
                for m in (OPENSLIDE_MS, NORMALIZED_MS, RATIO, "reads")
            ]
            rows.append([case, order, *map(number, cells)])
    if rows:
        device = next((r["method"] for r in own if r["metric"] == "machine"), NOTHING)
        said = (
            f"## Reading\n\n{device}, one thread. `read_region` of 512 x 512 at level 0 where "
            "there is tissue, median of a read; OpenSlide and `NormalizedSlide` (`typical`, "
            "layers by preset `fast`) read the same places in turn, each by its own handle.\n\n"
        )
        header = ["slide", "order", "OpenSlide, ms", "normalised, ms", "ratio", "places"]
        yield said + table(header, rows)


def _faithful(records: Sequence[LookRecord]) -> Iterator[str]:
    own = [r for r in records if r["kind"] == FAITHFUL]
    if own:
        rows = [[r["case"], r["method"], r["part"], _decibel(r["value"])] for r in own]
        said = (
            "## True to the slide\n\n`self`: the slide through `NormalizedSlide` in its own look, "
            "against OpenSlide's pixels. Layers alone: tissue made of stored concentrations under "
            "the slide's fields, without residual, against the slide on the layers' grid.\n\n"
        )
        yield said + table(["slide", "what", "where", "PSNR, dB"], rows)


def _decibel(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{IDENTICAL:g} (identical bytes)" if value == IDENTICAL else f"{value:.1f}"


def _named(method: str) -> str:
    return f"**{method}**" if method == OURS else method
