"""Errors of a result against exact truth, window by window so that memory does not grow.

Everything comes in as arrays or as callables ``Region -> array`` on one output grid: this module
knows neither phantoms nor layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.records import BoolArray, FloatArray

Floats = npt.NDArray[np.float64]
ReadMaps = Callable[[Region], FloatArray]
ReadMask = Callable[[Region], BoolArray]


@dataclass(frozen=True)
class ConcentrationError:
    """Error of q on tissue, OD along the unit vectors.

    Attributes:
        rmse: (N,) per stain. joint: root of the mean of their squares.
        bias: (N,) mean of estimate less truth.
        pixels: tissue pixels compared. measured: share of them that the estimate covers.
    """

    rmse: Floats
    joint: float
    bias: Floats
    pixels: int
    measured: float


@dataclass(frozen=True)
class BackgroundError:
    """Error of B on tissue tiles, OD: largest and root mean square over tiles and channels."""

    largest: float
    rms: float


class SquaredError:
    """Running sums of an error; add windows in any order.

    Args:
        n: number of stains.
    """

    def __init__(self, n: int) -> None:
        self._squares, self._sum = np.zeros(n), np.zeros(n)
        self._pixels = self._measured = 0

    def add(self, estimate: FloatArray, truth: FloatArray, tissue: BoolArray) -> None:
        """Count one window: (N, h, w), (N, h, w), (h, w).

        A tissue pixel that was not measured (NaN) counts as zero: leaving out is no way to win.
        """
        values = np.asarray(estimate)[:, tissue].astype(np.float64)  # (N, P)
        known = np.isfinite(values).all(0)
        error = np.where(known, values, 0.0) - np.asarray(truth)[:, tissue]
        self._squares += (error**2).sum(1)
        self._sum += error.sum(1)
        self._pixels += int(tissue.sum())
        self._measured += int(known.sum())

    def result(self) -> ConcentrationError:
        """NaN where no tissue was seen."""
        if self._pixels == 0:
            nothing = np.full(len(self._squares), np.nan)
            return ConcentrationError(nothing, float("nan"), nothing, 0, float("nan"))
        mean = self._squares / self._pixels
        return ConcentrationError(
            rmse=np.sqrt(mean),
            joint=float(np.sqrt(mean.mean())),
            bias=self._sum / self._pixels,
            pixels=self._pixels,
            measured=self._measured / self._pixels,
        )


def concentration_error(
    estimate: ReadMaps, truth: ReadMaps, tissue: ReadMask, windows: Iterable[Region], n: int
) -> ConcentrationError:
    """Error of q over the tissue pixels of all windows.

    Args:
        estimate, truth: Region -> (N, h, w) q, NaN in the estimate where not measured.
        tissue: Region -> (h, w). windows: regions that do not overlap. n: number of stains.
    """
    total = SquaredError(n)
    for window in windows:
        mask = tissue(window)
        if mask.any():
            total.add(estimate(window), truth(window), mask)
    return total.result()


def stain_angles(
    estimate: FloatArray, truth: FloatArray, weight: npt.NDArray[np.floating]
) -> Floats:
    """Mean angle between estimated and true stain vectors at tile centres, per stain, degrees.

    Args:
        estimate, truth: (GY, GX, N, 3) vectors; (N, 3) is taken as the same everywhere.
        weight: (GY, GX) tissue in the tile, or (GY, GX, N) a weight per stain.

    Returns:
        (N,) float64; NaN where there is no weight.
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
    """Error of B at tile centres.

    Args:
        estimate, truth: (GY, GX, 3), or (3,) for the same everywhere.
        weight: (GY, GX) tissue in the tile; tiles of weight 0 do not count.
    """
    w = np.asarray(weight, np.float64)
    error = np.broadcast_to(np.asarray(estimate, np.float64) - truth, (*w.shape, 3))
    if not (w > 0).any():
        return BackgroundError(float("nan"), float("nan"))
    largest = np.abs(error[w > 0]).max()
    rms = np.sqrt((w[..., None] * error**2).sum() / (3 * w.sum()))
    return BackgroundError(float(largest), float(rms))


def windows_of(shape: tuple[int, int], side: int = 512) -> Iterable[Region]:
    """Squares that cover an image, raster order, cut at its end."""
    for y in range(0, shape[0], side):
        for x in range(0, shape[1], side):
            yield Region(y, x, side, side).clipped(shape)
