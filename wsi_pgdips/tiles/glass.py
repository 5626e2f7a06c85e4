"""B(x), the OD of bare glass over the slide, from glass pixels alone (decision 6).

Inside tissue B and a constant concentration cannot be told apart, so there B is carried over from
the glass around: by a Gaussian process that may be a plane, follow a long or a short course (a step
between two panes), or both. The one that best predicts regions of glass it has not seen is taken,
and believed only as far as it predicts them, so the field is no worse than a constant where
nothing is resolved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import OutputGrid, bounding_box
from wsi_pgdips.optics.course import MIN_FOLDS, covariance, follow
from wsi_pgdips.records import BoolArray, FloatArray

if TYPE_CHECKING:
    from wsi_pgdips.tiles.tissue import TissueMap

Float64 = npt.NDArray[np.float64]

CELL_UM = 400.0
SIGMA_UM, SIGMA_TILES = 2500.0, 4.0
CELLS_ACROSS = 12
_FOLDS = 6  # held-out regions per axis
_MIN_PIXELS = 12  # overview pixels of glass in a cell worth a vote, unless glass is rare
_TRIM = 0.1
_MIN_CELLS, _MAX_CELLS = 12, 800
_DIRT_OD = 0.003  # by which places on one glass differ
_NOISE = (0.03, 0.3)  # variance of a full cell's own dirt, over that of the course


@dataclass(frozen=True, eq=False)
class _Cells:
    """Glass pooled in K square cells of a (CY, CX) grid: centres in overview pixels, mean OD.

    The cells begin at ``origin``, the glass's own corner: where the picture begins has no say.
    """

    shape: tuple[int, int]
    origin: tuple[int, int]
    row: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]
    y: Float64
    x: Float64
    od: Float64  # (K, 3)
    count: Float64
    side: int

    @property
    def centres(self) -> tuple[Float64, Float64]:
        """(CY,) and (CX,) centres of the cells' rows and columns, in overview pixels."""
        rows, columns = (
            np.asarray(first + (np.arange(n) + 0.5) * self.side - 0.5, np.float64)
            for first, n in zip(self.origin, self.shape, strict=True)
        )
        return rows, columns


