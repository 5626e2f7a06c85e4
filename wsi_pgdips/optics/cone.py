"""The cone of colours of two stains: its plane, and its edges from histograms of angles.

A stain is identified by its purest pixels, the edge of the cone. Noise blurs that edge by an angle
of noise / strength, so each pixel is first moved inwards by twice its own uncertainty; the edge is
then where only a small share of the pixels, weighted by strength, lies outside. Whether many or few
pixels are pure then matters little: a point of pure colour has its edge within half its noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import FloatArray

Floats = npt.NDArray[np.float64]

SUPPORT, FAR = 0.05, np.radians(4.0)  # an edge lies no further beyond so much of its side
TAIL = 0.01  # of a slide's own side; few pixels of real tissue are pure
TILE_TAIL = 0.02  # of one tile's: less noisy, and only differences between tiles are used
REACH = 2.0  # pixels are moved inwards by so many times their noise
GLASS_ERROR_OD = 0.002  # and by what is not known of the glass beneath
ANGLE_BINS = 360
ANGLE_RANGE = (-0.9, 0.9)  # radians around the bisector of the two stains
_MIN_PIXELS = 50
_ROBUST = 1.4826  # standard deviation over median absolute deviation
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


def pixel_noise(
    y: npt.NDArray[Any], plane: Plane, angles: npt.NDArray[Any], fallback: float = 0.0
) -> Floats:
    """Noise across the ray of each pixel of a tile, from what lies out of the tile's own plane.

    Noise in OD grows with OD and differs between colours, so it is taken by side and strength.

    Args:
        y: (P, 3) glass-corrected OD. plane: of the two stains. angles: (2,) of the stains in it.
        fallback: where there are too few pixels.

    Returns:
        (P,) OD.
    """
    y = np.asarray(y, np.float64)
    if len(y) < _MIN_PIXELS:
        return np.full(len(y), fallback)
    along = y @ dual(plane.rays(angles))
    out = y @ plane.normal.astype(np.float64)
    gram = along.T @ along
    ridge = 1e-3 * np.trace(gram) + 1.0
    out = np.abs(out - along @ np.linalg.solve(gram + ridge * np.eye(2), along.T @ out))
    noise = np.full(len(y), _ROBUST * _median(out))
    phi, strength = plane.angles(y), _strength(y)
    second = phi >= np.mean(angles)
    for side in (~second, second):
        own = np.flatnonzero(side)
        if len(own) >= 4 * _MIN_PIXELS:
            for quarter in np.array_split(own[np.argsort(strength[own])], 4):
                noise[quarter] = _ROBUST * _median(out[quarter])
    return noise


def dual(rows: npt.NDArray[Any]) -> Floats:
    """(3, N) the pseudo-inverse of (N, 3) independent rows."""
    wide = np.asarray(rows, np.float64)
    return np.asarray(wide.T @ np.linalg.inv(wide @ wide.T))


def _median(values: Floats) -> float:
    """``numpy.median`` of (K,), which for a few hundred is mostly its own overhead."""
    middle = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, middle)[middle])
    low, high = np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1]
    return float((low + high) / 2)


def edge_histograms(y: npt.NDArray[Any], plane: Plane, noise: float | Floats) -> Floats:
    """Angles moved inwards by each pixel's uncertainty, weighted by strength.

    Args:
        y: (P, 3) glass-corrected OD. plane: of the two stains.
        noise: OD across the ray, (P,) or one for all.

    Returns:
        (2, ANGLE_BINS): moved towards larger angles for the first stain's edge, smaller for the
        second's. Sums; histograms of several tiles may be added.
    """
    phi = plane.angles(y)
    strength = _strength(y)
    reach = (REACH * noise + GLASS_ERROR_OD) / np.maximum(strength, 1e-3)
    return np.stack([_histogram(phi + sign * reach, strength) for sign in (1, -1)])


def _strength(y: npt.NDArray[Any]) -> Floats:
    y = np.asarray(y, np.float64)
    return np.asarray(np.sqrt(np.einsum("pc,pc->p", y, y)))


def _histogram(angles: Floats, weights: Floats) -> Floats:
    """(ANGLE_BINS,) sums of weights; what lies out of range is left out."""
    low, high = ANGLE_RANGE
    # one bin before and one behind for the rest; several times as fast as numpy.histogram
    index = np.clip((angles - low) * (ANGLE_BINS / (high - low)) + 1, 0, ANGLE_BINS + 1)
    counts = np.bincount(index.astype(np.intp), weights, ANGLE_BINS + 2)
    return np.asarray(counts[1:-1], np.float64)


def cone_edges(
    histograms: npt.NDArray[Any], middle: float = 0.0, tail: float = TAIL
) -> tuple[Floats, Floats]:
    """The two edges of the cone.

    Args:
        histograms: (..., 2, ANGLE_BINS) from :func:`edge_histograms`, or sums of them.
        middle: radians, divides the stains' sides. tail: share of a side that lies outside.

    Returns:
        (..., 2) radians, NaN where a side is empty; (..., 2) strength on each side.
    """
    cut = int(np.searchsorted(EDGES, middle))
    first, second = histograms[..., 0, :cut], histograms[..., 1, cut:]
    low = _edge(first, EDGES[: cut + 1], tail)
    high = -_edge(second[..., ::-1], -EDGES[cut:][::-1], tail)
    return np.stack([low, high], -1), np.stack([first.sum(-1), second.sum(-1)], -1)


def aligned_edges(
    histograms: npt.NDArray[Any], shift: npt.NDArray[Any], middle: npt.NDArray[Any]
) -> tuple[Floats, Floats]:
    """The edges of a cone whose stains differ from place to place, each place's shift taken out.

    Args:
        histograms: (K, 2, ANGLE_BINS) of K places. shift: (K, 2) radians by which a place's edges
            lie beyond the common ones. middle: (K,) divides the sides at each place.

    Returns:
        (2,) radians, NaN where a side is empty; (2, ANGLE_BINS) sums of the aligned sides.
    """
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    total = np.zeros((2, ANGLE_BINS))
    for pair, moved, cut in zip(histograms, shift, middle, strict=True):
        for k, own in enumerate((centres < cut, centres >= cut)):
            total[k] += _histogram(centres[own] - moved[k], pair[k, own])
    low = _quantile(total[0], EDGES, TAIL)
    high = -_quantile(total[1, ::-1], -EDGES[::-1], TAIL)
    return np.stack([low, high]), total


def _edge(histogram: npt.NDArray[Any], edges: Floats, tail: float) -> Floats:
    """The lower edge of one side: where its tail begins, and no further out than a few of its
    pixels support; what lies beyond those is pigment, ink or a fringe of colour, not a stain."""
    supported = _quantile(histogram, edges, SUPPORT) - FAR
    return np.asarray(np.fmax(_quantile(histogram, edges, tail), supported), np.float64)


def supported_edges(sides: npt.NDArray[Any]) -> Floats:
    """(2,) how far out the edges of (2, ANGLE_BINS) sides may lie by the pixels near them."""
    low = _quantile(sides[0], EDGES, SUPPORT) - FAR
    high = -_quantile(sides[1, ::-1], -EDGES[::-1], SUPPORT) + FAR
    return np.stack([low, high])


def _quantile(histogram: npt.NDArray[Any], edges: Floats, tail: float) -> Floats:
    total = np.cumsum(np.asarray(histogram, np.float64), -1)
    target = tail * total[..., -1:]
    index = np.minimum((total < target).sum(-1, keepdims=True), total.shape[-1] - 1)
    inside = np.take_along_axis(np.asarray(histogram, np.float64), index, -1)
    before = np.take_along_axis(total, index, -1) - inside
    share = np.divide(target - before, inside, out=np.zeros_like(inside), where=inside > 0)
    angle = edges[index] + share * (edges[index + 1] - edges[index])
    return np.where(total[..., -1] > 0, angle[..., 0], np.nan)


Floats = npt.NDArray[np.float64]

NEAR = np.radians(4.0)
PURE_SHARE = (0.05, 0.15)  # of a side's strength near its edge: none is pure, enough are
# an edge leans in by less on real texture, and a stain may differ by more from the library's
FURTHEST = np.radians(5.0)
LEAST_WIDTH = 0.75  # of the angle between the library's stains


def leaned_tilt(
    tilt: npt.NDArray[Any],
    histograms: npt.NDArray[Any],
    edges: npt.NDArray[Any],
    library: npt.NDArray[Any],
    normal: npt.NDArray[Any],
) -> Floats:
    """(2,) how stains leave the plane: as the library's do where no pixel is pure (decision 31).

    Args:
        tilt: (2,) measured, per unit of what lies in the plane. histograms, edges: as for
            :func:`pure_shares`. library: (2, 3) unit rows. normal: (3,) of the plane.
    """
    height = np.asarray(library, np.float64) @ np.asarray(normal, np.float64)
    known = height / np.sqrt(np.maximum(1 - height**2, 1e-6))
    return np.asarray(tilt + doubts(histograms, edges) * (known - tilt))


def pure_shares(histograms: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    """(2,) share of each side's strength that lies near its edge, or beyond.

    Args:
        histograms: (2, ANGLE_BINS) of the two sides (``optics.cone``), nothing of the other side.
        edges: (2,) radians.
    """
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    near = np.stack([centres < edges[0] + NEAR, centres > edges[1] - NEAR])
    mass = histograms.sum(1)
    return np.asarray((histograms * near).sum(1) / np.maximum(mass, 1e-12), np.float64)


def leaned(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """(2,) the edges, radians, after both moves; arguments as of :func:`outward`."""
    kept = inward(histograms, edges, library)
    return np.asarray(kept + outward(histograms, kept, library))


def doubts(histograms: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    """(2,) 0 where enough pixels near an edge are pure, 1 where none is; as :func:`pure_shares`."""
    none, enough = PURE_SHARE
    share = (pure_shares(histograms, edges) - none) / (enough - none)
    return np.asarray(1 - np.clip(share, 0, 1))


def inward(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """(2,) the edges, those further out than the library and than their pixels support moved in."""
    allowed = supported_edges(histograms)
    target = np.array([min(allowed[0], library[0]), max(allowed[1], library[1])])
    out = np.array([-1.0, 1.0])
    beyond = np.nan_to_num(np.maximum((edges - target) * out, 0))
    return np.asarray(edges - out * beyond)


def outward(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """(2,) radians to add to the edges.

    Args:
        histograms: as for :func:`pure_shares`. edges: (2,) radians. library: (2,) angles of the
            library's stains in the same plane.
    """
    out = np.array([-1.0, 1.0])
    gap = np.maximum((library - edges) * out, 0)
    move = doubts(histograms, edges) * np.minimum(gap, FURTHEST)
    missing = LEAST_WIDTH * (library[1] - library[0]) - (edges[1] - edges[0]) - move.sum()
    left = gap - move
    if missing > 0 and left.sum() > 0:
        move += left * min(missing / left.sum(), 1.0)
    return np.asarray(out * move)
