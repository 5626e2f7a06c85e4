"""The figure of the benchmark of looks: one crop under each method, a row a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.looks.methods import OURS, PEERS
from benchmarks.looks.pairs import LookPair
from benchmarks.looks.scores import structures
from benchmarks.records import save_figure
from wsi_pgdips.looks.distance import DAB, NUCLEI
from wsi_pgdips.records import ByteArray

CROP = 320  # pixels a side
INCHES, DPI = 1.9, 80
_STEP = 32
SHOWN = (*PEERS, OURS)


@dataclass(frozen=True, eq=False)
class Panel:
    """One row: crops of (h, w, 3) uint8 by their titles."""

    kind: str
    case: str
    crops: dict[str, ByteArray]


def panel(pair: LookPair, results: Mapping[str, ByteArray]) -> Panel:
    """The crop with most nuclei and DAB of a pair, under each method that is shown."""
    masks = structures(pair.source.rgb, pair.truth, pair.source.stains, pair.source.mpp)
    wanted = masks[NUCLEI].astype(np.float32)
    if DAB in masks:
        wanted = wanted + 2 * masks[DAB]
    h, w = wanted.shape
    side = min(CROP, h, w)
    corners = [(y, x) for y in range(0, h - side + 1, _STEP) for x in range(0, w - side + 1, _STEP)]
    y, x = max(corners, key=lambda c: wanted[c[0] : c[0] + side, c[1] : c[1] + side].sum())
    shown = {"source": pair.source.rgb, "target": pair.truth, **{m: results[m] for m in SHOWN}}
    crops = {name: rgb[y : y + side, x : x + side].copy() for name, rgb in shown.items()}
    return Panel(pair.kind, pair.case, crops)


def draw_panels(panels: Sequence[Panel], path: Path) -> None:
    """Write the figure. Replaces the file.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = len(panels[0].crops)
    figure = Figure(
        figsize=(INCHES * columns, (INCHES + 0.28) * len(panels)),
        layout="constrained",
        facecolor="white",
    )
    axes = figure.subplots(len(panels), columns, squeeze=False)
    for row, shown in zip(axes, panels, strict=True):
        for ax, (name, rgb) in zip(row, shown.crops.items(), strict=True):
            ax.imshow(rgb, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(name, fontsize=9, fontweight="bold" if name == OURS else "normal")
        row[0].set_ylabel(shown.case, fontsize=8)
    save_figure(figure, path, DPI)
