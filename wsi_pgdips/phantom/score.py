"""Errors of a result against the exact truth of a phantom.

Concentrations are compared window by window, so that memory does not grow with the slide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.phantom.phantom import PhantomTruth
from wsi_pgdips.records import BoolArray, FloatArray

Floats = npt.NDArray[np.float64]
_ReadMaps = Callable[[Region], FloatArray]
_ReadMask = Callable[[Region], BoolArray]


@dataclass(frozen=True)
class StainErrors:
    """Errors of one stain of a result.

    Attributes:
        rmse_od, bias_od: error of q on tissue, OD along the unit vector.
        angle_deg: mean angle of S(x) to the truth. library_deg: that of the library's vector.
    """

    label: str
    rmse_od: float
    bias_od: float
    angle_deg: float
    library_deg: float


@dataclass(frozen=True)
class ConcentrationError:
    """Error of q on tissue, OD along the unit vectors.

    Attributes:
        rmse: (N,) per stain. joint: root of the mean of their squares.
        bias: (N,) mean of estimate minus truth.
        pixels: number of tissue pixels. measured: share of them that the estimate covers.
    """

    rmse: Floats
    joint: float
    bias: Floats
    pixels: int
    measured: float


@dataclass(frozen=True)
class BackgroundError:
    """Error of B on tissue tiles, OD: largest, and root mean square over tiles and channels."""

    largest: float
    rms: float


def concentration_error(
    estimate: _ReadMaps, truth: _ReadMaps, tissue: _ReadMask, windows: Iterable[Region], n: int
) -> ConcentrationError:
    """Compute the error of q over the tissue pixels of all windows.

    A tissue pixel that was not measured counts as zero, so that leaving pixels out does not help.

    Args:
        estimate, truth: Region -> (N, h, w) q, NaN in the estimate where not measured.
        tissue: Region -> (h, w) bool. windows: regions that do not overlap. n: number of stains.

    Returns:
        All NaN and 0 pixels if there is no tissue.
    """
    squares, total = np.zeros(n), np.zeros(n)
    pixels = measured = 0
    for window in windows:
        mask = tissue(window)
        if not mask.any():
            continue
        values = np.asarray(estimate(window))[:, mask].astype(np.float64)  # (N, P)
        known = np.isfinite(values).all(0)
        error = np.where(known, values, 0.0) - np.asarray(truth(window))[:, mask]
        squares += (error**2).sum(1)
        total += error.sum(1)
        pixels += int(mask.sum())
        measured += int(known.sum())
    if pixels == 0:
        nothing = np.full(n, np.nan)
        return ConcentrationError(nothing, float("nan"), nothing, 0, float("nan"))
    mean = squares / pixels
    joint = float(np.sqrt(mean.mean()))
    return ConcentrationError(np.sqrt(mean), joint, total / pixels, pixels, measured / pixels)


def stain_angles(
    estimate: FloatArray, truth: FloatArray, weight: npt.NDArray[np.floating]
) -> Floats:
    """Compute the mean angle between estimated and true stain vectors, for each stain.

    Args:
        estimate, truth: (GY, GX, N, 3) vectors at tile centres, or (N, 3) for all tiles.
        weight: (GY, GX) tissue in each tile, or (GY, GX, N) with a weight for each stain.

    Returns:
        (N,) float64 degrees; NaN if a stain has no weight.
    """
    angle = angle_deg(estimate, truth)
    w = np.asarray(weight, np.float64)
    w = np.broadcast_to(w[..., None] if w.ndim == 2 else w, (*w.shape[:2], truth.shape[-2]))
    angle = np.broadcast_to(angle, w.shape)
    total = w.sum((0, 1))
    weighted = (w * np.where(w > 0, angle, 0.0)).sum((0, 1))
    return np.asarray(
        np.divide(weighted, total, out=np.full(w.shape[2], np.nan), where=total > 0), np.float64
    )


def background_error(
    estimate: FloatArray, truth: FloatArray, weight: npt.NDArray[np.floating]
) -> BackgroundError:
    """Compute the error of B at tile centres.

    Args:
        estimate, truth: (GY, GX, 3) OD, or (3,) for all tiles.
        weight: (GY, GX) tissue in each tile; tiles of weight 0 do not count.

    Returns:
        NaN if there is no weight.
    """
    w = np.asarray(weight, np.float64)
    error = np.broadcast_to(np.asarray(estimate, np.float64) - truth, (*w.shape, 3))
    if not (w > 0).any():
        return BackgroundError(float("nan"), float("nan"))
    largest = np.abs(error[w > 0]).max()
    rms = np.sqrt((w[..., None] * error**2).sum() / (3 * w.sum()))
    return BackgroundError(float(largest), float(rms))


def windows_of(shape: tuple[int, int], side: int = 512) -> Iterable[Region]:
    """Yield squares that cover an image, in raster order, cut at its end."""
    for y in range(0, shape[0], side):
        for x in range(0, shape[1], side):
            yield Region(y, x, side, side).clipped(shape)


def score_layers(layers: Layers, truth: PhantomTruth) -> tuple[tuple[StainErrors, ...], float]:
    """Compare layers of a phantom with its truth.

    Args:
        layers: of the phantom, with level 0 on the phantom's pixels and the truth's stain order.

    Returns:
        The errors of each stain, and the RMS error of B(x) on tissue in OD.
    """
    grid = layers.grid
    q = concentration_error(
        lambda r: layers.read(r.y, r.x, r.h, r.w),
        lambda r: truth.concentration(r.y, r.x, r.h, r.w),
        lambda r: truth.tissue(r.y, r.x, r.h, r.w),
        windows_of(grid.shape),
        layers.stains.n,
    )
    yy = (np.arange(grid.tile_grid[0])[:, None] + 0.5) * grid.tile - 0.5
    xx = (np.arange(grid.tile_grid[1])[None, :] + 0.5) * grid.tile - 0.5
    true_s = _tile_axes_first(truth.stain_matrix_at(yy, xx), grid.tile_grid)
    true_b = _tile_axes_first(truth.background_at(yy, xx), grid.tile_grid)
    weight = _tissue_share(layers, truth)
    angles = stain_angles(layers.fields.tile_stain_matrix, true_s, weight)
    library = stain_angles(truth.library, true_s, weight)
    background = background_error(layers.fields.tile_background, true_b, weight)
    errors = tuple(
        StainErrors(label, *(float(v) for v in values))
        for label, *values in zip(truth.labels, q.rmse, q.bias, angles, library, strict=True)
    )
    return errors, background.rms


def _tile_axes_first(values: FloatArray, tile_grid: tuple[int, int]) -> FloatArray:
    """Broadcast (..., GY, GX), where both may be 1, and move the axes: (GY, GX, ...)."""
    whole = np.broadcast_to(values, (*values.shape[:-2], *tile_grid))
    return np.moveaxis(whole, (-2, -1), (0, 1))


def _tissue_share(layers: Layers, truth: PhantomTruth) -> FloatArray:
    """Return the (GY, GX) share of each tile's pixels that are truly tissue."""
    grid = layers.grid
    share = np.zeros(grid.tile_grid, np.float32)
    for ty, tx in np.ndindex(*grid.tile_grid):
        r = grid.tile_region(ty, tx)
        share[ty, tx] = truth.tissue(r.y, r.x, r.h, r.w).sum() / grid.tile**2
    return share
