"""Distances of a result from what it should look like, within tissue and its structures.

Tissue and its structures are found in a pair of pictures by no method that is compared: OD over
each picture's own white; tissue by its mean OD around a pixel; stains by non-negative least squares
under the library's fixed vectors, smoothed; hematoxylin and DAB above the threshold of Otsu. A
pixel counts where both pictures agree, and masks lose a pixel all around.
"""

from __future__ import annotations

import numpy as np

from benchmarks.quality.similarity import ssim
from wsi_pgdips.looks import distance
from wsi_pgdips.looks.distance import DAB, NUCLEI, STROMA, TISSUE, Masks
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

OD, LAB, SSIM = "w1_od", "w1_lab", "gradient_ssim"  # metrics
TEXTURE, NUCLEAR = "drift_texture", "drift_nuclei"
STRUCTURES = (NUCLEI, STROMA, DAB)
PARTS = (TISSUE, *STRUCTURES)
WHITE_PERCENTILE = 5.0  # of OD, per channel: the glass, or what is palest
MIN_OD = 0.03  # mean of the channels around a pixel of tissue, pale stroma included
EVERY = 8  # of a mask's pixels one in so many is looked at
FEWEST = 20_000  # pixels, of which more are looked at where a mask is small


def distances(result: ByteArray, truth: ByteArray, mask: BoolArray) -> tuple[float, float]:
    """(OD, CIELAB) of ``colour_distances``; NaN where the mask is too small.

    Args:
        result, truth: (H, W, 3) uint8. mask: (H, W).
    """
    index = np.flatnonzero(mask)
    if len(index) < distance.MIN_PIXELS:
        return float("nan"), float("nan")
    index = index[:: min(EVERY, max(len(index) // FEWEST, 1))]
    a, b = (rgb.reshape(-1, 3)[index] for rgb in (result, truth))
    return distance.colour_distances(a, b)


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


def over_white(rgb: ByteArray) -> FloatArray:
    """(3, H, W) OD over the picture's own white."""
    od = rgb_to_od(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
    white = np.percentile(od[:, ::2, ::2], WHITE_PERCENTILE, axis=(1, 2), keepdims=True)
    return np.asarray(od - white, np.float32)


def structures(first: ByteArray, second: ByteArray, stains: str, mpp: float) -> Masks:
    """Masks of a pair in register: ``tissue``, ``nuclei``, ``stroma``, and with DAB ``DAB``.

    Args:
        first, second: (H, W, 3) uint8. stains: the name of a set that begins with Hematoxylin.
        mpp: micrometres per pixel.
    """
    from scipy.ndimage import binary_erosion

    own, other = (_structures(rgb, stains, mpp) for rgb in (first, second))
    agreed = {name: own[name] & other[name] for name in own}
    return {name: np.asarray(binary_erosion(mask), bool) for name, mask in agreed.items()}


def _structures(rgb: ByteArray, stains: str, mpp: float) -> Masks:
    od = over_white(rgb)
    tissue = np.asarray(distance.mean_around(od, mpp) > MIN_OD)
    return distance.parts(od, tissue, load_stains(stains))
