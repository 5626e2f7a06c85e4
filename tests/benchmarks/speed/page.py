"""The records of the benchmark of speed as one page of Markdown, with plots beside it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from benchmarks.records import bar, distinct, lookup, number, only, prose, table
from benchmarks.speed.plots import draw_plots
from benchmarks.speed.run import CPU_SECONDS, END_TO_END, ESTIMATE, PRESETS, SECONDS, WITH_WORKERS
from benchmarks.speed.runs import ONCE, STAGES
from wsi_pgdips.solver.presets import PAPER_STEPS

METHODS = ("fast", WITH_WORKERS, "balanced", "paper")
PEER = "tiatoolbox-"
MACENKO = f"{PEER}macenko"
PHANTOM = "phantom"
NOT_SLIDES = (PHANTOM, "phantom-blocks", "machine")
GPU_ONLY = ("peak_vram_mb", "gpu_busy_share")
# how figures of an estimate are headed, and by what they are divided
HEADED = {
    "tiles": ("tiles", 1.0),
    "seconds": ("seconds", 1.0),
    "disk_bytes": ("disk, MB", 1e6),
    "peak_rss_mb": ("peak RSS, MB", 1.0),
}
HELD_TO = ("tiles", "seconds", "disk_bytes")  # of these, those with a bar
FLOOR = ("gflop_per_tile", SECONDS, "share_achieved")
PER_TILE = ["seconds a tile", "CPU seconds a tile"]


class Figures:
    """The records of one device, by case, method, stage and metric."""

    def __init__(self, device: str, records: pd.DataFrame) -> None:
        self.device, self.records = device, records
        self._value = lookup(records, "case", "method", "stage", "metric")
        named = re.search(r"(\d+) cores?$", device)
        self.cores = int(named[1]) if named else 0  # as the device's name gives them
        self.gpu = bool(records["metric"].isin(GPU_ONLY).any())
        self.slides = [c for c in distinct(records, "case") if c not in NOT_SLIDES]

    def at(self, case: str, method: str, metric: str = SECONDS, stage: str = END_TO_END) -> float:
        """A figure, NaN where there is none."""
        return self._value(case, method, stage, metric)

    def ratio(self, case: str, method: str, other: str) -> float:
        """Seconds a tile of a method over those of another."""
        return _over(self.at(case, method), self.at(case, other))

    def over_cores(self, method: str) -> float:
        """Wall seconds over CPU seconds / cores; from the name's cores where it was not kept."""
        kept = self.at(PHANTOM, method, "over_cpu_seconds_over_cores")
        cpu = self.at(PHANTOM, method, CPU_SECONDS) / (self.cores or math.nan)
        return kept if math.isfinite(kept) else _over(self.at(PHANTOM, method), cpu)

    def foreseen(self, case: str, preset: str, metric: str) -> tuple[float, float]:
        """The estimate of a metric, and what the run then took."""
        estimate, found = (self.at(case, preset, metric, stage) for stage in (ESTIMATE, "run"))
        return estimate, found

    def missed_by(self, metric: str) -> float:
        """The error of the worst estimate of a real slide, as a share of what was found."""
        pairs = [self.foreseen(c, p, metric) for c in self.slides for p in PRESETS]
        off = [abs(_over(a, b) - 1) for a, b in pairs if math.isfinite(a) or math.isfinite(b)]
        return max(off) if off and all(map(math.isfinite, off)) else math.nan

    def methods(self, case: str) -> list[str]:
        """Those that were timed on a case: ours, then others in their order."""
        timed = distinct(only(self.records, case=case, metric=SECONDS, stage=END_TO_END), "method")
        peers = [m for m in timed if m.startswith(PEER)]
        return [m for m in METHODS if m in timed] + peers


def render(records: pd.DataFrame, name: str, images: Path) -> str:
    """The page: what there are no records of is left out. Draws its plots.

    Args:
        name: of the file of records, as the page calls it. images: folder of the plots.

    Raises:
        OutputError: a plot cannot be written.
    """
    parts = [prose("speed")["introduction"].format(records=name, steps=PAPER_STEPS)]
    for device, rows in records.groupby("device", sort=False):
        own = Figures(device, rows)
        peers = [m for m in own.methods(PHANTOM) if m.startswith(PEER)]
        plots = draw_plots(rows, peers, images / f"speed-{slug(device)}")
        links = "\n\n".join(f"![{what}](images/{path.name})" for what, path in plots)
        parts += [*_sections(own), *([f"### Plots\n\n{links}\n"] if plots else [])]
    return "\n".join(parts)


def slug(device: str) -> str:
    """A device's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"


def bars(own: Figures) -> Iterator[list[str]]:
    """The project's bars that belong to a device; found is NaN where nothing was measured."""
    measured = [PHANTOM, *own.slides]
    if not own.gpu and own.cores == 2:
        for case in measured:
            took = own.at(case, "balanced", "seconds", "calibrate")
            yield bar(f"`balanced` calibrates on 2 cores, {case}: seconds", took, 15)
    for case in measured:
        yield bar(f"`fast` / `{MACENKO}`, {case}", own.ratio(case, "fast", MACENKO), 1)
    if not own.gpu:  # beside a GPU cores are to be idle
        for preset in (m for m in own.methods(PHANTOM) if m in (*PRESETS, WITH_WORKERS)):
            yield bar(f"`{preset}`: x CPU seconds / cores", own.over_cores(preset), 1.15)
    yield bar("`balanced` / `fast`", own.ratio(PHANTOM, "balanced", "fast"), 8)
    two = own.at("phantom-blocks", "fast", "two_workers_over_one", "fit+render")
    yield bar("two workers / one", two, 1.8, at_least=True)
    for metric in HELD_TO:
        yield bar(f"`estimate`, {HEADED[metric][0]}: share off", own.missed_by(metric), 0.25)
    if own.gpu:
        yield bar("`fast` on a GPU: seconds a tile", own.at(PHANTOM, "fast"), 0.006)
        yield bar("`balanced` on a GPU: seconds a tile", own.at(PHANTOM, "balanced"), 0.03)
        many = own.ratio(PHANTOM, "paper", "balanced")
        yield bar("`paper` / `balanced` on a GPU", many, 60, at_least=True)


