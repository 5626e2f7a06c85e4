"""The cone of colours of two stains: its plane, its edges, and their correction by the library.

A stain is identified by its purest pixels, which lie on the edge of the cone. Noise blurs that edge
by an angle of noise / strength. So each pixel is first moved inwards by twice its own uncertainty;
the edge is then the angle outside of which only a small share of the pixels lies, weighted by
strength. The result depends little on how many pixels are pure: a point of pure colour has its
edge within half its noise.

Mixtures lie inside the cone of their stains. So an edge with few pure pixels can only lie too far
in, never too far out. The share of a side's strength close to its edge tells how many pixels are
pure. If that share is small, or if the whole cone is much narrower than the library's, the edge
moves outwards to the library's vector, but not beyond it. An edge with pure pixels stays. Mixtures
do not tell how a stain leaves the plane either, so the library decides there, too.

An edge far outside the bulk of its side, and outside the library's vector, comes from pigment, ink
or a colour fringe. It moves in to where pixels support it, but no further than the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import FloatArray

Floats = npt.NDArray[np.float64]

SUPPORT, FAR = 0.05, np.radians(4.0)  # an edge lies at most FAR outside this share of its side
TAIL = 0.01  # share of a slide's side outside the edge; few pixels of real tissue are pure
TILE_TAIL = 0.02  # the same for one tile: less noisy, and only differences of tiles are used
REACH = 2.0  # pixels move inwards by this many times their noise
GLASS_ERROR_OD = 0.002  # and by this uncertainty of the glass beneath
ANGLE_BINS = 360
ANGLE_RANGE = (-0.9, 0.9)  # radians around the bisector of the two stains
_MIN_PIXELS = 50
_ROBUST = 1.4826  # standard deviation over median absolute deviation
EDGES: Floats = np.linspace(*ANGLE_RANGE, ANGLE_BINS + 1)
NEAR = np.radians(4.0)  # pixels within this angle of an edge count as pure
PURE_SHARE = (0.05, 0.15)  # share of a side's strength near its edge: none is pure, enough are pure
# real texture bends edges inwards by less, and a stain may differ more from the library's vector
FURTHEST = np.radians(5.0)
LEAST_WIDTH = 0.75  # of the angle between the library's stains
_OUT = np.array([-1.0, 1.0])  # the outward direction at each edge


@dataclass(frozen=True)
class Plane:
    """The plane of two stains: y = r (cos(phi) e1 + sin(phi) e2) + t normal."""

    e1: FloatArray
    e2: FloatArray
    normal: FloatArray

    @classmethod
    def of(cls, stain_matrix: FloatArray) -> Plane:
        """The plane through the rows of (2, 3): e1 lies halfway, angles grow to the second row."""
        a, b = np.asarray(stain_matrix, np.float64)
        e1 = np.asarray(unit_rows(a + b), np.float64)
        e2 = unit_rows((b - a) - np.dot(b - a, e1) * e1)
        return cls(e1.astype(np.float32), e2, unit_rows(np.cross(e1, e2)))

    def angles(self, y: npt.NDArray[Any]) -> Floats:
        """Angles from e1 in radians: (..., 3) -> (...)."""
        y = np.asarray(y, np.float64)
        return np.asarray(np.arctan2(y @ self.e2, y @ self.e1))

    def rays(self, phi: npt.ArrayLike) -> FloatArray:
        """Unit vectors of the plane at angles in radians: (...) -> (..., 3)."""
        p = np.asarray(phi, np.float64)[..., None]
        return np.asarray(np.cos(p) * self.e1 + np.sin(p) * self.e2, np.float32)


def pixel_noise(
    y: npt.NDArray[Any], plane: Plane, angles: npt.NDArray[Any], fallback: float = 0.0
) -> Floats:
    """The noise across the ray of each pixel of a tile, from the part outside the tile's own plane.

    Noise in OD grows with OD and differs between colours. So it is estimated separately for each
    side of the cone and each quarter of the strengths.

    Args:
        y: (P, 3) glass-corrected OD. plane: of the two stains. angles: (2,) of the stains in it.
        fallback: used if there are too few pixels.

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
    """The pseudo-inverse of independent rows: (N, 3) -> (3, N)."""
    wide = np.asarray(rows, np.float64)
    return np.asarray(wide.T @ np.linalg.inv(wide @ wide.T))


def _median(values: Floats) -> float:
    """The median of (K,); for a few hundred values ``numpy.median`` is mostly overhead."""
    middle = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, middle)[middle])
    low, high = np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1]
    return float((low + high) / 2)


def edge_histograms(y: npt.NDArray[Any], plane: Plane, noise: float | Floats) -> Floats:
    """Histograms of angles, each moved inwards by its pixel's uncertainty, weighted by strength.

    Args:
        y: (P, 3) glass-corrected OD. plane: of the two stains.
        noise: OD across the ray, (P,) or one value for all.

    Returns:
        (2, ANGLE_BINS) sums, which may be added over tiles. For the first stain's edge the angles
        are moved up, for the second stain's edge down.
    """
    phi = plane.angles(y)
    strength = _strength(y)
    reach = (REACH * noise + GLASS_ERROR_OD) / np.maximum(strength, 1e-3)
    return np.stack([_histogram(phi + sign * reach, strength) for sign in (1, -1)])


def _strength(y: npt.NDArray[Any]) -> Floats:
    y = np.asarray(y, np.float64)
    return np.asarray(np.sqrt(np.einsum("pc,pc->p", y, y)))


