"""The statistics of the slide's cells, and their sums over squares and neighbourhoods."""

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

MAX_SQUARES = 400


@dataclass(frozen=True)
class Cells:
    """The statistics of K cells of the slide.

    Attributes:
        index: (K, 2) row and column on the slide. statistics: name -> (K, ...), of
            ``solver.statistics``.
    """

    index: npt.NDArray[np.integer[Any]]
    statistics: Statistics


def per_cell(fit: BlockFit) -> dict[str, npt.NDArray[Any]]:
    """The statistics of a fit's cells: name -> (T, CELLS_PER_TILE, CELLS_PER_TILE, ...)."""
    return {name: values for name, values in fit.statistics.items() if name != "q_hist"}


class OrderedCells:
    """The cells of all fits in a fixed order, so that sums do not depend on the order of the fits.

    Args:
        fits: of every block; read one after the other on each iteration.
        plain: the same fits, statistics may be missing.
    """

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
                for name, values in per_cell(fit).items()
            }
            yield Cells(index.reshape(-1, 2), statistics)


def on_grid(cells: Iterable[Cells], name: str, shape: tuple[int, ...]) -> Floats:
    """One statistic of all cells on their grid, (CY, CX, ...), zero if unknown."""
    out = np.zeros(shape)
    for part in cells:
        out[part.index[:, 0], part.index[:, 1]] = part.statistics[name]
    return out


def coarse_sums(cells: Iterable[Cells], counts: Floats) -> Statistics:
    """Sum statistics over squares of cells, at most ``MAX_SQUARES`` of them.

    Args:
        cells: in parts, without repetition. counts: (CY, CX), their ``count``.

    Returns:
        name -> (K, ...) of all squares with any count; ``position`` (K, 2) is the mean index (y, x)
        of their cells.
    """
    iy, ix = np.nonzero(counts > 0)
    side = 1
    while True:
        index = (iy // side) * counts.shape[1] + ix // side
        used, number = np.unique(index, return_inverse=True)
        if len(used) <= MAX_SQUARES:
            break
        side += 1
    weight = counts[iy, ix]
    total = np.bincount(number, weight, len(used))
    out: Statistics = {"count": total}
    out["position"] = np.stack(
        [np.bincount(number, weight * i, len(used)) / np.maximum(total, 1) for i in (iy, ix)], 1
    )
    square = np.full(counts.shape, -1)
    square[iy, ix] = number
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
    """The Gaussian-weighted sum over neighbouring tiles; outside the grid all is zero.

    Args:
        values: (GY, GX, ...) additive statistics. sigma: in tiles.

    Returns:
        (GY, GX, ...) float64; the kernel's centre weighs 1, so a lone tile keeps its own sum.
    """
    out = np.asarray(values, np.float64)
    for axis in (0, 1):
        out = gaussian_filter1d(out, sigma, axis=axis, mode="constant", truncate=3.0)
    return out * (2 * np.pi * sigma**2)
