"""Stain vectors from the edges of the cone of colours (decisions 7, 15, 23, 24).

Reconstruction does not identify S: any rotation inside the plane of the stains fits as well. A
stain is identified by its purest pixels. All estimates use optical density that is corrected for
glass and pooled 4x4, which reduces sensor and chroma noise before angles are computed.

Pure pixels of one of three stains may be rare, but pixels that lack one stain are not: they lie on
the faces of the cone. So the cone is shrunk until its faces meet them. A pixel costs as much as it
lies further outside a face than its noise explains, and the cone costs its volume (decision 24).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from wsi_pgdips.optics.cone import (
    GLASS_ERROR_OD,
    REACH,
    TILE_TAIL,
    Plane,
    aligned_edges,
    cone_edges,
    edge_histograms,
    inward,
    leaned,
    leaned_tilt,
    pixel_noise,
)
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import FloatArray

POOL = 4
MIN_MEAN_OD = 0.1  # low enough that pale, pure counterstain counts
SATURATED_OD = 2.0  # above, a channel is at the detector's floor and distorts the angle
GATE_DEG = 30.0
MIN_CELLS = 60  # least number of pooled cells for any estimate
EXTREME = 1.0  # percentile of the plain estimate
_SQUARE = 16  # pooled cells
_ROUNDS = 2
_HALF_EVIDENCE = 20.0  # OD squared of one stain beyond the other at which a tilt counts half
_LEAST_DEG = 2.0  # closer rays do not span a plane
_HALF_MASS = 500.0  # pooled cells (as strength) on a side at which a tile's edge counts half
_ITERATIONS = 12
_FOUR_TRUE = 0x01010101  # four True bytes as one integer
_PURE_NOISE = 0.01  # OD of pooled noise that is subtracted from a pixel's purity
Floats = npt.NDArray[np.float64]
MAX_PIXELS = 50000  # that the smallest cone is sought on
OUTSIDE = 1500.0  # cost of one OD outside, relative to that of a relative change of volume
# noise of pooled OD: with three stains no channel is left to measure it in
NOISE_SHARE, NOISE_OD = 0.013, 0.001
MIN_SEPARATION_SHARE = 0.5  # least share of the library's angles; a collapsed cone is refused
_STEP = 0.05  # radians, of the first simplex


@dataclass(frozen=True)
class Rays:
    """Stain vectors: (N, 3) unit rows in the library's order, and True for each measured one."""

    stain_matrix: FloatArray
    measured: tuple[bool, ...]


