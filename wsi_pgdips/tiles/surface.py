"""A robust plane through scattered OD values, for the drift of glass over a slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_TUKEY = 4.685  # 95 % efficiency for the normal distribution
_ROUNDS = 8


@dataclass(frozen=True)
class Surface:
    """A plane per channel, ``value(y, x) = c0 + c1 v + c2 u`` in normalised coordinates.

    Attributes:
        coefficients: (3, C) float64.
        origin: (y, x) of the centre. span: (y, x) half extents, which scale to one.
        low, high: (C,) bounds of the value, as a plane is not reliable far beyond its data.
    """

    coefficients: Float64
    origin: tuple[float, float]
    span: tuple[float, float]
    low: Float64
    high: Float64

    def at(self, y: npt.NDArray[Any], x: npt.NDArray[Any]) -> Float64:
        """The values at broadcastable coordinates: (..., C)."""
        v = (np.asarray(y, np.float64) - self.origin[0]) / self.span[0]
        u = (np.asarray(x, np.float64) - self.origin[1]) / self.span[1]
        c = self.coefficients
        value = c[0] + v[..., None] * c[1] + u[..., None] * c[2]
        return np.asarray(np.clip(value, self.low, self.high))


def fit_surface(
    y: npt.NDArray[Any], x: npt.NDArray[Any], values: npt.NDArray[Any], *, margin: float = 0.01
) -> Surface:
    """Fit a plane by iteratively reweighted least squares with Tukey's weights.

    A ridge worth a hundredth of a point keeps the plane flat in directions without points.

    Args:
        y, x: (K,) positions, K >= 1.
        values: (K, C).
        margin: distance by which the surface may leave the 1st to 99th percentile of the values.
    """
    y64, x64 = np.asarray(y, np.float64), np.asarray(x, np.float64)
    v = np.asarray(values, np.float64)
    origin = (float((y64.min() + y64.max()) / 2), float((x64.min() + x64.max()) / 2))
    span = (max(float(np.ptp(y64)) / 2, 1.0), max(float(np.ptp(x64)) / 2, 1.0))
    design = np.stack(
        [np.ones_like(y64), (y64 - origin[0]) / span[0], (x64 - origin[1]) / span[1]], 1
    )
    ridge = np.diag([1e-9, 1e-2, 1e-2])
    coefficients = np.zeros((3, v.shape[1]))
    coefficients[0] = np.median(v, axis=0)
    for _ in range(_ROUNDS):
        residual = np.abs(v - design @ coefficients).max(1)
        scale = max(1.4826 * float(np.median(residual)), 1e-4)
        w = np.clip(1 - (residual / (_TUKEY * scale)) ** 2, 0, None) ** 2
        if w.sum() <= 1e-9 * len(w):
            break
        gram = design.T @ (w[:, None] * design) + ridge
        update = np.linalg.solve(gram, design.T @ (w[:, None] * v))
        converged = np.allclose(update, coefficients, atol=1e-6)
        coefficients = update
        if converged:
            break
    low, high = np.percentile(v, [1, 99], axis=0)
    return Surface(coefficients, origin, span, low - margin, high + margin)