def background_field(
    tissue: TissueMap, grid: OutputGrid
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """OD of glass at the centres of the cells.

    Args:
        tissue: tissue and glass of the slide.
        grid: output grid with (CY, CX) cells.

    Returns:
        background (CY, CX, 3) float32 OD; weight (CY, CX) float32, the effective number of glass
        pixels (of the overview) behind each value; B0 (3,) float32, the slide's own constant.
        Where no glass tells, what the map assumes, with no weight.
    """
    cy, cx = grid.cell_grid
    centre_y = np.asarray((np.arange(cy) + 0.5) * grid.cell / tissue.scale - 0.5, np.float64)
    centre_x = np.asarray((np.arange(cx) + 0.5) * grid.cell / tissue.scale - 0.5, np.float64)
    pixels = tissue.glass_od[tissue.glass]
    if tissue.assumed is not None or len(pixels) == 0:
        b0 = np.zeros(3, np.float32) if tissue.assumed is None else tissue.assumed
        return np.tile(b0, (cy, cx, 1)), np.zeros((cy, cx), np.float32), b0
    mean = _trimmed_mean(pixels)
    mpp = grid.mpp * tissue.scale
    # a small slide still needs enough cells to see a slope in them
    box = bounding_box(tissue.glass)
    side = max(min(round(CELL_UM / mpp), max(box.h, box.w) // CELLS_ACROSS), 4)
    cells = _pool(tissue.glass, tissue.glass_od, side)
    while len(cells.row) < _MIN_CELLS and side >= 8:  # glass in lumens only
        side //= 2
        cells = _pool(tissue.glass, tissue.glass_od, side)
    while len(cells.row) > _MAX_CELLS:
        side *= 2
        cells = _pool(tissue.glass, tissue.glass_od, side)
    field = np.broadcast_to(mean, (cy, cx, 3)).copy()
    sigma = max(SIGMA_UM, SIGMA_TILES * grid.tile * grid.mpp) / mpp
    weight = _kernel_sums(cells, cells.count[:, None], centre_y, centre_x, sigma)[..., 0]
    if len(cells.row) >= 3:
        field += _drift(cells, mean, centre_y, centre_x)
    return (
        np.maximum(field, 0).astype(np.float32),
        weight.astype(np.float32),
        np.maximum(mean, 0).astype(np.float32),
    )


def _trimmed_mean(pixels: FloatArray) -> Float64:
    """(3,) mean of (K, 3) without the outermost tenth on either side: dirt has no say."""
    ordered = np.sort(pixels.astype(np.float64), axis=0)
    cut = int(_TRIM * len(ordered))
    return np.asarray(ordered[cut : len(ordered) - cut].mean(0))


def _pool(glass: BoolArray, od: FloatArray, side: int) -> _Cells:
    """Mean OD per cell of ``side`` overview pixels, cells with hardly any glass left out."""
    box = bounding_box(glass)
    shape = -(-box.h // side), -(-box.w // side)
    y, x = np.nonzero(glass)
    index = (y - box.y) // side * shape[1] + (x - box.x) // side
    n = shape[0] * shape[1]
    count = np.bincount(index, minlength=n).astype(np.float64)
    kept = np.nonzero(count >= min(_MIN_PIXELS, side**2 // 2))[0]
    values = od[y, x].astype(np.float64)
    weight = count[kept]
    mean = np.stack([np.bincount(index, values[:, c], n)[kept] / weight for c in range(3)], 1)
    return _Cells(
        (shape[0], shape[1]),
        (box.y, box.x),
        kept // shape[1],
        kept % shape[1],
        np.bincount(index, y, n)[kept] / weight,
        np.bincount(index, x, n)[kept] / weight,
        mean,
        weight,
        side,
    )


def _drift(cells: _Cells, b0: Float64, y: Float64, x: Float64) -> Float64:
    """(len(y), len(x), 3) departure of B from B0, shrunk by evidence."""
    deviation = cells.od - b0
    low, high = np.percentile(deviation, [2, 98], axis=0)
    reach = 0.25 * (high - low)
    deviation = np.asarray(np.clip(deviation, low - reach, high + reach), np.float64)
    # glass pixels of one cell share its dirt and its JPEG blocks: many are worth little more
    vote = np.minimum(cells.count / (cells.side**2 / 4), 1.0)
    folds = _folds(cells)
    extent = max(float(np.ptp(cells.y)), float(np.ptp(cells.x)), 1.0)
    centre = (cells.y.mean(), cells.x.mean())
    at = np.stack([(cells.y - centre[0]) / extent, (cells.x - centre[1]) / extent], 1)
    to_y, to_x = np.meshgrid((y - centre[0]) / extent, (x - centre[1]) / extent, indexing="ij")
    to = np.stack([to_y.ravel(), to_x.ravel()], 1)
    spread = float(np.average((deviation**2).sum(1), weights=vote))
    clean = max(0.0, 1 - 3 * _DIRT_OD**2 / max(spread, 1e-12))
    if folds.max() < MIN_FOLDS - 1:  # too few places to hold one out
        pull = np.linalg.solve(covariance(at, at, 0.0, 0.5) + np.diag(_NOISE[0] / vote), deviation)
        out = covariance(to, at, 0.0, 0.5) @ pull
    else:
        out, _ = follow(at, deviation, vote, to, noise=_NOISE, folds=folds)
    out = np.clip(clean * out, low - reach, high + reach)
    return np.asarray(out).reshape(len(y), len(x), 3)


def _kernel_sums(cells: _Cells, values: Float64, y: Float64, x: Float64, sigma: float) -> Float64:
    """(len(y), len(x), C) Gaussian-weighted sums of (K, C) values; the kernel is 1 at its top."""
    dense = np.zeros((*cells.shape, values.shape[1]))
    dense[cells.row, cells.column] = values
    rows, columns = cells.centres
    down = np.exp(-0.5 * ((y[:, None] - rows[None, :]) / sigma) ** 2)
    across = np.exp(-0.5 * ((x[:, None] - columns[None, :]) / sigma) ** 2)
    return np.asarray(np.einsum("ir,rck,jc->ijk", down, dense, across, optimize=True))


def _folds(cells: _Cells) -> npt.NDArray[np.intp]:
    """(K,) compact region of each cell, from the extent of the glass; up to 36 regions."""

    def part(v: Float64) -> npt.NDArray[np.intp]:
        span = max(float(np.ptp(v)), 1e-9)
        return np.asarray(np.minimum((v - v.min()) / span * _FOLDS, _FOLDS - 1), np.intp)

    _, fold = np.unique(part(cells.y) * _FOLDS + part(cells.x), return_inverse=True)
    return np.asarray(fold, np.intp)
