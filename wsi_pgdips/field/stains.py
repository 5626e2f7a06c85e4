"""The field S(x) from the tiles' statistics, shrunk to the slide's S by evidence (decisions 8, 15,
23).

Two stains: the edges of a single cell lean inwards if it has few pure pixels, and the edges of a
sum of drifting cells lie too far out. So the cells' edges and tilts determine only the course of
the stains over the slide, as far as it predicts held-out cells. The level comes from the sum of all
cells, after each is aligned by that course.

One stain: the mean direction of the neighbourhood. If two interleaved halves of each tile agree on
a deviation, it is a property of the location, otherwise noise. Only the share that they support is
kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.field.cells import (
    Cells,
    Floats,
    Statistics,
    coarse_sums,
    neighbourhood_sum,
    on_grid,
)
from wsi_pgdips.geometry import CELLS_PER_TILE
from wsi_pgdips.optics.cone import TILE_TAIL, Plane, aligned_edges, cone_edges, leaned, leaned_tilt
from wsi_pgdips.optics.course import MIN_FOLDS, follow
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import FloatArray

SIGMA_CELLS = 1.5  # for one stain; wider sums span the drift itself
MAX_DEVIATION = np.radians(15.0)
# root mean square, and what all but a few keep below; a step of 10 degrees between two halves has
# 5 and 5
MOST_DRIFT, WIDEST_DRIFT = np.radians(5.75), np.radians(7.5)
FRINGE, FRINGE_SHARE = np.radians(4.0), 0.05  # of a side's strength, over the slide
_HALF_MASS = 1500.0  # pooled cells (as strength) on a stain's side at which its angle counts half
_USUAL = 2.0  # largest usual residual out of the plane, in medians
_KIN = CELLS_PER_TILE**2  # the cells of a tile share its tissue, and its effect on edges
_NOISE = (0.03, 0.1, 0.3, 1.0, 3.0)  # variances of a tile's estimate, relative to the course's


@dataclass(frozen=True)
class StainField:
    """S on the grid of cells.

    Attributes:
        stain_matrix: (CY, CX, N, 3) unit rows. slide: (N, 3), the slide's own.
        kept: share of the local deviation that was kept, by name.
    """

    stain_matrix: FloatArray
    slide: FloatArray
    kept: dict[str, float]


def stain_field(
    cells: Iterable[Cells],
    shape: tuple[int, int],
    anchor: FloatArray,
    measured: npt.NDArray[np.bool_],
    library: FloatArray | None = None,
    executor: Executor | None = None,
) -> StainField:
    """Estimate S(x) for one, two or more stains.

    Args:
        cells: in parts, without repetition. They are iterated over several times, so they need not
            all be in memory. shape: (CY, CX), cells of the slide.
        anchor: (N, 3) S0, under which the statistics were computed.
        measured: (N,) stains whose vector the slide itself supports; the others do not change.
        library: (N, 3). Edges without pure pixels move towards it, as in the anchor
            (``optics.cone``); by default they do not move.
        executor: threads that share the work; by default the caller's thread does it.

    Returns:
        One stain: the direction of the local mean. Two: the edges of the cone and the tilts of its
        plane. More: a constant.
    """
    n = len(anchor)
    if n == 1 and measured[0]:
        total = on_grid(cells, "sum", (*shape, 2, 3))
        return _one(total, on_grid(cells, "count", shape), anchor)
    if n == 2:
        return _two(cells, on_grid(cells, "count", shape), anchor, measured, library, executor)
    return _constant(shape, anchor)


def raw_stain_matrix(statistics: Statistics, anchor: FloatArray) -> FloatArray:
    """The own stain vectors of each tile, as a method for single tiles would use them.

    Args:
        statistics: name -> (..., ) of one or two stains. anchor: (N, 3) S0.

    Returns:
        (..., N, 3) unit rows; NaN for a tile without evidence.
    """
    if len(anchor) == 1:
        rows = unit_rows(statistics["sum"].astype(np.float64).sum(-2))[..., None, :]
    else:
        plane = Plane.of(anchor)
        own = plane.angles(anchor)
        edges, mass = cone_edges(statistics["edges"].astype(np.float64), tail=TILE_TAIL)
        angle = own + np.where(mass > 0, _clipped(edges - own), 0.0)
        tilt = _solve(statistics["plane_qq"], statistics["plane_qr"])
        rows = unit_rows(plane.rays(angle) + tilt[..., None] * plane.normal)
    busy = statistics["count"] > 0
    return np.where(busy[..., None, None], rows, np.nan).astype(np.float32)


def _one(total: Floats, count: Floats, anchor: FloatArray) -> StainField:
    """The field of one stain, from (CY, CX, 2, 3) sums and (CY, CX) counts."""
    if not (count > 0).any():
        return _constant(count.shape, anchor)
    slide = unit_rows(total.sum((0, 1, 2)))
    local = neighbourhood_sum(total, SIGMA_CELLS)
    deviation = np.stack([_direction(local[:, :, i], slide) for i in (0, 1)], 2)
    kept = supported_share(deviation, count)
    both = slide + kept * _direction(local.sum(2), slide)
    return StainField(unit_rows(both)[:, :, None], slide[None], {"direction": kept})


def _direction(total: Floats, slide: FloatArray) -> Floats:
    """The difference of unit directions to the slide's; zero for an empty sum."""
    some = np.linalg.norm(total, axis=-1, keepdims=True) > 1e-6
    return np.where(some, unit_rows(total) - slide, 0.0)


