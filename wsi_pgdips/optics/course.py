"""The course of a quantity over the slide from scattered values: a Gaussian process on trial.

It may be a plane, follow a long or a short course (a step), or both. The one that best predicts
values it has not seen is taken, and believed only as far as it predicts them: what nothing supports
stays constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# (variance of the slope, length in extents of the places): planes, ever shorter courses, both
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
    """Values at other places, as far as held-out values are predicted.

    Args:
        at: (K, 2) places, scaled so that their extent is about one. values: (K, C), around zero.
        vote: (K,) in (0, 1], how much each value is worth. to: (J, 2).
        noise: variances of a full vote's own noise, over that of the course, to try.
        folds: (K,) region of each place, 0 to F - 1, held out together; each its own by default.
        kin: how many neighbouring regions share their errors, and count as one witness.

    Returns:
        (J, C), and the share that is believed, 0 to 1; all zero with fewer than 3 regions.
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
    """(len(a), len(b)): a plane, and a course that forgets over ``length``."""
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return np.asarray(slope * (a @ b.T) + (np.exp(-distance / length) if length > 0 else 0.0))


def _held_out(folds: Indices, values: Floats, inverse: Floats, pull: Floats) -> Floats:
    """(K, C) what each region's values are predicted to be from all the others."""
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
    """How much of a prediction to believe: the share that minimises the held-out error.

    Nothing where the gain over regions is not beyond its own standard error.
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
