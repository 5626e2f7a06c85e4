"""The plots of the benchmark of speed, one device a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.records import lookup, number, only, save_figure
from benchmarks.speed.run import END_TO_END, PRESETS, SECONDS
from benchmarks.speed.runs import STAGES

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


def draw_plots(records: pd.DataFrame, peers: Sequence[str], stem: Path) -> list[tuple[str, Path]]:
    """Draw what there are records of, on one device.

    Args:
        peers: methods that are drawn as one mark, not by stage.
        stem: path of the files, less ``-stages.png``, ``-batch.png`` and ``-workers.png``.

    Returns:
        (what it shows, file) of each plot.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = (
        ("Seconds a tile by stage", "stages", _stages(records, peers)),
        ("Batches of paper", "batch", _batches(records)),
        ("Workers", "workers", _workers(records)),
    )
    made = []
    for what, name, figure in figures:
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.png")
            save_figure(figure, path, DPI)
            made.append((what, path))
    return made


def series(records: pd.DataFrame, metric: str, case: str) -> list[tuple[int, float]]:
    """(N, value) of a metric whose name ends in N, in the order of N."""
    own = only(records, case=case).dropna(subset="value")
    own = own[own["metric"].str.startswith(metric)]
    counts = own["metric"].str.removeprefix(metric).astype(int)
    return sorted(zip(counts, own["value"], strict=True))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _stages(records: pd.DataFrame, peers: Sequence[str]) -> Figure | None:
    """A panel a preset, each to its own scale: its stages, and the peers' marks below."""

    found = lookup(only(records, case="phantom", metric=SECONDS), "method", "stage")

    def seconds(method: str, stage: str = END_TO_END) -> float:
        return found(method, stage)

    shown = [p for p in PRESETS if any(math.isfinite(seconds(p, s)) for s in STAGES)]
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


def _batches(records: pd.DataFrame) -> Figure | None:
    found = series(records, BATCH, "phantom")
    if len(found) < 2:
        return None
    figure, ax = _line_plot("tiles in a batch of paper", "tiles a second, one step each")
    _line(ax, found, "paper")
    return figure


def _workers(records: pd.DataFrame) -> Figure | None:
    found = series(records, WORKERS, "phantom-blocks")
    if len(found) < 2:
        return None
    figure, ax = _line_plot("workers of one thread", "tiles a second")
    ends = [found[0][0], found[-1][0]]
    ideal = [n * found[0][1] / found[0][0] for n in ends]
    ax.plot(ends, ideal, color="#999999", linestyle="--", linewidth=1, label="in proportion")
    _line(ax, found, "fast, fit and render")
    ax.set_ylim(0, 1.25 * max(*ideal, *(v for _, v in found)))
    ax.legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def _line_plot(x: str, y: str) -> tuple[Figure, Axes]:
    figure = _figure(4.6, 3.1)
    ax = figure.subplots()
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    return figure, ax


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