@dataclass(frozen=True)
class _Courses:
    """The courses of the edges and tilts of two stains, by name ``edge`` and ``tilt``.

    Attributes:
        local: name -> (K, 2) at the coarse cells. everywhere: name -> (CY * CX, 2).
        kept: share of the local deviation that was kept, by name and stain.
        known: (2,) stains that have a course; the values of the others are not used.
    """

    local: dict[str, Floats]
    everywhere: dict[str, Floats]
    kept: dict[str, float]
    known: npt.NDArray[np.bool_]


def _two(
    cells: Iterable[Cells],
    counts: Floats,
    anchor: FloatArray,
    measured: npt.NDArray[np.bool_],
    library: FloatArray | None,
    executor: Executor | None,
) -> StainField:
    """The field of two stains: courses from coarse cells, the level from all aligned cells."""
    plane, own = Plane.of(anchor), Plane.of(anchor).angles(anchor)
    shape = counts.shape
    coarse = coarse_sums(cells, counts)
    count = coarse["count"]
    known = np.zeros(2, bool)
    if len(count):
        known = measured & (cone_edges(coarse["edges"].sum(0))[1] > 0)
    # with so few cells, S0 is based on the same pixels
    if not known.any() or len(count) < MIN_FOLDS * _KIN:
        return _constant(shape, anchor)
    tilt = _solve(coarse["plane_qq"], coarse["plane_qr"])
    flat = _flatness(coarse, plane, tilt)
    courses = _courses(coarse, own, tilt, flat, known, shape, executor)
    known = courses.known
    # for the level, a stain without a course stays at S0
    here = np.where(known, courses.local["edge"], own)
    middle = np.average(here, axis=0, weights=count)
    seen = coarse["edges"] * flat[:, None, None]
    aligned, sides = aligned_edges(seen, here - middle, here.mean(1))
    lift = np.zeros(2)
    if library is not None:
        level = np.where(known, aligned, own)
        aligned = aligned + leaned(sides, level, plane.angles(library)) - level
        means = np.where(known, np.average(courses.local["tilt"], axis=0, weights=count), 0.0)
        lift = leaned_tilt(means, sides, level, library, plane.normal) - means
    rows = np.broadcast_to(anchor, (*shape, 2, 3)).astype(np.float64)
    for k in np.nonzero(known)[0].tolist():
        angle = courses.everywhere["edge"][:, k] - middle[k] + aligned[k]
        angle = own[k] + _clipped(angle - own[k])
        tilts = courses.everywhere["tilt"][:, k] + lift[k]
        row = plane.rays(angle) + tilts[:, None] * plane.normal
        rows[:, :, k] = unit_rows(row).reshape(*shape, 3)
    weight = counts[..., None, None]
    slide = np.where(known[:, None], unit_rows((weight * rows).sum((0, 1))), anchor)
    return StainField(rows.astype(np.float32), slide.astype(np.float32), courses.kept)


