"""The course of a quantity over the slide, from scattered values by a cross-validated Gaussian
process.

The candidates are a plane, a long or a short course (a step), or both together. The candidate that
best predicts held-out values is chosen, and it counts only as far as it predicts them. Without
support the quantity stays constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# (variance of the slope, length in extents of the locations): planes, ever shorter courses, both
MODELS = ((4.0, 0.0), (0.0, 2.0), (0.0, 0.5), (4.0, 0.5), (0.0, 0.15))
MIN_FOLDS = 3


def follow(
    at: Floats,
    values: Floats,
    vote: Floats,
    to: Floats,
    *,
    noise: Sequence[float],
    folds: Indices | None = None,
    kin: int = 1,
) -> tuple[Floats, float]:
    """Predict values at other locations, as far as held-out values are predicted.

    Args:
        at: (K, 2) locations, scaled to an extent of about one. values: (K, C), around zero.
        vote: (K,) weight of each value, in (0, 1]. to: (J, 2) locations to predict.
        noise: candidate noise variances of a full vote, relative to the variance of the course.
        folds: (K,) region of each location, 0 to F - 1; a region is held out as a whole. By
            default each location is a region.
        kin: number of neighbouring regions that share their errors and count as one.

    Returns:
        (J, C) predictions, already shrunk, and the share they were shrunk by, 0 to 1. Both are
        zero with fewer than 3 regions.
    """
    folds = np.arange(len(at)) if folds is None else folds
    nothing = np.zeros((len(to), values.shape[1]))
    if len(at) == 0 or int(folds.max()) + 1 < MIN_FOLDS:
        return nothing, 0.0
    best, trust, out = np.inf, 0.0, nothing
    for model in MODELS:
        gram = covariance(at, at, *model)
        for variance in noise:
            inverse = np.asarray(np.linalg.inv(gram + np.diag(variance / vote)), np.float64)
            pull = inverse @ values
            predicted = _held_out(folds, values, inverse, pull)
            error = float((vote[:, None] * (values - predicted) ** 2).sum())
            if error < best:
                best, trust = error, _trust(predicted, values, vote, folds, kin)
                out = trust * (covariance(to, at, *model) @ pull)
    return out, trust


def covariance(a: Floats, b: Floats, slope: float, length: float) -> Floats:
    """The covariance of a plane plus an exponential course: (len(a), len(b)).

    Args:
        a, b: (..., 2) locations. slope: variance of the plane's slope. length: of the course, in
            the unit of the locations; 0 for none.
    """
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return np.asarray(slope * (a @ b.T) + (np.exp(-distance / length) if length > 0 else 0.0))


def _held_out(folds: Indices, values: Floats, inverse: Floats, pull: Floats) -> Floats:
    """The prediction of each region's values from all other regions: (K, C)."""
    count = int(folds.max()) + 1
    if count == len(folds):
        return np.asarray(values - pull / np.diag(inverse)[:, None])
    out = np.zeros_like(values)
    for fold in range(count):
        test = np.nonzero(folds == fold)[0]
        if len(test) < len(folds):
            out[test] = values[test] - np.linalg.solve(inverse[np.ix_(test, test)], pull[test])
    return out


def _trust(predicted: Floats, values: Floats, vote: Floats, folds: Indices, kin: int) -> float:
    """The share of a prediction that minimises the held-out error, 0 to 1.

    It is 0 unless the mean gain over regions exceeds its own standard error.
    """
    n = int(folds.max()) + 1
    power = float((vote[:, None] * predicted**2).sum())
    if power <= 0:
        return 0.0
    share = float(np.clip((vote[:, None] * predicted * values).sum() / power, 0, 1))
    gain = vote * (values**2 - (values - share * predicted) ** 2).sum(1)
    per_region = np.bincount(folds, gain, n)
    error = per_region.std(ddof=1) / np.sqrt(n / kin)
    return share if per_region.mean() > error else 0.0