def _sections(own: Figures) -> Iterator[str]:
    yield f"## {own.device}\n"
    yield "### From end to end\n\nThe phantom.\n\n" + _end_to_end(own)
    for case in own.slides:
        yield f"The slide `{case}`.\n\n" + _slide(own, case)
    yield from _foreseen(own)
    text = "What the project set itself; on the phantom where nothing else is said."
    text += " Beside a GPU, CPU seconds are not held to a bar.\n\n" if own.gpu else "\n\n"
    yield f"### Bars\n\n{text}" + table(["bar", "found", "met?"], list(bars(own)))
    yield from _stages(own)
    yield from _parts(own)


def _end_to_end(own: Figures) -> str:
    header = ["method", *PER_TILE, "tiles a second", "x `fast`", "x CPU seconds / cores", "tiles"]
    header += ["peak RSS, MB", *(["peak VRAM, MB", "GPU busy"] if own.gpu else [])]
    kept = ("tiles", "peak_rss_mb", *(GPU_ONLY if own.gpu else ()))
    rows = []
    for m in own.methods(PHANTOM):
        wall, cpu = own.at(PHANTOM, m), own.at(PHANTOM, m, CPU_SECONDS)
        cells = [wall, cpu, _over(1, wall), own.ratio(PHANTOM, m, "fast"), own.over_cores(m)]
        cells += [own.at(PHANTOM, m, k) for k in kept]
        written = own.at(PHANTOM, m, "bytes_written_per_tile") / 1e3
        rows.append([m, *map(number, [*cells, written])])
    return table([*header, "kB written a tile"], rows)


def _slide(own: Figures, case: str) -> str:
    rows = []
    for m in own.methods(case):
        cells = [own.at(case, m, k) for k in (SECONDS, CPU_SECONDS, "tiles")]
        cells += [own.at(case, m, "seconds", "calibrate"), own.ratio(case, m, MACENKO)]
        rows.append([m, *map(number, cells)])
    return table(["method", *PER_TILE, "tiles", "calibrate, seconds", f"x `{MACENKO}`"], rows)


def _foreseen(own: Figures) -> Iterator[str]:
    rows = []
    for case, preset in itertools.product(own.slides, PRESETS):
        pairs = {metric: own.foreseen(case, preset, metric) for metric in HEADED}
        if math.isfinite(pairs["tiles"][0]):
            units = [(a / HEADED[m][1], b / HEADED[m][1]) for m, (a, b) in pairs.items()]
            rows.append([case, preset, *(f"{number(a)}, {number(b)}" for a, b in units)])
    if rows:
        header = ["slide", "preset", *(heading for heading, _ in HEADED.values())]
        what = "What `estimate` said, then what the run took: all of its stages.\n\n"
        yield "### Foreseen and found\n\n" + what + table(header, rows)


def _stages(own: Figures) -> Iterator[str]:
    timed = [p for p in PRESETS if p in own.methods(PHANTOM)]
    kinds = [(p, k) for p in timed for k in (SECONDS, CPU_SECONDS)]
    rows = [[s, *(number(own.at(PHANTOM, p, k, s)) for p, k in kinds)] for s in STAGES]
    for s in ONCE:
        once = [cell for p in timed for cell in (own.at(PHANTOM, p, "seconds", s), math.nan)]
        rows.append([f"{s}, once a slide", *map(number, once)])
    header = ["stage", *(f"{p}, {'CPU ' if k == CPU_SECONDS else ''}seconds" for p, k in kinds)]
    if timed:
        yield "### Stages\n\nSeconds a tile, or a slide.\n\n" + table(header, rows)


def _parts(own: Figures) -> Iterator[str]:
    alone = [("ceiling", part, "") for part in ("read", "write")]
    alone += [
        (preset, f"{stage}-alone", stage) for preset in PRESETS for stage in ("fit", "render")
    ]
    rows = []
    for m, part, stage in alone:
        found = [own.at(PHANTOM, m, k, part) for k in (SECONDS, CPU_SECONDS)]
        if any(map(math.isfinite, found)):
            what = f"`{m}`, {stage} alone" if stage else part
            rows.append([what, *map(number, [*found, own.at(PHANTOM, m, SECONDS, stage)])])
    if rows:
        yield "### Parts\n\n" + table(["part", *PER_TILE, "in a run"], rows)
    floor = [own.at(PHANTOM, "balanced", k, "floor") for k in FLOOR]
    if any(map(math.isfinite, floor)):
        rate = own.at("machine", "matmul", "gflops", "ceiling")
        alone_s = own.at(PHANTOM, "balanced", SECONDS, "render-alone")
        header = ["GFLOP a tile", "floor, seconds a tile", "share achieved"]
        header += ["render alone, seconds a tile", "matrix products, GFLOP/s"]
        yield "The floor of `balanced`.\n\n" + table(
            header, [[*map(number, [*floor, alone_s, rate])]]
        )


def _over(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan
