"""Which pooled pixels have a say in the stain vectors: those that the slide as a whole supports.

Ink, pigment and colour fringes lie outside the cone of the stains, or far beyond its edges, in few
places. The pure pixels of a stain lie in many. So each square of the slide has edges of its own,
and a stain cannot lie much further out than the edges of many squares, or than the library's
vector. Pixels beyond, or off the plane of the stains, are left out (decision 54).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from wsi_pgdips.optics.cone import REACH, Plane
from wsi_pgdips.optics.foreign import is_foreign
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.solver.rays import POOL, pooled_maps
from wsi_pgdips.solver.tile import TileInput

Floats = npt.NDArray[np.float64]
SLACK = np.radians(5.0)  # beyond the edges that squares agree on; stains drift by as much
LIBRARY_SLACK = np.radians(9.0)  # beyond the library's vector; laboratories differ by as much
OFF_PLANE = np.radians(8.0)
GATE_DEG = 30.0  # pixels further from the library's cone have no say in the plane
# more foreign pixels than this are no accident: the stain set is not the slide's, and all stay
MOST_FOREIGN = 0.3
MIXED_SIDE, MIXED_SHARE = 32, 0.02  # pooled pixels of such a square, and their foreign share
_REACHED = 0.25  # share of the squares, by strength, that reach the edge they agree on
_TAIL = 0.05  # share of a square's side outside its own edge
_LEAST_PIXELS = 12  # of a square on one side
_ROUNDS, _LEAST_ANGLE = 10, np.radians(1.0)  # of the robust plane


def trusted(y: FloatArray, square: npt.NDArray[np.intp], library: FloatArray) -> BoolArray:
    """Find the pixels that have a say in the stain vectors.

    Args:
        y: (P, 3) pooled, glass-corrected OD. square: (P,) number of the square of each pixel.
        library: (N, 3) unit rows.

    Returns:
        (P,) bool.
    """
    strength = np.maximum(np.linalg.norm(y, axis=1).astype(np.float64), 1e-6)
    if len(library) != 2:
        return _near_cone(y, strength, library)
    plane, noise = robust_plane(y, strength, library)
    blur = REACH * noise / strength
    off = np.abs(np.arcsin(np.clip(y @ plane.normal / strength, -1, 1)))
    kept = off < OFF_PLANE + blur
    phi, known = plane.angles(y), plane.angles(library)
    for k, out in enumerate((-1.0, 1.0)):
        own = kept & (phi * out > 0)
        agreed = _agreed_edge(phi[own] * out - blur[own], strength[own], square[own])
        furthest = max(agreed + SLACK, known[k] * out + LIBRARY_SLACK)
        kept &= phi * out < furthest + blur
    return np.asarray(kept)


@dataclass(frozen=True)
class PooledTile:
    """The means of a tile's 4x4 squares of pixels, the halo included, as the stains explain them.

    Attributes:
        od: (3, h, w) glass-corrected OD. q: (N, h, w) closed form. foreign: (h, w) bool.
    """

    od: FloatArray
    q: FloatArray
    foreign: BoolArray


def pooled_tile(tile: TileInput, stain_matrix: FloatArray, noise: float) -> PooledTile:
    """Pool a tile.

    Args:
        stain_matrix: (N, 3) of the slide. noise: of pooled OD.
    """
    y = pooled_maps(tile.od) - tile.background[:, None, None]
    if tile.raised is not None:
        y += tile.raised[:, None, None]
    rows = torch.from_numpy(np.asarray(stain_matrix, np.float32))
    q = unmix(torch.from_numpy(y), rows, torch.zeros(3)).numpy()
    outside = y - np.einsum("nhw,nc->chw", q, stain_matrix)
    return PooledTile(y, q, np.asarray(is_foreign(_length(y), _length(outside), noise)))


def without_foreign(tile: TileInput, pooled: PooledTile) -> TileInput:
    """Return a tile whose foreign pixels are not tissue, nor are squares that hold many of them.

    What a foreign absorber is mixed with there turns the edges of the cone, too.
    """
    if not pooled.foreign.any():
        return tile
    alone, with_squares = (
        replace(tile, tissue=_less(tile.tissue, found))
        for found in (pooled.foreign, pooled.foreign | _spread(pooled.foreign))
    )
    # specks all over would leave nothing
    enough = MOST_FOREIGN * alone.own_tissue.sum() < with_squares.own_tissue.sum()
    return with_squares if enough else alone


def _less(tissue: BoolArray, found: BoolArray) -> BoolArray:
    """Return (H, W) tissue without the squares of 4x4 pixels that were found."""
    out, spread = tissue.copy(), np.repeat(np.repeat(found, POOL, 0), POOL, 1)
    h, w = spread.shape
    out[:h, :w] &= ~spread
    return out


def _spread(foreign: BoolArray) -> BoolArray:
    """Extend (h, w) foreign pixels to the whole squares that hold more than a few."""
    h, w = foreign.shape
    starts = [np.arange(0, n, MIXED_SIDE) for n in (h, w)]
    total = np.add.reduceat(np.add.reduceat(foreign.astype(np.int64), starts[0], 0), starts[1], 1)
    many = total > MIXED_SHARE * MIXED_SIDE**2
    return np.repeat(np.repeat(many, MIXED_SIDE, 0), MIXED_SIDE, 1)[:h, :w]


def robust_plane(y: FloatArray, strength: Floats, library: FloatArray) -> tuple[Plane, float]:
    """The plane of two stains with the least mean angle to the pixels, and the noise across it.

    It is found by reweighted least squares from the library's plane, which it keeps if the slide's
    is not close to it.
    """
    direction = y / strength[:, None]
    plane = Plane.of(library)
    cone = _outside(direction, library)
    near = cone < np.sin(np.radians(GATE_DEG))
    if near.sum() < _LEAST_PIXELS:
        return plane, 0.0
    u, w = direction[near], strength[near]
    normal = plane.normal.astype(np.float64)
    for _ in range(_ROUNDS):
        weight = w / np.maximum(np.abs(u @ normal), np.sin(_LEAST_ANGLE))
        _, vectors = np.linalg.eigh((u * weight[:, None]).T @ u)
        normal = vectors[:, 0]
    flat = library - np.outer(library @ normal, normal)
    if np.all(angle_deg(flat, library) < GATE_DEG):
        plane = Plane.of(unit_rows(flat))
    across = y[near] @ plane.normal
    return plane, float(1.4826 * np.median(np.abs(across - np.median(across))))


def _agreed_edge(out: Floats, strength: Floats, square: npt.NDArray[np.intp]) -> float:
    """The outward angle that the edges of a share of the squares reach; -inf without squares."""
    if not len(out):
        return -np.inf
    order = np.lexsort((-out, square))
    out, strength, square = out[order], strength[order], square[order]
    first = np.flatnonzero(np.r_[True, np.diff(square) > 0])
    count = np.diff(np.r_[first, len(square)])
    mass = np.add.reduceat(strength, first)
    total = np.cumsum(strength)
    before = np.repeat(total[first] - strength[first], count)
    outside = (total - before) < _TAIL * np.repeat(mass, count)
    at = first + np.add.reduceat(outside.astype(np.intp), first)
    full = count >= _LEAST_PIXELS
    if not full.any():
        return -np.inf
    edges, mass = out[at[full]], mass[full]
    order = np.argsort(-edges)
    reached = np.searchsorted(np.cumsum(mass[order]), _REACHED * mass.sum())
    return float(edges[order][min(reached, len(order) - 1)])


def _length(maps: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt((maps * maps).sum(0)), np.float32)


def _near_cone(y: FloatArray, strength: Floats, library: FloatArray) -> BoolArray:
    """Find the pixels within the gate around the library's cone."""
    return np.asarray(_outside(y / strength[:, None], library) < np.sin(np.radians(GATE_DEG)))


def _outside(direction: npt.NDArray[np.floating], library: FloatArray) -> Floats:
    """The sine of the angle of unit (P, 3) directions to the library's cone."""
    od = torch.from_numpy(np.ascontiguousarray(direction.T, np.float32))
    rows = torch.from_numpy(np.ascontiguousarray(library, np.float32))
    q = unmix(od, rows, torch.zeros(3)).numpy()
    return np.asarray(np.linalg.norm(direction - q.T @ library, axis=1), np.float64)
