"""Maps against another acquisition of the same field: registration, scaling, PCC, SSIM, sharpness.

Protocol. A map and its truth are scaled to 0..1 by their 0.1st and 99.9th percentiles and clipped;
PCC is Pearson's correlation of the two; SSIM is that of Wang et al. 2004 with a uniform window of
7 x 7, unbiased covariance, K1 = .01, K2 = .03 and a range of 1; sharpness is the mean length of the
gradient (forward differences) of the scaled map. Maps are scaled anew after a blur. These scores
reward blur even in register (decision 10), so maps are also compared at equal sharpness: each is
blurred by the Gaussian that brings its sharpness down to that of the softest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from wsi_pgdips.records import FloatArray

SIGMAS = (1.0, 2.0, 4.0)  # of blurs, pixels, as of the records
PERCENTILES = (0.1, 99.9)
REACH = 16  # whole pixels, in y and x, by which pictures may be off
MIN_GAIN = 0.005  # of correlation: less is no reason to move a picture
SSIM_SIDE = 7
_MAX_SIGMA = 32.0
_HALVINGS = 20


def best_shift(reference: FloatArray, moving: FloatArray, reach: int = REACH) -> tuple[int, int]:
    """(dy, dx) such that ``moving[y + dy, x + dx]`` shows what ``reference[y, x]`` does.

    Whole pixels of largest correlation, over the part of the reference that stays inside; (0, 0)
    where that raises the correlation by less than ``MIN_GAIN``.

    Args:
        reference, moving: (H, W) of one shape, more than twice ``reach`` a side.
    """
    h, w = reference.shape
    inner = reference[reach : h - reach, reach : w - reach].astype(np.float32)
    inner = (inner - inner.mean()) / max(float(inner.std()), 1e-9)

    def score(dy: int, dx: int) -> float:
        part = moving[reach + dy : h - reach + dy, reach + dx : w - reach + dx]
        return float((inner * part).mean()) / max(float(part.std()), 1e-9)

    span = range(-reach, reach + 1)
    best = max((score(dy, dx), dy, dx) for dy in span for dx in span)
    return best[1:] if best[0] > score(0, 0) + MIN_GAIN else (0, 0)


def in_register(
    reference: npt.NDArray[np.floating], moving: npt.NDArray[np.floating], shift: tuple[int, int]
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """The common area of two (..., H, W) pictures under a shift of ``best_shift``."""
    (dy, dx), (h, w) = shift, reference.shape[-2:]
    y, x = max(-dy, 0), max(-dx, 0)
    rows, columns = h - abs(dy), w - abs(dx)
    return (
        reference[..., y : y + rows, x : x + columns],
        moving[..., y + dy : y + dy + rows, x + dx : x + dx + columns],
    )


def scaled(values: npt.NDArray[np.floating]) -> FloatArray:
    """(H, W) in 0..1 by percentiles; all 0 where they coincide."""
    low, high = np.percentile(values, PERCENTILES)
    if not high > low:
        return np.zeros(values.shape, np.float32)
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), np.float32)


def pcc(a: FloatArray, b: FloatArray) -> float:
    """Pearson's correlation of two scaled maps; NaN where one is flat."""
    x, y = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (a, b))
    power = float((x * x).sum() * (y * y).sum())
    return float((x * y).sum()) / power**0.5 if power > 0 else float("nan")


def ssim(a: FloatArray, b: FloatArray) -> float:
    """Mean structural similarity of two maps in 0..1, without the half window at the border."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    untyped: Any = structural_similarity
    return float(untyped(x, y, win_size=SSIM_SIDE, data_range=1))


def sharpness(a: FloatArray) -> float:
    """Mean length of the gradient of a scaled map, per pixel."""
    dy, dx = np.diff(a, axis=0)[:, :-1], np.diff(a, axis=1)[:-1]
    return float(np.hypot(dy, dx).mean(dtype=np.float64))


def blur(values: FloatArray, sigma: float) -> FloatArray:
    """Gaussian of ``sigma`` pixels over (..., H, W), reflected beyond the edges; as it is for 0."""
    if sigma <= 0:
        return values
    return np.asarray(gaussian_filter(values, sigma, axes=(-2, -1), truncate=4), np.float32)


def equalising_sigma(values: FloatArray, wanted: float) -> float:
    """Sigma in pixels at which a map's sharpness falls to ``wanted``; 0 if it is not above.

    By bisection; the largest sigma tried is 32.

    Args:
        values: (H, W), not scaled.
    """
    if sharpness(scaled(values)) <= wanted:
        return 0.0
    low, high = 0.0, 1.0
    while high < _MAX_SIGMA and sharpness(scaled(blur(values, high))) > wanted:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sharpness(scaled(blur(values, middle))) > wanted:
            low = middle
        else:
            high = middle
        if high - low < 1e-3:
            break
    return high
