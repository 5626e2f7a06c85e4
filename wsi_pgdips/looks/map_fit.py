"""The fit of a colour map: as many degrees of freedom as held-out regions of the glass support.

The candidates are the identity above glass, one gain, a gain for each channel, and a full matrix,
each with several strengths of a ridge that pulls it towards the identity. Each is fitted without a
region, or without one of several pairs, and judged there by the median CIELAB dE. The simplest one
within a standard error of the best is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.colour_map import FREEDOMS, ColourMap, two
from wsi_pgdips.looks.pairs import PairPixels, read_pair
from wsi_pgdips.looks.reference import rows_of, triple
from wsi_pgdips.looks.register import Float64
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import FloatArray

RIDGES = (0.0, 1e-3, 1e-2, 1e-1)  # relative to the mean square of OD above glass
_ROUNDS, _HUBER = 12, 1.345
_INVISIBLE = 0.1  # dE: a smaller difference between candidates is none
_MANY_PAIRS = 3  # from here on, the standard error is that over pairs, not over regions


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Pixels of all pairs: (n, 3) OD of each scanner, and the pair and the region of each."""

    a: Float64
    b: Float64
    pair: npt.NDArray[np.intp]
    region: npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class _Linear:
    """b = end + matrix @ (a - start)."""

    matrix: Float64
    start: Float64
    end: Float64

    def __call__(self, a: Float64) -> Float64:
        return np.asarray(self.end + (a - self.start) @ self.matrix.T)


