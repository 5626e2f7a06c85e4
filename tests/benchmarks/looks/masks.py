"""Tissue and its structures in a pair of pictures, by no method that is compared.

OD over each picture's own white; tissue by its mean OD around a pixel; stains by non-negative
least squares under the library's fixed vectors, smoothed; hematoxylin and DAB above the threshold
of Otsu. A pixel counts where both pictures agree, and masks lose a pixel all around.
"""

from __future__ import annotations

import numpy as np

from wsi_pgdips.looks.distance import Masks, mean_around, parts
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.stains import load_stains
from wsi_pgdips.records import ByteArray, FloatArray

WHITE_PERCENTILE = 5.0  # of OD, per channel: the glass, or what is palest
MIN_OD = 0.03  # mean of the channels around a pixel of tissue, pale stroma included


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
    return parts(od, np.asarray(mean_around(od, mpp) > MIN_OD), load_stains(stains))
