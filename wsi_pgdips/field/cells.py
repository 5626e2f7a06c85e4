"""Statistics of the slide's cells: taken from the blocks' fits one by one, summed into squares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from wsi_pgdips.geometry import CELLS_PER_TILE
from wsi_pgdips.records import BlockFit

Floats = npt.NDArray[np.float64]
Statistics = dict[str, npt.NDArray[Any]]

_MAX_PLACES = 400


@dataclass(frozen=True)
class Cells:
    """What some of the slide's cells hold.

    Attributes:
        index: (K, 2) row and column over the slide. statistics: name -> (K, ...), of
            ``solver.statistics``.
    """

    index: npt.NDArray[np.integer[Any]]
    statistics: Statistics


def of_cells(fit: BlockFit) -> dict[str, npt.NDArray[Any]]:
    """The statistics that it has of cells: name -> (T, CELLS_PER_TILE, CELLS_PER_TILE, ...)."""
    return {name: values for name, values in fit.statistics.items() if name != "q_hist"}


class CellsOf:
    """The cells of fits, in one order whatever theirs is, so that sums are the same bytes."""

    def __init__(self, fits: Sequence[BlockFit], plain: Sequence[BlockFit]) -> None:
        self._fits = fits
        first = [min(map(tuple, fit.index.tolist()), default=()) for fit in plain]
        self._order = sorted(range(len(first)), key=lambda i: first[i])

    def __iter__(self) -> Iterator[Cells]:
        within = np.stack(np.meshgrid(*[np.arange(CELLS_PER_TILE)] * 2, indexing="ij"), -1)
        for i in self._order:
            fit = self._fits[i]
            order = np.lexsort((fit.index[:, 1], fit.index[:, 0]))
            index = fit.index[order, None, None] * CELLS_PER_TILE + within
            statistics = {
                name: values[order].reshape(-1, *values.shape[3:])
                for name, values in of_cells(fit).items()
            }
            yield Cells(index.reshape(-1, 2), statistics)


def on_grid(cells: Iterable[Cells], name: str, shape: tuple[int, ...]) -> Floats:
    """(CY, CX, ...), zero where nothing is known."""
    out = np.zeros(shape)
    for part in cells:
        out[part.index[:, 0], part.index[:, 1]] = part.statistics[name]
    return out


def coarse_sums(cells: Iterable[Cells], counts: Floats) -> Statistics:
    """Sums over squares of cells, at most ``_MAX_PLACES`` of them.

    Args:
        cells: in parts, none of them twice. counts: (CY, CX) of theirs.

    Returns:
        name -> (K, ...) of squares that hold anything; ``place`` (K, 2) mean index (y, x) of their
        cells.
    """
    iy, ix = np.nonzero(counts > 0)
    side = 1
    while True:
        index = (iy // side) * counts.shape[1] + ix // side
        used, position = np.unique(index, return_inverse=True)
        if len(used) <= _MAX_PLACES:
            break
        side += 1
    weight = counts[iy, ix]
    total = np.bincount(position, weight, len(used))
    out: Statistics = {"count": total}
    out["place"] = np.stack(
        [np.bincount(position, weight * i, len(used)) / np.maximum(total, 1) for i in (iy, ix)], 1
    )
    square = np.full(counts.shape, -1)
    square[iy, ix] = position
    for part in cells:
        own = square[part.index[:, 0], part.index[:, 1]]
        busy = own >= 0
        for name in ("edges", "plane_qq", "plane_qr", "moment"):
            values = part.statistics[name]
            if name not in out:
                out[name] = np.zeros((len(used), *values.shape[1:]))
            np.add.at(out[name], own[busy], values[busy].astype(np.float64))
    return out


def neighbourhood_sum(values: npt.NDArray[Any], sigma: float) -> npt.NDArray[np.float64]:
    """Gaussian-weighted sum over neighbouring tiles; outside the grid there is nothing.

    Args:
        values: (GY, GX, ...) additive statistics. sigma: in tiles.

    Returns:
        (GY, GX, ...) float64; the kernel's centre weighs 1, so a lone tile keeps its own sum.
    """
    out = np.asarray(values, np.float64)
    for axis in (0, 1):
        out = gaussian_filter1d(out, sigma, axis=axis, mode="constant", truncate=3.0)
    return out * (2 * np.pi * sigma**2)
