"""Weights by which tiles are blended: Gaussian sums over the tile grid, and cross-fades of maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from wsi_pgdips.geometry import CELLS_PER_TILE
from wsi_pgdips.optics.interpolate import interpolation_weights
from wsi_pgdips.records import FloatArray


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


def blend(
    values: npt.NDArray[Any], weight: npt.NDArray[Any], sigma: float, fallback: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Confidence-weighted Gaussian mean over neighbouring tiles.

    Args:
        values: (GY, GX, K); NaN where unknown. weight: (GY, GX) or (GY, GX, K), >= 0.
        sigma: in tiles. fallback: (K,), used where no neighbour has any weight.

    Returns:
        (GY, GX, K) float64, finite.
    """
    w = np.broadcast_to(weight if weight.ndim == values.ndim else weight[..., None], values.shape)
    w = np.where(np.isfinite(values), w, 0.0)
    mass = neighbourhood_sum(w, sigma)
    total = neighbourhood_sum(w * np.nan_to_num(values), sigma)
    mean = np.divide(total, mass, out=np.zeros_like(total), where=mass > 1e-12)
    return np.where(mass > 1e-12, mean, np.asarray(fallback, np.float64))


def at_cells(field: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(CY, CX, ...) values of a field on tiles at the centres of the cells."""
    down, across = (
        interpolation_weights(n, CELLS_PER_TILE, 0, n * CELLS_PER_TILE) for n in field.shape[:2]
    )
    return np.asarray(np.einsum("ya,ab...,xb->yx...", down, field, across), field.dtype)


def crossfade(side: int, halo: int) -> FloatArray:
    """Weight of a tile's map over its own pixels and its halo, along one axis.

    Rises linearly over the 2 * halo pixels that a tile shares with its neighbour, so that the
    weights of neighbours sum to one.

    Returns:
        (side + 2 * halo,) float32 in (0, 1].
    """
    ramp = (np.arange(2 * halo) + 0.5) / (2 * halo)
    return np.concatenate([ramp, np.ones(side - 2 * halo), ramp[::-1]]).astype(np.float32)