def _courses(
    coarse: Statistics,
    own: Floats,
    tilt: Floats,
    flat: Floats,
    known: npt.NDArray[np.bool_],
    shape: tuple[int, ...],
    executor: Executor | None,
) -> _Courses:
    """Find the courses of the known stains, as far as they predict held-out cells.

    Args:
        own: (2,) angles of S0. tilt: (K, 2) of the coarse cells. flat: (K,) votes of
            :func:`_flatness`. shape: (CY, CX).
    """
    count, qq = coarse["count"], coarse["plane_qq"]
    edges, mass = cone_edges(coarse["edges"], tail=TILE_TAIL)  # (K, 2)
    edges = own + _clipped(edges - own)
    mass = np.where(_fringes(edges - own, mass), 0.0, mass)
    with_other = qq[:, 0, 1] ** 2 / np.maximum(np.stack([qq[:, 1, 1], qq[:, 0, 0]], 0), 1e-9)
    alone = np.stack([qq[:, 0, 0], qq[:, 1, 1]], -1) - with_other.T  # evidence of its own
    at, to = _locations(coarse["position"], shape)
    every = np.concatenate([at, to])
    votes = {}
    for name, evidence in (("edge", mass / _HALF_MASS), ("tilt", alone / 20)):
        vote = evidence / (evidence + 1)
        votes[name] = np.maximum(vote * flat[:, None] if name == "edge" else vote, 1e-3)
    values = {"edge": edges, "tilt": tilt}

    def course(of: tuple[str, int]) -> tuple[Floats, float, float]:
        """The deviation from the mean everywhere (J,), the mean, and the share that is kept."""
        name, k = of
        vote = votes[name][:, k]
        mean = float(np.average(values[name][:, k], weights=vote))
        off = (values[name][:, k] - mean)[:, None]
        out, trust = follow(at, off, vote, every, noise=_NOISE, kin=_KIN)
        return out[:, 0], mean, trust

    wanted = [(name, k) for name in values for k in np.nonzero(known)[0].tolist()]
    found = (map if executor is None else executor.map)(course, wanted)
    courses = _Courses({}, {}, {}, known.copy())
    for name in values:
        courses.local[name] = np.zeros((len(at), 2))
        courses.everywhere[name] = np.zeros((len(to), 2))
    for (name, k), (off, mean, trust) in zip(wanted, found, strict=True):
        here = off[: len(at)]
        wide = np.average(np.abs(here) > WIDEST_DRIFT, weights=count) > 0.02
        if wide or np.average(here**2, weights=count) > MOST_DRIFT**2:
            courses.known[k] = False  # this is two tissues side by side, not a stain that drifts
        courses.local[name][:, k] = mean + off[: len(at)]
        courses.everywhere[name][:, k] = mean + off[len(at) :]
        courses.kept[f"{name}_{k}"] = trust
    for k in np.nonzero(known & ~courses.known)[0].tolist():
        courses.kept.update({f"edge_{k}": 0.0, f"tilt_{k}": 0.0})
    return courses


def _fringes(off: Floats, mass: Floats) -> npt.NDArray[np.bool_]:
    """Find edges far outside the slide's own that few pixels carry: colour fringes, not drift.

    Args:
        off: (K, 2) angles from S0. mass: (K, 2) strength of each side.
    """
    out = off * (-1, 1) > FRINGE
    few = np.where(out, mass, 0.0).sum(0) < FRINGE_SHARE * mass.sum(0)
    return np.asarray(out & few)


def _flatness(coarse: Statistics, plane: Plane, tilt: Floats) -> Floats:
    """The flatness of each cell, (K,) in (0, 1]: 1 if its colours are as planar as usual.

    They are not planar in a tile that a step of the stains crosses. That passes for noise, so its
    edges lean inwards.
    """
    across = np.einsum("c,kcd,d->k", plane.normal, coarse["moment"], plane.normal)
    left = across - (tilt * coarse["plane_qr"]).sum(1)
    share = np.maximum(left, 0) / np.maximum(np.trace(coarse["moment"], axis1=1, axis2=2), 1e-9)
    return np.asarray(np.minimum(_USUAL * np.median(share) / np.maximum(share, 1e-12), 1.0))


def _constant(shape: tuple[int, ...], anchor: FloatArray) -> StainField:
    rows = np.broadcast_to(anchor, (*shape, *anchor.shape)).astype(np.float32)
    return StainField(rows, anchor, {})


def _locations(squares: Floats, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Scale the positions of squares, (K, 2), and of all cells, (CY * CX, 2), by their extent."""
    extent = max(float(np.ptp(squares, axis=0).max()), 1.0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 2)
    centre = squares.mean(0)
    return (squares - centre) / extent, (grid - centre) / extent


def _clipped(angle: Floats) -> Floats:
    return np.clip(np.nan_to_num(angle), -MAX_DEVIATION, MAX_DEVIATION)


def _solve(qq: Floats, qr: Floats) -> Floats:
    """The regression of the out-of-plane component on q, with a ridge for absent stains."""
    ridge = 1e-3 * np.trace(qq, axis1=-2, axis2=-1)[..., None, None] + 1.0
    return np.asarray(np.linalg.solve(qq + ridge * np.eye(2), qr[..., None])[..., 0])


def supported_share(split: Floats, weight: Floats) -> float:
    """The share of the deviation that two independent halves agree on (empirical Bayes).

    Args:
        split: (GY, GX, 2, K) deviation of each half from the slide's value.
        weight: (GY, GX) weight of each tile.

    Returns:
        signal / (signal + noise of the mean of both halves), in [0, 1].
    """
    total = weight.sum()
    if total <= 0:
        return 0.0
    w = (weight / total)[..., None]
    first, second = split[:, :, 0], split[:, :, 1]
    first = first - (w * first).sum((0, 1))
    second = second - (w * second).sum((0, 1))
    signal = float((w * first * second).sum())
    noise = float((w * (first - second) ** 2).sum()) / 4
    if signal <= 0:
        return 0.0
    return signal / (signal + noise) if signal + noise > 1e-12 else 0.0
