"""S(x) of two stains from neighbourhood sums of angle histograms (DESIGN 2.11, 2.12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.field.windows import neighbourhood_sum

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AngleField:
    """Deviation of both rays from the slide's, radians.

    Attributes:
        slide: (2,) angle of each ray over the whole slide.
        deviation: (GY, GX, 2), already shrunk.
        kept: (2,) share of the local deviation that the evidence supports.
    """

    slide: Floats
    deviation: Floats
    kept: Floats


def side_quantile(histogram: npt.NDArray[np.generic], edges: Floats, middle: float, tail: float) -> tuple[Floats, Floats]:
    """Angle beyond which a share ``tail`` of each side's own pixels lies.

    Args:
        histogram: (..., A) counts. edges: (A + 1,) radians. middle: radians, divides the sides.
        tail: share in (0, 1).

    Returns:
        (..., 2) quantiles of the lower and upper side (NaN where a side is empty), (..., 2) mass.
    """
    h = np.asarray(histogram, np.float64)
    cut = int(np.searchsorted(edges, middle))
    low = _quantile_from_left(h[..., :cut], edges[: cut + 1], tail)
    high = -_quantile_from_left(h[..., cut:][..., ::-1], -edges[cut:][::-1], tail)
    mass = np.stack([h[..., :cut].sum(-1), h[..., cut:].sum(-1)], -1)
    return np.stack([low, high], -1), mass


def _quantile_from_left(h: Floats, edges: Floats, tail: float) -> Floats:
    total = np.cumsum(h, -1)
    target = tail * total[..., -1:]
    index = np.minimum((total < target).sum(-1, keepdims=True), h.shape[-1] - 1)
    inside = np.take_along_axis(h, index, -1)
    before = np.take_along_axis(total, index, -1) - inside
    share = np.divide(target - before, inside, out=np.zeros_like(inside), where=inside > 0)
    angle = edges[index] + share * (edges[index + 1] - edges[index])
    return np.where(total[..., -1] > 0, angle[..., 0], np.nan)
