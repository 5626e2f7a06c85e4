"""The field B(x), the OD of bare glass over the slide, from glass pixels alone (decision 6).

Inside tissue, B cannot be distinguished from a constant concentration. So B is predicted there from
the surrounding glass, by a Gaussian process: a plane, a long or a short course (a step between two
panes), or both. The candidate that best predicts held-out regions of glass is chosen, and it counts
only as far as it predicts them. So the field is no worse than a constant if nothing is resolved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import OutputGrid, bounding_box
from wsi_pgdips.optics.course import MIN_FOLDS, covariance, follow
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.tiles.tissue_map import TissueMap

Float64 = npt.NDArray[np.float64]

CELL_UM = 400.0
SIGMA_UM, SIGMA_TILES = 2500.0, 4.0
CELLS_ACROSS = 12
_FOLDS = 6  # held-out regions per axis
_MIN_PIXELS = 12  # least glass in a cell, in overview pixels, unless glass is rare
_TRIM = 0.1
_MIN_CELLS, _MAX_CELLS = 12, 800
_DIRT_OD = 0.003  # difference between locations on the same glass
_NOISE = (0.03, 0.3)  # variance of a full cell's own dirt, relative to that of the course


@dataclass(frozen=True, eq=False)
class _Cells:
    """Glass pooled in K square cells of a (CY, CX) grid: centres in overview pixels, mean OD.

    The cells begin at ``origin``, the glass's own corner, so that they do not depend on the corner
    of the image (decision 33).
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
        """The centres of the cells' rows (CY,) and columns (CX,), in overview pixels."""
        rows, columns = (
            np.asarray(first + (np.arange(n) + 0.5) * self.side - 0.5, np.float64)
            for first, n in zip(self.origin, self.shape, strict=True)
        )
        return rows, columns


def background_field(
    tissue: TissueMap, grid: OutputGrid
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Estimate the OD of glass at the centres of the cells.

    Args:
        tissue: tissue and glass of the slide.
        grid: output grid with (CY, CX) cells.

    Returns:
        background (CY, CX, 3) float32 OD; weight (CY, CX) float32, the effective number of glass
        pixels (of the overview) behind each value; B0 (3,) float32, the slide's own constant.
        Without usable glass, the background that ``tissue`` assumes, with a weight of 0.
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
    # a small slide needs enough cells, too, to show a slope
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
    """The mean of (K, 3) without the outermost tenth on either side, which may be dirt."""
    ordered = np.sort(pixels.astype(np.float64), axis=0)
    cut = int(_TRIM * len(ordered))
    return np.asarray(ordered[cut : len(ordered) - cut].mean(0))


def _pool(glass: BoolArray, od: FloatArray, side: int) -> _Cells:
    """Average the OD in cells of ``side`` overview pixels, omitting cells with too little glass."""
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
    """The deviation of B from B0, shrunk by evidence: (len(y), len(x), 3)."""
    deviation = cells.od - b0
    low, high = np.percentile(deviation, [2, 98], axis=0)
    reach = 0.25 * (high - low)
    deviation = np.asarray(np.clip(deviation, low - reach, high + reach), np.float64)
    # the glass pixels of a cell share its dirt and JPEG blocks: many count little more than few
    vote = np.minimum(cells.count / (cells.side**2 / 4), 1.0)
    folds = _folds(cells)
    extent = max(float(np.ptp(cells.y)), float(np.ptp(cells.x)), 1.0)
    centre = (cells.y.mean(), cells.x.mean())
    at = np.stack([(cells.y - centre[0]) / extent, (cells.x - centre[1]) / extent], 1)
    to_y, to_x = np.meshgrid((y - centre[0]) / extent, (x - centre[1]) / extent, indexing="ij")
    to = np.stack([to_y.ravel(), to_x.ravel()], 1)
    spread = float(np.average((deviation**2).sum(1), weights=vote))
    clean = max(0.0, 1 - 3 * _DIRT_OD**2 / max(spread, 1e-12))
    if folds.max() < MIN_FOLDS - 1:  # too few regions to hold one out
        pull = np.linalg.solve(covariance(at, at, 0.0, 0.5) + np.diag(_NOISE[0] / vote), deviation)
        out = covariance(to, at, 0.0, 0.5) @ pull
    else:
        out, _ = follow(at, deviation, vote, to, noise=_NOISE, folds=folds)
    out = np.clip(clean * out, low - reach, high + reach)
    return np.asarray(out).reshape(len(y), len(x), 3)


def _kernel_sums(cells: _Cells, values: Float64, y: Float64, x: Float64, sigma: float) -> Float64:
    """Gaussian-weighted sums of (K, C) values, with a kernel of 1 at its centre.

    Returns:
        (len(y), len(x), C).
    """
    dense = np.zeros((*cells.shape, values.shape[1]))
    dense[cells.row, cells.column] = values
    rows, columns = cells.centres
    down = np.exp(-0.5 * ((y[:, None] - rows[None, :]) / sigma) ** 2)
    across = np.exp(-0.5 * ((x[:, None] - columns[None, :]) / sigma) ** 2)
    return np.asarray(np.einsum("ir,rck,jc->ijk", down, dense, across, optimize=True))


def _folds(cells: _Cells) -> npt.NDArray[np.intp]:
    """The compact region of each cell, (K,); the extent of the glass has up to 36 regions."""

    def part(v: Float64) -> npt.NDArray[np.intp]:
        span = max(float(np.ptp(v)), 1e-9)
        return np.asarray(np.minimum((v - v.min()) / span * _FOLDS, _FOLDS - 1), np.intp)

    _, fold = np.unique(part(cells.y) * _FOLDS + part(cells.x), return_inverse=True)
    return np.asarray(fold, np.intp)