def _histogram(angles: Floats, weights: Floats) -> Floats:
    """Sums of weights per bin, (ANGLE_BINS,); angles out of range are left out."""
    low, high = ANGLE_RANGE
    # two more bins take the angles out of range; several times as fast as numpy.histogram
    index = np.clip((angles - low) * (ANGLE_BINS / (high - low)) + 1, 0, ANGLE_BINS + 1)
    counts = np.bincount(index.astype(np.intp), weights, ANGLE_BINS + 2)
    return np.asarray(counts[1:-1], np.float64)


def cone_edges(
    histograms: npt.NDArray[Any], middle: float = 0.0, tail: float = TAIL
) -> tuple[Floats, Floats]:
    """The two edges of the cone.

    Args:
        histograms: (..., 2, ANGLE_BINS) from :func:`edge_histograms`, or sums of them.
        middle: radians, separates the stains' sides. tail: share of a side outside its edge.

    Returns:
        (..., 2) radians, NaN if a side is empty; (..., 2) strength of each side.
    """
    cut = int(np.searchsorted(EDGES, middle))
    first, second = histograms[..., 0, :cut], histograms[..., 1, cut:]
    low = _edge(first, EDGES[: cut + 1], tail)
    high = -_edge(second[..., ::-1], -EDGES[cut:][::-1], tail)
    return np.stack([low, high], -1), np.stack([first.sum(-1), second.sum(-1)], -1)


def aligned_edges(
    histograms: npt.NDArray[Any], shift: npt.NDArray[Any], middle: npt.NDArray[Any]
) -> tuple[Floats, Floats]:
    """The edges of a cone whose stains drift over the slide, after each location is aligned.

    Args:
        histograms: (K, 2, ANGLE_BINS) of K locations. shift: (K, 2) radians from the common edges
            to those of a location, subtracted first. middle: (K,) separates the sides there.

    Returns:
        (2,) radians, NaN if a side is empty; (2, ANGLE_BINS) sums of the aligned sides.
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
    """The lower edge of one side: the start of its tail, limited to what its pixels support.

    Anything beyond is pigment, ink or a colour fringe, not a stain.
    """
    supported = _quantile(histogram, edges, SUPPORT) - FAR
    return np.asarray(np.fmax(_quantile(histogram, edges, tail), supported), np.float64)


def supported_edges(sides: npt.NDArray[Any]) -> Floats:
    """The furthest edges, (2,) radians, that the pixels of (2, ANGLE_BINS) sides support."""
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


def leaned_tilt(
    tilt: npt.NDArray[Any],
    histograms: npt.NDArray[Any],
    edges: npt.NDArray[Any],
    library: npt.NDArray[Any],
    normal: npt.NDArray[Any],
) -> Floats:
    """The tilts of two stains out of their plane: the library's if no pixel is pure (decision 31).

    Args:
        tilt: (2,) measured, per unit of the part in the plane. histograms, edges: as for
            :func:`pure_shares`. library: (2, 3) unit rows. normal: (3,) of the plane.

    Returns:
        (2,) tilts between the measured ones and the library's.
    """
    height = np.asarray(library, np.float64) @ np.asarray(normal, np.float64)
    known = height / np.sqrt(np.maximum(1 - height**2, 1e-6))
    return np.asarray(tilt + doubts(histograms, edges) * (known - tilt))


def pure_shares(histograms: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    """The share of each side's strength near its edge or beyond it, (2,) in [0, 1].

    Args:
        histograms: (2, ANGLE_BINS), each row holds one side only.
        edges: (2,) radians.
    """
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    near = np.stack([centres < edges[0] + NEAR, centres > edges[1] - NEAR])
    mass = histograms.sum(1)
    return np.asarray((histograms * near).sum(1) / np.maximum(mass, 1e-12), np.float64)


def leaned(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """The edges, (2,) radians, after :func:`inward` and :func:`outward`; the same arguments."""
    kept = inward(histograms, edges, library)
    return np.asarray(kept + outward(histograms, kept, library))


def doubts(histograms: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    """The doubt about each edge, (2,): 0 if enough pixels are pure, 1 if none is.

    Arguments as for :func:`pure_shares`.
    """
    none, enough = PURE_SHARE
    share = (pure_shares(histograms, edges) - none) / (enough - none)
    return np.asarray(1 - np.clip(share, 0, 1))


def inward(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """The edges, (2,) radians, moved in if outside both the library and what pixels support.

    Arguments as for :func:`outward`.
    """
    allowed = supported_edges(histograms)
    target = np.array([min(allowed[0], library[0]), max(allowed[1], library[1])])
    beyond = np.nan_to_num(np.maximum((edges - target) * _OUT, 0))
    return np.asarray(edges - _OUT * beyond)


def outward(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """The move towards the library of edges without pure pixels: (2,) radians to add.

    Args:
        histograms: as for :func:`pure_shares`. edges: (2,) radians. library: (2,) angles of the
            library's stains in the same plane.
    """
    gap = np.maximum((library - edges) * _OUT, 0)
    move = doubts(histograms, edges) * np.minimum(gap, FURTHEST)
    missing = LEAST_WIDTH * (library[1] - library[0]) - (edges[1] - edges[0]) - move.sum()
    left = gap - move
    if missing > 0 and left.sum() > 0:
        move += left * min(missing / left.sum(), 1.0)
    return np.asarray(_OUT * move)
