"""How far a result is from what it should look like, and whether its texture is the source's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.bench.similarity import ssim
from wsi_pgdips.optics.density import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

EVERY = 8  # of a mask's pixels one in so many is looked at
FEWEST = 20_000  # pixels, of which more are looked at where a mask is small
MIN_PIXELS = 500  # of a structure: below that nothing is said of it
QUANTILES = (np.arange(512) + 0.5) / 512


def wasserstein(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Wasserstein-1 distance of two samples in one dimension: mean distance of 512 quantiles."""
    return float(np.abs(np.quantile(a, QUANTILES) - np.quantile(b, QUANTILES)).mean())


def distances(result: ByteArray, truth: ByteArray, mask: BoolArray) -> tuple[float, float]:
    """(OD, CIELAB): mean over three channels of ``wasserstein``; NaN where the mask is too small.

    Args:
        result, truth: (H, W, 3) uint8. mask: (H, W).
    """
    from skimage.color import rgb2lab

    index = np.flatnonzero(mask)
    if len(index) < MIN_PIXELS:
        return float("nan"), float("nan")
    index = index[:: min(EVERY, max(len(index) // FEWEST, 1))]
    pixels = [np.ascontiguousarray(rgb.reshape(-1, 3)[index]) for rgb in (result, truth)]
    spaces = ([rgb_to_od(p) for p in pixels], [rgb2lab(p) for p in pixels])
    od, lab = (float(np.mean([wasserstein(a[:, c], b[:, c]) for c in range(3)])) for a, b in spaces)
    return od, lab


def luminance(rgb: ByteArray) -> FloatArray:
    """(H, W) CIELAB L, 0..100."""
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(rgb)[..., 0], np.float32)


def gradient(rgb: ByteArray) -> FloatArray:
    """(H, W) length of the gradient of L (Sobel), over its own standard deviation.

    Over its own, since contrast is what a look may change.
    """
    from scipy.ndimage import sobel

    light = luminance(rgb)
    length = np.hypot(sobel(light, 0), sobel(light, 1))
    return np.asarray(length / max(float(length.std()), 1e-6), np.float32)


def gradient_ssim(own: FloatArray, source: FloatArray) -> float:
    """SSIM of two ``gradient`` pictures, both over the largest value of the source's."""
    top = np.float32(max(float(source.max()), 1e-6))
    return ssim(own / top, source / top)