def fit_pairs(
    paths: Sequence[str | os.PathLike[str]],
    name: str,
    *,
    mpp_source: float | None = None,
    progress: Progress | None = None,
) -> ColourMap:
    """Fit the map from scanner A to scanner B on scans of the same glass.

    Args:
        paths: A, B, or A1, B1, A2, B2, and so on: all A from one scanner, all B from another.
        name: of the map.
        mpp_source: micrometres per level-0 pixel of files that do not say it.

    Raises:
        SettingsError: an odd number of paths.
        SlideError: a file cannot be read, a pair cannot be registered or shares too little tissue.
        StainError: the fit is not that of two scanners.
    """
    if len(paths) < 2 or len(paths) % 2:
        raise SettingsError(
            "a map is fitted on pairs of scans",
            expected="an even number of files: A B, or A1 B1 A2 B2 ...",
            found=len(paths),
        )
    shown = QuietProgress() if progress is None else progress
    shown.stage("pairs", len(paths) // 2, "pair")
    pairs = []
    try:
        for a, b in zip(paths[::2], paths[1::2], strict=True):
            pairs.append(read_pair(a, b, mpp_source=mpp_source))
            shown.advance()
    finally:
        shown.close()
    return fit_map(pairs, name)


def fit_map(pairs: Sequence[PairPixels], name: str) -> ColourMap:
    """Fit the map from scanner A to scanner B on the pixels of registered pairs.

    Raises:
        StainError: the fit is not that of two scanners.
    """
    pixels = _joined(pairs)
    lab = _lab(pixels.b)
    by_pair = len(pairs) > 1
    folds = pixels.pair if by_pair else pixels.region
    unit = pixels.pair if len(pairs) >= _MANY_PAIRS else pixels.region
    units = np.unique(unit)
    held_out: dict[tuple[str, float], Float64] = {}
    scores: dict[tuple[str, float], Float64] = {}
    for freedom in FREEDOMS:
        for ridge in RIDGES if freedom != "glass" else (0.0,):
            out = np.empty_like(pixels.b)
            for fold in np.unique(folds):
                kept = [p for i, p in enumerate(pairs) if i != fold] if by_pair else pairs
                inside = folds != fold
                fitted = _fit(pixels.a[inside], pixels.b[inside], freedom, ridge, kept)
                out[~inside] = fitted(pixels.a[~inside])
            error = np.linalg.norm(_lab(out) - lab, axis=1)
            held_out[freedom, ridge] = out
            scores[freedom, ridge] = np.array([np.median(error[unit == u]) for u in units])
    freedom, ridge = _simplest(scores)
    fitted = _fit(pixels.a, pixels.b, freedom, ridge, pairs)
    regions = np.unique(pixels.region)

    def medians(error: Float64) -> Float64:
        return np.array([np.median(error[pixels.region == r]) for r in regions])

    out = held_out[freedom, ridge]
    after = medians(np.linalg.norm(_lab(out) - lab, axis=1))
    before = medians(np.linalg.norm(_lab(pixels.a) - lab, axis=1))
    in_od = medians(np.linalg.norm(out - pixels.b, axis=1))
    above = pixels.a - fitted.start
    total = above.sum(1)
    shares = above[total > 0][:, [0, 2]] / total[total > 0, None]
    low, high = np.percentile(shares, [1, 99], axis=0)
    return ColourMap(
        name,
        rows_of(fitted.matrix),
        triple(fitted.start),
        triple(fitted.end),
        freedom,
        ridge=ridge,
        top=_short(np.percentile(total, 99.5)),
        share_low=two(low),
        share_high=two(high),
        error_od=_short(np.median(in_od)),
        error_lab=_short(np.median(after)),
        before_lab=_short(np.median(before)),
        worst_lab=_short(after.max()),
        worst_before_lab=_short(before.max()),
        pixels=len(pixels.a),
        pairs=len(pairs),
        regions=len(regions),
        glass_seen=any(p.glass_a is not None for p in pairs),
        sources=tuple(p.source for p in pairs),
    )


def _joined(pairs: Sequence[PairPixels]) -> _Pixels:
    """Join the pixels of pairs; a region's number is that of one pair only."""
    pair = np.concatenate([np.full(len(p.a), i) for i, p in enumerate(pairs)])
    most = max(int(p.region.max()) for p in pairs) + 1
    return _Pixels(
        np.concatenate([p.a for p in pairs]).astype(np.float64),
        np.concatenate([p.b for p in pairs]).astype(np.float64),
        pair,
        pair * most + np.concatenate([p.region for p in pairs]),
    )


def _fit(
    a: Float64, b: Float64, freedom: str, ridge: float, pairs: Sequence[PairPixels]
) -> _Linear:
    """Fit one candidate to (n, 3) OD, with Huber's weights against dirt and bad registration.

    Args:
        pairs: that the pixels are of; glass goes to glass if one of them shows any.
    """
    with_glass = [(p.glass_a, p.glass_b) for p in pairs if p.glass_a is not None]
    if with_glass:
        start, end = (_median(g) for g in zip(*with_glass, strict=True))
    else:
        start, end = _median([p.palest_a for p in pairs]), None
    x = a - start
    weight = np.ones(len(a))
    for _ in range(_ROUNDS):
        matrix, centre = _solve(
            x, b if end is None else b - end, weight, freedom, ridge, end is None
        )
        error = np.linalg.norm(x @ matrix.T + centre - (b if end is None else b - end), axis=1)
        reach = max(_HUBER * float(np.median(error)), 1e-6)
        weight = np.minimum(1.0, reach / np.maximum(error, 1e-9))
    return _Linear(matrix, start, centre if end is None else end)


def _solve(
    x: Float64, y: Float64, weight: Float64, freedom: str, ridge: float, has_offset: bool
) -> tuple[Float64, Float64]:
    """Solve weighted least squares y = matrix @ x + centre; centre is 0 without an offset."""
    mean_x = np.average(x, 0, weight) if has_offset else np.zeros(3)
    mean_y = np.average(y, 0, weight) if has_offset else np.zeros(3)
    u, v = x - mean_x, y - mean_y
    own = (u * weight[:, None]).T @ u / weight.sum()
    cross = (v * weight[:, None]).T @ u / weight.sum()
    pull = ridge * float(np.trace(own)) / 3 + 1e-12
    if freedom == "glass":
        matrix = np.eye(3)
    elif freedom == "gain":
        matrix = np.eye(3) * (np.trace(cross) + 3 * pull) / (np.trace(own) + 3 * pull)
    elif freedom == "gains":
        matrix = np.diag((np.diag(cross) + pull) / (np.diag(own) + pull))
    else:
        matrix = np.linalg.solve(own + pull * np.eye(3), (cross + pull * np.eye(3)).T).T
    return matrix, np.asarray(mean_y - matrix @ mean_x)


def _simplest(scores: dict[tuple[str, float], Float64]) -> tuple[str, float]:
    """Return the freedom and ridge of the simplest candidate within a standard error of the best.

    Args:
        scores: (freedom, ridge) -> errors of the held-out parts.
    """
    best = _least(scores)
    for freedom in FREEDOMS:
        own = _least({key: v for key, v in scores.items() if key[0] == freedom})
        # part by part, because what is hard to map is hard for all candidates
        worse = scores[own] - scores[best]
        if worse.mean() <= max(worse.std(ddof=1) / np.sqrt(len(worse)), _INVISIBLE):
            return own
    return best


def _least(scores: dict[tuple[str, float], Float64]) -> tuple[str, float]:
    return min(scores, key=lambda key: float(scores[key].mean()))


def _lab(od: Float64) -> Float64:
    """Convert (n, 3) OD to CIELAB."""
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(np.clip(10.0**-od, 0, 1)[None])[0], np.float64)


def _median(values: Iterable[FloatArray | None]) -> Float64:
    """Return the median of (3,) values over the pairs: one of them may have mistaken its glass."""
    return np.asarray(np.median([v for v in values if v is not None], 0), np.float64)


def _short(value: float) -> float:
    return round(float(value), 6)
