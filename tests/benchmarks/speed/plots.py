"""The plots of the benchmark of speed, one device a file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.speed.records import END_TO_END, SECONDS, SpeedRecord, find
from benchmarks.speed.runs import STAGES
from benchmarks.tables import NOTHING
from wsi_pgdips.disk import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of Okabe and Ito: told apart by the colour-blind
COLORS = dict(zip(STAGES, ("#0072b2", "#f0e442", "#d55e00", "#999999"), strict=True))
PEER = "#222222"
BATCH, WORKERS = "tiles_per_s@batch=", "tiles_per_s@workers="
ROOM = 1.3  # of the longest bar, for the figure beside it
FAR = 2.5  # bars beyond which a peer is no longer drawn to scale
DPI = 130


def draw_plots(
    records: Sequence[SpeedRecord], presets: Sequence[str], peers: Sequence[str], stem: Path
) -> list[tuple[str, Path]]:
    """Draw what there are records of, on one device.

    Args:
        presets, peers: methods that are drawn by stage, and as one mark.
        stem: path of the files, less ``-stages.png``, ``-batch.png`` and ``-workers.png``.

    Returns:
        (what it shows, file) of each plot.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = [
        ("Seconds a tile by stage", "stages", _stages(records, presets, peers)),
        ("Batches of paper", "batch", _batches(records)),
        ("Workers", "workers", _workers(records)),
    ]
    made = []
    for what, name, figure in figures:
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.png")
            data = io.BytesIO()
            # no name of a program: equal records, equal bytes
            figure.savefig(data, dpi=DPI, format="png", metadata={"Software": None})
            write_atomic(path, data.getvalue())
            made.append((what, path))
    return made


def series(records: Sequence[SpeedRecord], metric: str, case: str) -> list[tuple[int, float]]:
    """(N, value) of a metric whose name ends in N, in the order of N."""
    found = {
        int(r["metric"].removeprefix(metric)): float(r["value"])
        for r in records
        if r["case"] == case and r["metric"].startswith(metric) and r["value"] is not None
    }
    return sorted(found.items())


def number(value: float, digits: int = 3) -> str:
    """So many digits, without an exponent; ``-`` where there is none."""
    if not math.isfinite(value):
        return NOTHING
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return np.format_float_positional(value, digits, unique=False, fractional=False, trim="-")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _stages(
    records: Sequence[SpeedRecord], presets: Sequence[str], peers: Sequence[str]
) -> Figure | None:
    """A panel a preset, each to its own scale: its stages, and the peers' marks below."""

    def seconds(method: str, stage: str = END_TO_END) -> float:
        return find(records, case="phantom", method=method, stage=stage, metric=SECONDS)

    shown = [p for p in presets if any(math.isfinite(seconds(p, s)) for s in STAGES)]
    others = {p: v for p in peers if math.isfinite(v := seconds(p))}
    if not shown:
        return None
    figure = _figure(7.5, len(shown) * (0.85 + 0.3 * (1 + len(others))) + 0.4)
    axes = figure.subplots(len(shown), squeeze=False)[:, 0]
    for ax, preset in zip(axes, shown, strict=True):
        _panel(ax, preset, {s: seconds(preset, s) for s in STAGES}, seconds(preset), others)
    axes[-1].set_xlabel("seconds a tile, each further tile of the phantom", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    return figure


def _panel(
    ax: Axes, preset: str, stages: dict[str, float], whole: float, peers: dict[str, float]
) -> None:
    left = 0.0
    for stage, value in stages.items():
        width = max(value, 0.0) if math.isfinite(value) else 0.0  # a slope may be just below 0
        ax.barh(0, width, left=left, height=0.62, color=COLORS[stage], label=stage)
        left += width
    near = [v for v in peers.values() if v <= FAR * left]
    limit = ROOM * (max([left, *near]) or 1.0)
    ax.text(left + 0.02 * limit, 0, number(whole), va="center", fontsize=8)
    for row, value in enumerate(peers.values(), start=1):
        far = value > FAR * left
        at, aside = (0.985 * limit, -0.02) if far else (value, 0.02)
        ax.plot([at], [row], marker=">" if far else "D", markersize=5, color=PEER)
        if not far:
            ax.plot([at, at], [-0.45, row], color=PEER, linewidth=0.7, linestyle=(0, (4, 3)))
        ax.text(
            at + aside * limit,
            row,
            f"{number(value)}, not to scale" if far else number(value),
            va="center",
            ha="right" if far else "left",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            zorder=3,
        )
    ax.set_yticks(range(1 + len(peers)), [preset, *peers])
    ax.set_ylim(len(peers) + 0.6, -0.6)
    ax.set_xlim(0, limit)
    _plain(ax)


def _batches(records: Sequence[SpeedRecord]) -> Figure | None:
    found = series(records, BATCH, "phantom")
    if len(found) < 2:
        return None
    figure = _figure(4.6, 3.1)
    ax = figure.subplots()
    _line(ax, found, "paper")
    ax.set_xlabel("tiles in a batch of paper", fontsize=9)
    ax.set_ylabel("tiles a second, one step each", fontsize=9)
    return figure


def _workers(records: Sequence[SpeedRecord]) -> Figure | None:
    found = series(records, WORKERS, "phantom-blocks")
    if len(found) < 2:
        return None
    figure = _figure(4.6, 3.1)
    ax = figure.subplots()
    ends = [found[0][0], found[-1][0]]
    ideal = [n * found[0][1] / found[0][0] for n in ends]
    ax.plot(ends, ideal, color="#999999", linestyle="--", linewidth=1, label="in proportion")
    _line(ax, found, "fast, fit and render")
    ax.set_ylim(0, 1.25 * max(*ideal, *(v for _, v in found)))
    ax.set_xlabel("workers of one thread", fontsize=9)
    ax.set_ylabel("tiles a second", fontsize=9)
    ax.legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def _line(ax: Axes, found: Sequence[tuple[int, float]], label: str) -> None:
    counts, values = zip(*found, strict=True)
    ax.plot(counts, values, marker="o", color=COLORS["fit"], label=label)
    for count, value in found:
        ax.annotate(
            number(value),
            (count, value),
            textcoords="offset points",
            xytext=(0, -13),
            ha="center",
            fontsize=8,
        )
    ax.set_xticks(counts)
    ax.margins(x=0.12)
    ax.set_ylim(0, 1.25 * max(values))
    _plain(ax)


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
