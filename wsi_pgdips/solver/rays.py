"""Stain vectors from the edges of the cone of colours (decisions 7, 15, 20).

Reconstruction does not identify S: any rotation inside the plane of the stains fits as well. What
identifies a stain are its purest pixels. All estimates take optical density that is corrected for
glass and pooled 4x4, which quiets sensor and chroma noise before an angle is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.cone import TAIL, Plane, cone_edges, edge_histograms
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import FloatArray

POOL = 4
MIN_MEAN_OD = 0.1  # low enough that pale, pure counterstain counts
SATURATED_OD = 2.0  # beyond, a channel sits at the detector's floor and bends the angle
GATE_DEG = 30.0
MIN_CELLS = 60  # pooled cells below which nothing is estimated
_SQUARE = 16  # pooled cells
_ITERATIONS = 12
_PURE_NOISE = 0.01  # OD of pooled noise by which a pixel's purity is marked down


@dataclass(frozen=True)
class Rays:
    """(N, 3) unit rows in the library's order, and for each whether it was measured."""

    stain_matrix: FloatArray
    measured: tuple[bool, ...]


def pool_od(
    od: FloatArray, valid: npt.NDArray[np.bool_]
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Mean OD of 4x4 cells all of whose pixels are valid and unsaturated.

    Args:
        od: (3, H, W) glass-corrected. valid: (H, W).

    Returns:
        (P, 3) float32, cells brighter than ``MIN_MEAN_OD`` left out; and (P,) bool, which of two
        interleaved halves (squares of 64 pixels, as on a checkerboard) a cell belongs to.
    """
    h, w = (s // POOL * POOL for s in valid.shape)
    cells = od[:, :h, :w].reshape(3, h // POOL, POOL, w // POOL, POOL)
    usable = valid & (od.max(0) < SATURATED_OD)
    full = usable[:h, :w].reshape(h // POOL, POOL, w // POOL, POOL).all((1, 3))
    pooled = cells.mean((2, 4), dtype=np.float32)[:, full].T  # (3, h/4, w/4) -> (P, 3)
    yy, xx = np.nonzero(full)
    half = (yy // _SQUARE + xx // _SQUARE) % 2 == 1
    strong = pooled.mean(1) > MIN_MEAN_OD
    return np.ascontiguousarray(pooled[strong]), half[strong]


def across_noise(y: FloatArray, plane: Plane) -> float:
    """Noise of pooled OD across the rays, from the component out of the plane; robust.

    Args:
        y: (P, 3) pooled OD. plane: of two stains.
    """
    out = y @ plane.normal
    return float(1.4826 * np.median(np.abs(out - np.median(out)))) if len(y) else 0.0


def estimate_rays(y: FloatArray, library: FloatArray) -> Rays:
    """The slide's stain vectors from pooled pixels, gated by angle to the library.

    Args:
        y: (P, 3) from :func:`pool_od`. library: (N, 3) unit rows.

    Returns:
        Rows in the library's order. One stain: mean direction. Two: extreme rays of the slide's
        plane. More: purest pixels by the dual vectors, iterated. A stain that is too scarce, or
        whose ray leaves the gate of 30 degrees, keeps the library's vector and is marked unmeasured
        (not turned into the slide's plane, which noise defines where a stain is absent).
    """
    n = len(library)
    if len(y) < MIN_CELLS:
        return Rays(np.asarray(library, np.float32), (False,) * n)
    measured: tuple[bool, ...]
    if n == 1:
        found, measured = unit_rows(y.sum(0, keepdims=True)), (True,)
    elif n == 2:
        found, measured = _two_rays(y, library)
    else:
        found, measured = _purest(y, library)
    ok = [
        m and bool(angle_deg(row, known) < GATE_DEG)
        for m, row, known in zip(measured, found, library, strict=True)
    ]
    rows = np.where(np.array(ok)[:, None], found, library)
    return Rays(unit_rows(rows), tuple(ok))


def _two_rays(y: FloatArray, library: FloatArray) -> tuple[FloatArray, tuple[bool, ...]]:
    plane = fitted_plane(y, library)
    edges, strength = cone_edges(edge_histograms(y, plane, across_noise(y, plane)))
    mean_strength = float(np.linalg.norm(y, axis=1).mean())
    measured = strength > MIN_CELLS * mean_strength
    rows = np.where(measured[:, None], plane.rays(np.nan_to_num(edges)), library)
    return rows, tuple(measured.tolist())


def fitted_plane(y: FloatArray, library: FloatArray) -> Plane:
    """The slide's plane where it is close to the library's, oriented from first to second stain."""
    moment = (y.T @ y).astype(np.float64)
    _, vectors = np.linalg.eigh(moment)
    normal = vectors[:, 0]
    flat = library - np.outer(library @ normal, normal)  # library rows turned into the plane
    plane = Plane.of(unit_rows(flat))
    return plane if np.all(angle_deg(flat, library) < GATE_DEG) else Plane.of(library)


def _purest(y: FloatArray, library: FloatArray) -> tuple[FloatArray, tuple[bool, ...]]:
    """Vertices of the cone of three or more stains: means of the purest pixels, iterated."""
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
                pure = order[mass <= max(2 * TAIL * mass[-1], mass[min(MIN_CELLS, len(mass)) - 1])]
                updated[k] = y[own][pure].sum(0)
        updated = np.asarray(unit_rows(np.maximum(updated, 0)), np.float64)
        if np.abs(updated - rows).max() < 1e-4:
            break
        rows = updated
    return unit_rows(rows), tuple(measured)
