"""S(x) from the tiles' statistics, shrunk towards the slide's by evidence (decisions 8, 15, 16).

Each tile's statistics come in two interleaved halves. What both halves agree on is a property of
the place; what they do not is the estimator's own noise. The field keeps the share of the local
deviation that the halves support: none where nothing is resolved, so that a field is not worse than
a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.field.windows import neighbourhood_sum
from wsi_pgdips.optics.cone import Plane, cone_edges
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import FloatArray

Floats = npt.NDArray[np.float64]
Statistics = dict[str, npt.NDArray[Any]]

SIGMA_TILES = 0.75  # wider sums span the drift itself and push both edges outwards
MAX_DEVIATION = np.radians(15.0)
_HALF_MASS = 400.0  # pooled cells (as strength) on a stain's side at which its angle counts half


@dataclass(frozen=True)
class StainField:
    """S over the tile grid.

    Attributes:
        stain_matrix: (GY, GX, N, 3) unit rows. slide: (N, 3), the slide's own.
        raw: (GY, GX, N, 3) each tile's own estimate, unblended; NaN where it says nothing.
        kept: share of the local deviation kept, by name.
    """

    stain_matrix: FloatArray
    slide: FloatArray
    raw: FloatArray
    kept: dict[str, float]


def stain_field(
    statistics: Statistics, anchor: FloatArray, measured: npt.NDArray[np.bool_]
) -> StainField:
    """S(x) for one, two or more stains.

    Args:
        statistics: name -> (GY, GX, ...) sums per tile, zero where a tile was not fitted
            (``solver.statistics``). anchor: (N, 3) S0 under which they were taken.
        measured: (N,) stains whose vector the slide itself supports; the others stay.

    Returns:
        One stain: direction of the local mean. Two: local edges of the cone, and the local tilt of
        its plane. More: constant.
    """
    n = len(anchor)
    shape = statistics["count"].shape
    if n == 1 and measured[0]:
        return _one(statistics, anchor)
    if n == 2:
        return _two(statistics, anchor, measured)
    constant = np.broadcast_to(anchor, (*shape, n, 3)).astype(np.float32)
    raw = np.where(_busy(statistics)[..., None, None], constant, np.nan).astype(np.float32)
    return StainField(constant, anchor, raw, {})


def _busy(statistics: Statistics) -> npt.NDArray[np.bool_]:
    return np.asarray(statistics["count"] > 0)


def _one(statistics: Statistics, anchor: FloatArray) -> StainField:
    total = statistics["sum"].astype(np.float64)  # (GY, GX, 2, 3)
    busy = _busy(statistics)[..., None]
    if not busy.any():
        constant = np.broadcast_to(anchor, (*total.shape[:2], 1, 3)).astype(np.float32)
        return StainField(constant, anchor, np.full_like(constant, np.nan), {})
    slide = unit_rows(total.sum((0, 1, 2)))
    local = neighbourhood_sum(total, SIGMA_TILES)
    weight = statistics["count"].astype(np.float64)
    deviation = np.stack([_direction(local[:, :, i], slide) for i in (0, 1)], 2)
    kept = supported_share(deviation, weight)
    both = slide + kept * _direction(local.sum(2), slide)
    raw = np.where(busy, unit_rows(total.sum(2)), np.nan).astype(np.float32)
    return StainField(
        unit_rows(both)[:, :, None], slide[None], raw[:, :, None], {"direction": kept}
    )


def _direction(total: Floats, slide: FloatArray) -> Floats:
    """Difference of the unit direction to the slide's; zero where there is nothing."""
    some = np.linalg.norm(total, axis=-1, keepdims=True) > 1e-6
    return np.where(some, unit_rows(total) - slide, 0.0)


def _two(statistics: Statistics, anchor: FloatArray, measured: npt.NDArray[np.bool_]) -> StainField:
    plane = Plane.of(anchor)
    edges = statistics["edges"].astype(np.float64)  # (GY, GX, 2 halves, 2 stains, A)
    slide_angle, slide_mass = cone_edges(edges.sum((0, 1, 2)))
    own = plane.angles(anchor)
    known = measured & np.isfinite(slide_angle) & (slide_mass > _HALF_MASS)
    slide_angle = np.where(known, slide_angle, own)
    local = neighbourhood_sum(edges, SIGMA_TILES)
    both, mass = cone_edges(local.sum(2))
    halves, _ = cone_edges(local)  # (GY, GX, 2, 2)
    trust = mass / (mass + _HALF_MASS) * known
    deviation = _clipped(both - slide_angle) * trust
    split = _clipped(halves - slide_angle) * trust[:, :, None]
    here = statistics["count"].astype(np.float64)
    kept = np.array([supported_share(split[..., k : k + 1], here) for k in (0, 1)])
    tilt, tilt_kept = _plane_tilt(statistics, here)
    tilt = tilt * measured
    rows = plane.rays(slide_angle + kept * deviation) + tilt[..., None] * plane.normal
    slide = plane.rays(slide_angle) + (measured * _slide_tilt(statistics))[:, None] * plane.normal
    kept_by_name = {"edge_0": float(kept[0]), "edge_1": float(kept[1]), "tilt": tilt_kept}
    return StainField(
        unit_rows(rows), unit_rows(slide), _raw(statistics, plane, slide_angle), kept_by_name
    )


def _raw(statistics: Statistics, plane: Plane, slide_angle: Floats) -> FloatArray:
    """(GY, GX, 2, 3) what each tile says by itself, as per-tile methods would use it."""
    own, mass = cone_edges(statistics["edges"].astype(np.float64).sum(2))
    angle = slide_angle + np.where(mass > 0, _clipped(own - slide_angle), 0.0)
    tilt = _solve(
        statistics["plane_qq"].astype(np.float64).sum(2),
        statistics["plane_qr"].astype(np.float64).sum(2),
    )
    rows = unit_rows(plane.rays(angle) + tilt[..., None] * plane.normal)
    return np.where(_busy(statistics)[..., None, None], rows, np.nan).astype(np.float32)


def _clipped(angle: Floats) -> Floats:
    return np.clip(np.nan_to_num(angle), -MAX_DEVIATION, MAX_DEVIATION)


def _solve(qq: Floats, qr: Floats) -> Floats:
    """Regression of the out-of-plane component on q, with a ridge for stains that are absent."""
    ridge = 1e-3 * np.trace(qq, axis1=-2, axis2=-1)[..., None, None] + 1.0
    return np.asarray(np.linalg.solve(qq + ridge * np.eye(2), qr[..., None])[..., 0])


def _slide_tilt(statistics: Statistics) -> Floats:
    return _solve(
        statistics["plane_qq"].astype(np.float64).sum((0, 1, 2)),
        statistics["plane_qr"].astype(np.float64).sum((0, 1, 2)),
    )


def _plane_tilt(statistics: Statistics, weight: Floats) -> tuple[Floats, float]:
    """(GY, GX, 2) component of each row out of the slide's plane, and the share kept."""
    slide = _slide_tilt(statistics)
    qq = neighbourhood_sum(statistics["plane_qq"], SIGMA_TILES)
    qr = neighbourhood_sum(statistics["plane_qr"], SIGMA_TILES)
    split = _solve(qq, qr) - slide
    kept = supported_share(split, weight)
    local = _solve(qq.sum(2), qr.sum(2)) - slide
    return slide + kept * local, kept


def supported_share(split: Floats, weight: Floats) -> float:
    """Share of the deviation that two independent halves agree on (empirical Bayes).

    Args:
        split: (GY, GX, 2, K) deviation of each half from the slide's value.
        weight: (GY, GX) how much a tile counts.

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
