"""The cone of colours of two stains: its plane, and its edges from histograms of angles.

A stain is identified by its purest pixels, the edge of the cone. Noise blurs that edge by an angle
of noise / strength, so each pixel is first moved inwards by its own uncertainty; the edge is then
where only a small share of the pixels, weighted by strength, lies outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import FloatArray

Floats = npt.NDArray[np.float64]

TAIL = 0.02
ANGLE_BINS = 360
ANGLE_RANGE = (-0.9, 0.9)  # radians around the bisector of the two stains
EDGES: Floats = np.linspace(*ANGLE_RANGE, ANGLE_BINS + 1)


@dataclass(frozen=True)
class Plane:
    """The plane of two stains: y = r (cos(phi) e1 + sin(phi) e2) + t normal."""

    e1: FloatArray
    e2: FloatArray
    normal: FloatArray

    @classmethod
    def of(cls, stain_matrix: FloatArray) -> Plane:
        """The plane through two rows; e1 halfway between them, angles grow towards the second."""
        a, b = np.asarray(stain_matrix, np.float64)
        e1 = np.asarray(unit_rows(a + b), np.float64)
        e2 = unit_rows((b - a) - np.dot(b - a, e1) * e1)
        return cls(e1.astype(np.float32), e2, unit_rows(np.cross(e1, e2)))

    def angles(self, y: npt.NDArray[Any]) -> Floats:
        """(..., 3) -> (...) radians from e1."""
        y = np.asarray(y, np.float64)
        return np.asarray(np.arctan2(y @ self.e2, y @ self.e1))

    def rays(self, phi: npt.ArrayLike) -> FloatArray:
        """(...) radians -> (..., 3) unit vectors in the plane."""
        p = np.asarray(phi, np.float64)[..., None]
        return np.asarray(np.cos(p) * self.e1 + np.sin(p) * self.e2, np.float32)


def edge_histograms(y: npt.NDArray[Any], plane: Plane, noise: float) -> Floats:
    """Angles moved inwards by each pixel's uncertainty, weighted by strength.

    Args:
        y: (P, 3) glass-corrected OD. plane: of the two stains. noise: OD across the ray.

    Returns:
        (2, ANGLE_BINS): moved towards larger angles for the first stain's edge, smaller for the
        second's. Sums; histograms of several tiles may be added.
    """
    phi = plane.angles(y)
    strength = np.linalg.norm(y.astype(np.float64), axis=1)
    reach = noise / np.maximum(strength, 1e-3)
    return np.stack(
        [
            np.histogram(phi + sign * reach, ANGLE_BINS, ANGLE_RANGE, weights=strength)[0]
            for sign in (1, -1)
        ]
    )


def cone_edges(histograms: npt.NDArray[Any], middle: float = 0.0) -> tuple[Floats, Floats]:
    """The two edges of the cone.

    Args:
        histograms: (..., 2, ANGLE_BINS) from :func:`edge_histograms`, or sums of them.
        middle: radians, divides the stains' sides.

    Returns:
        (..., 2) radians, NaN where a side is empty; (..., 2) strength on each side.
    """
    cut = int(np.searchsorted(EDGES, middle))
    first, second = histograms[..., 0, :cut], histograms[..., 1, cut:]
    low = _quantile(first, EDGES[: cut + 1])
    high = -_quantile(second[..., ::-1], -EDGES[cut:][::-1])
    return np.stack([low, high], -1), np.stack([first.sum(-1), second.sum(-1)], -1)


def _quantile(histogram: npt.NDArray[Any], edges: Floats) -> Floats:
    total = np.cumsum(np.asarray(histogram, np.float64), -1)
    target = TAIL * total[..., -1:]
    index = np.minimum((total < target).sum(-1, keepdims=True), total.shape[-1] - 1)
    inside = np.take_along_axis(np.asarray(histogram, np.float64), index, -1)
    before = np.take_along_axis(total, index, -1) - inside
    share = np.divide(target - before, inside, out=np.zeros_like(inside), where=inside > 0)
    angle = edges[index] + share * (edges[index + 1] - edges[index])
    return np.where(total[..., -1] > 0, angle[..., 0], np.nan)
