"""Neighbourhoods and pieces of an overview: small filters that several parts share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import BoolArray, FloatArray

Scalar = TypeVar("Scalar", bound=np.generic)


def local_std(od: FloatArray, size: int) -> FloatArray:
    """The standard deviation over size x size pixels, (H, W), the largest of the channels."""
    from scipy import ndimage

    out = np.zeros(od.shape[:2], np.float32)
    for c in range(od.shape[2]):
        # float64 and centred, because a difference of two squares exceeds float32's precision
        z = od[..., c].astype(np.float64)
        z -= z.mean()
        mean = ndimage.uniform_filter(z, size, mode="nearest")
        square = ndimage.uniform_filter(z * z, size, mode="nearest")
        np.maximum(out, np.sqrt(np.maximum(square - mean * mean, 0)), out=out, casting="same_kind")
    return out


def between_channels(picture: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """The difference between the largest and the smallest channel of (H, W, 3): (H, W)."""
    # several times as fast as np.ptp along a short axis
    a, b, c = (picture[..., k] for k in range(3))
    return np.asarray(np.maximum(np.maximum(a, b), c) - np.minimum(np.minimum(a, b), c))


def near(mask: BoolArray, pixels: int) -> BoolArray:
    """Grow a mask by a square of side 2 * pixels + 1."""
    from scipy import ndimage

    grown = ndimage.maximum_filter(mask.astype(np.uint8), 2 * pixels + 1, mode="constant")
    return np.asarray(grown, bool)


def large(mask: BoolArray, area: int) -> BoolArray:
    """Keep the connected pieces of at least ``area`` pixels."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=n + 1) >= area
    keep[0] = False
    return np.asarray(keep[labels], bool)


def bordering(mask: BoolArray) -> BoolArray:
    """Keep the connected pieces that reach the border of the image."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    keep = np.zeros(n + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep[edge] = True
    keep[0] = False
    return np.asarray(keep[labels], bool)


def enclosed(mask: BoolArray) -> BoolArray:
    """Keep the connected pieces that do not reach the border of the image."""
    return mask & ~bordering(mask)
