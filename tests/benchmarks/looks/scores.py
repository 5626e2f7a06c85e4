"""How far a result is from what it should look like, and whether its texture is the source's."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.similarity import ssim
from wsi_pgdips.looks.distance import DAB, MIN_PIXELS, NUCLEI, STROMA, TISSUE, colour_distances
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

OD, LAB, SSIM = "w1_od", "w1_lab", "gradient_ssim"  # metrics
TEXTURE, NUCLEAR = "drift_texture", "drift_nuclei"
STRUCTURES = (NUCLEI, STROMA, DAB)
PARTS = (TISSUE, *STRUCTURES)
EVERY = 8  # of a mask's pixels one in so many is looked at
FEWEST = 20_000  # pixels, of which more are looked at where a mask is small


def distances(result: ByteArray, truth: ByteArray, mask: BoolArray) -> tuple[float, float]:
    """(OD, CIELAB) of ``colour_distances``; NaN where the mask is too small.

    Args:
        result, truth: (H, W, 3) uint8. mask: (H, W).
    """
    index = np.flatnonzero(mask)
    if len(index) < MIN_PIXELS:
        return float("nan"), float("nan")
    index = index[:: min(EVERY, max(len(index) // FEWEST, 1))]
    a, b = (rgb.reshape(-1, 3)[index] for rgb in (result, truth))
    return colour_distances(a, b)


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