def pool_od(
    od: FloatArray, valid: npt.NDArray[np.bool_]
) -> tuple[FloatArray, npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """The mean OD of 4x4 cells whose pixels are all valid and unsaturated.

    Args:
        od: (3, H, W) glass-corrected. valid: (H, W).

    Returns:
        (P, 3) float32, without cells brighter than ``MIN_MEAN_OD``; (P,) bool, the interleaved half
        of each cell (squares of 64 pixels, as on a checkerboard); and (2, P), its row and column
        among the cells.
    """
    pooled, usable = pooled_maps(od), valid & (_brightest(od) < SATURATED_OD)
    strong = pooled.mean(0) > MIN_MEAN_OD
    if not usable.all():
        strong &= _all_usable(usable)
    yy, xx = at = np.stack(np.nonzero(strong))
    half = (yy // _SQUARE + xx // _SQUARE) % 2 == 1
    return np.ascontiguousarray(pooled[:, yy, xx].T), half, at


def pooled_maps(maps: FloatArray) -> FloatArray:
    """Average 4x4 cells, (C, H, W) -> (C, H/4, W/4); incomplete cells are dropped."""
    h, w = (side // POOL for side in maps.shape[1:])
    lines = maps[:, : h * POOL, : w * POOL].reshape(-1, h, POOL, w * POOL)
    # summing plane by plane takes a third of the time of a pooling layer
    cells = functools.reduce(np.add, np.moveaxis(lines, 2, 0)).reshape(-1, h, w, POOL)
    total = functools.reduce(np.add, np.moveaxis(cells, 3, 0))
    return np.asarray(total * np.float32(1 / POOL**2))


def _all_usable(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Find the cells whose pixels are all usable: (H, W) -> (H/4, W/4)."""
    h, w = (side // POOL for side in usable.shape)
    rows = np.ascontiguousarray(usable[: h * POOL, : w * POOL]).view(np.uint32)
    return np.asarray((rows.reshape(h, POOL, w) == _FOUR_TRUE).all(1))


def _brightest(od: FloatArray) -> FloatArray:
    """The largest of the three channels, (H, W)."""
    return np.asarray(np.maximum(np.maximum(od[0], od[1]), od[2]), np.float32)


def across_noise(y: FloatArray, plane: Plane) -> float:
    """The noise of pooled OD across the rays: a robust spread of the out-of-plane component.

    Args:
        y: (P, 3) pooled OD. plane: of two stains.
    """
    out = y @ plane.normal
    return float(1.4826 * np.median(np.abs(out - np.median(out)))) if len(y) else 0.0


def estimate_rays(y: FloatArray, library: FloatArray, tiles: Sequence[int] | None = None) -> Rays:
    """Estimate the slide's stain vectors from pooled pixels, gated by the angle to the library.

    Args:
        y: (P, 3) from :func:`pool_od`. library: (N, 3) unit rows.
        tiles: number of rows of ``y`` from each tile, in order; by default all are from one tile.
            If colours differ between tiles, the result is their mean.

    Returns:
        Rows in the library's order. One stain: the mean direction. Two: the extreme rays of the
        slide's plane. Three: the smallest cone. More: the purest pixels. A stain that is too
        scarce, or whose ray leaves the gate of 30 degrees, keeps the library's vector and is marked
        as not measured. It is not turned into the slide's plane, because noise defines that plane
        if a stain is absent.
    """
    n = len(library)
    if len(y) < MIN_CELLS:
        return Rays(np.asarray(library, np.float32), (False,) * n)
    measured: tuple[bool, ...]
    if n == 1:
        found, measured = unit_rows(y.sum(0, keepdims=True)), (True,)
    elif n == 2:
        found, measured = _two_rays(y, library, [len(y)] if tiles is None else tiles)
    else:
        found, measured = _purest(y, library)
        if n == 3 and all(measured):
            found = smallest_cone(y, found, library)
    ok = np.array(measured) & (angle_deg(found, library) < GATE_DEG)
    return Rays(unit_rows(np.where(ok[:, None], found, library)), tuple(ok.tolist()))


def extreme_rays(y: FloatArray, library: FloatArray) -> FloatArray:
    """The plain estimate: the outermost percent of the angles of all pixels, gated.

    Args:
        y: (P, 3) from :func:`pool_od`. library: (N, 3) unit rows.

    Returns:
        (N, 3) unit rows. One stain: the mean direction. Two: the 1st and 99th percentile of the
        angle in the pixels' plane. More: the purest pixels. A ray outside the gate is replaced by
        the library's vector.
    """
    n = len(library)
    if len(y) < MIN_CELLS:
        return np.asarray(library, np.float32)
    if n == 1:
        found = unit_rows(y.sum(0, keepdims=True))
    elif n == 2:
        plane = fitted_plane(y, library)
        found = plane.rays(np.percentile(plane.angles(y), [EXTREME, 100 - EXTREME]))
    else:
        found, _ = _purest(y, library)
    near = angle_deg(found, library) < GATE_DEG
    return unit_rows(np.where(near[:, None], found, library))


def _two_rays(
    y: FloatArray, library: FloatArray, tiles: Sequence[int]
) -> tuple[FloatArray, tuple[bool, ...]]:
    plane = fitted_plane(y, library)
    noise = across_noise(y, plane)
    edges, _ = cone_edges(edge_histograms(y, plane, noise))
    strength = np.linalg.norm(y, axis=1)
    beyond = plane.angles(y)[:, None] * (-1, 1) > (noise / np.maximum(strength, 1e-3))[:, None]
    measured = (strength[:, None] * beyond).sum(0) > MIN_CELLS * strength.mean()
    measured &= np.isfinite(edges)
    rows = np.where(measured[:, None], plane.rays(np.nan_to_num(edges)), library)
    parts = np.split(y, np.cumsum(tiles)[:-1])
    parts = [part for part in parts if len(part) >= MIN_CELLS] or [y]
    for k in range(_ROUNDS):
        if angle_deg(rows[0], rows[1]) < _LEAST_DEG:
            break
        refined = _refined(parts, unit_rows(rows), library, measured, lean=k == _ROUNDS - 1)
        rows = np.where(measured[:, None], refined, rows)
    return unit_rows(rows), tuple(measured.tolist())


def _refined(
    parts: Sequence[FloatArray],
    rows: FloatArray,
    library: FloatArray,
    measured: npt.NDArray[np.bool_],
    *,
    lean: bool,
) -> FloatArray:
    """The edges (2, 3) of tiles that may drift: each tile is aligned to their mean before the sum.

    With ``lean`` edges without pure pixels, and their tilts, move towards the library.
    """
    plane = Plane.of(rows)
    own = plane.angles(rows)
    noise = across_noise(np.concatenate(parts), plane)
    histograms = np.stack(
        [edge_histograms(part, plane, pixel_noise(part, plane, own, noise)) for part in parts]
    )
    edges, mass = cone_edges(histograms, tail=TILE_TAIL)
    edges = np.where(np.isfinite(edges), edges, own)
    vote = mass / (mass + _HALF_MASS)
    count = np.array([len(part) for part in parts], np.float64)
    weight = vote * count[:, None] + 1e-9
    shift = vote * (edges - (weight * edges).sum(0) / weight.sum(0))
    shift -= (count[:, None] * shift).sum(0) / count.sum()
    angles, aligned = aligned_edges(histograms, shift, (own + shift).mean(1))
    angles = np.where(measured & np.isfinite(angles), angles, own)
    known = plane.angles(library)
    inner = inward(aligned, angles, known)
    tilts, evidence = np.array([_tilt(part, plane, rows) for part in parts]).swapaxes(0, 1)
    worth = evidence / (evidence + _HALF_EVIDENCE) * count[:, None] + 1e-9
    tilt = (worth * tilts).sum(0) / worth.sum(0)
    if lean:
        tilt = leaned_tilt(tilt, aligned, inner, library, plane.normal)
        inner = leaned(aligned, angles, known)
    return unit_rows(plane.rays(inner) + tilt[:, None] * plane.normal)


def _tilt(part: FloatArray, plane: Plane, rows: FloatArray) -> tuple[Floats, Floats]:
    """The out-of-plane component of each row in a tile, (2,), and the sum of its own q squared."""
    along = part.astype(np.float64) @ np.linalg.pinv(rows.astype(np.float64))
    gram = along.T @ along
    ridge = (1e-3 * np.trace(gram) + 1.0) * np.eye(2)
    tilt = np.linalg.solve(gram + ridge, along.T @ (part @ plane.normal))
    own = np.diag(gram) - gram[0, 1] ** 2 / np.maximum(np.diag(gram)[::-1], 1e-9)
    return tilt, np.maximum(own, 0)


def fitted_plane(y: FloatArray, library: FloatArray) -> Plane:
    """The plane of the slide, from the first to the second stain.

    If it is not close to the library's plane, the library's plane is returned.
    """
    moment = (y.T @ y).astype(np.float64)
    _, vectors = np.linalg.eigh(moment)
    normal = vectors[:, 0]
    flat = library - np.outer(library @ normal, normal)  # library rows turned into the plane
    plane = Plane.of(unit_rows(flat))
    return plane if np.all(angle_deg(flat, library) < GATE_DEG) else Plane.of(library)


def _purest(y: FloatArray, library: FloatArray) -> tuple[FloatArray, tuple[bool, ...]]:
    """The vertices of the cone of three or more stains: means of the purest pixels, iterated."""
    rows = np.asarray(library, np.float64)
    strength = np.linalg.norm(y, axis=1).astype(np.float64)
    measured = [True] * len(rows)
    for _ in range(_ITERATIONS):
        dual = np.linalg.pinv(rows)  # (3, N): y @ dual are coordinates along the rows
        q = y @ dual
        total = np.maximum(np.abs(q).sum(1), 1e-6)
        updated = rows.copy()
        for k in range(len(rows)):
            share = (q[:, k] - _PURE_NOISE * np.linalg.norm(dual[:, k])) / total
            own = share > 0.5
            measured[k] = int(own.sum()) >= MIN_CELLS
            if measured[k]:
                order = np.argsort(-share[own], kind="stable")
                mass = np.cumsum(strength[own][order])
                pure = order[mass <= max(4e-2 * mass[-1], mass[min(MIN_CELLS, len(mass)) - 1])]
                updated[k] = y[own][pure].sum(0)
        updated = np.asarray(unit_rows(np.maximum(updated, 0)), np.float64)
        if np.abs(updated - rows).max() < 1e-4:
            break
        rows = updated
    return unit_rows(rows), tuple(measured)


def smallest_cone(y: FloatArray, start: FloatArray, library: FloatArray) -> FloatArray:
    """Find the smallest cone of three stains that contains the slide's colours.

    The search is that of Nelder and Mead, from ``start`` over the directions of the three rows, on
    a regular sample of the pixels ordered by strength.

    Args:
        y: (P, 3) glass-corrected, pooled OD. start: (3, 3) unit rows. library: (3, 3).

    Returns:
        (3, 3) unit rows; ``start`` if the cone collapsed.
    """
    strength = np.linalg.norm(y.astype(np.float64), axis=1)
    order = np.argsort(strength, kind="stable")[:: max(len(y) // MAX_PIXELS, 1)]
    pixels, strength = y[order].astype(np.float64), strength[order]
    margin = (REACH * (NOISE_SHARE * strength + NOISE_OD) + GLASS_ERROR_OD)[:, None]
    weight = strength / strength.sum()
    base = start.astype(np.float64)
    sideways = np.stack([np.linalg.svd(row[None])[2][1:] for row in base])  # (3, 2, 3)

    def rows(turn: Floats) -> Floats:
        moved = base + np.einsum("nk,nkc->nc", turn.reshape(3, 2), sideways)
        return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True))

    def cost(turn: Floats) -> float:
        cone = rows(turn)
        volume = abs(float(np.linalg.det(cone)))
        if volume < 1e-4:
            return 1e3
        faces = np.linalg.inv(cone)  # a column is normal to the face of the other two
        inside = pixels @ (faces / np.linalg.norm(faces, axis=0))
        outside = np.maximum(-inside - margin, 0).sum(1)
        negative = np.maximum(-cone, 0).sum()  # stains absorb
        return float(np.log(volume) + OUTSIDE * (weight @ outside) + 100 * negative)

    simplex = np.concatenate([np.zeros((1, 6)), _STEP * np.eye(6)])
    options = {"initial_simplex": simplex, "maxiter": 500, "xatol": 3e-4, "fatol": 1e-5}
    found = unit_rows(rows(minimize(cost, np.zeros(6), method="Nelder-Mead", options=options).x))
    for i, j in combinations(range(3), 2):
        if angle_deg(found[i], found[j]) < MIN_SEPARATION_SHARE * angle_deg(library[i], library[j]):
            return start
    return found
