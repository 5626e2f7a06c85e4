"""How far two pictures are apart in colour, as a whole and structure by structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, StainSet

TISSUE, NUCLEI, STROMA, DAB = "tissue", "nuclei", "stroma", "DAB"
MIN_SHARE = 0.1  # of the picture's 95th percentile: what is paler around it is a gap in tissue
MIN_DAB_OD = 0.15  # where a picture holds no DAB the threshold of Otsu divides its noise
MIN_PIXELS = 500  # fewer say nothing of a structure
_SIGMA = 1.0
_TISSUE_SIGMA_UM = 4.0
_LEVELS = (np.arange(512) + 0.5) / 512

Masks = dict[str, BoolArray]


def wasserstein(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """1-Wasserstein distance of two samples, (n,) and (m,), by 512 quantiles."""
    return float(np.abs(np.quantile(a, _LEVELS) - np.quantile(b, _LEVELS)).mean())


def colour_distances(a: ByteArray, b: ByteArray) -> tuple[float, float]:
    """Distance of two samples of pixels, (n, 3) and (m, 3) uint8, in OD and in CIELAB.

    1-Wasserstein, channel by channel, mean of the three.
    """
    from skimage.color import rgb2lab

    spaces = ((rgb_to_od(a), rgb_to_od(b)), (rgb2lab(a), rgb2lab(b)))
    od, lab = (np.mean([wasserstein(x[:, c], y[:, c]) for c in range(3)]) for x, y in spaces)
    return float(od), float(lab)


def structures(od: FloatArray, inside: BoolArray, stains: StainSet, mpp: float) -> Masks:
    """Masks of what a picture shows: ``tissue``, and its :func:`parts`.

    Without a threshold in OD for tissue, which scanners of other contrast would meet elsewhere.

    Args:
        od: (3, H, W) OD over glass. inside: (H, W) of the tissue mask. stains: of the library.
        mpp: micrometres per pixel.
    """
    around = mean_around(od, mpp)
    darkest = np.percentile(around[inside], 95) if inside.any() else 0.0
    return parts(od, np.asarray(inside & (around > MIN_SHARE * darkest)), stains)


def mean_around(od: FloatArray, mpp: float) -> FloatArray:
    """(H, W) mean OD of the channels around each pixel."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(od.mean(0), _TISSUE_SIGMA_UM / mpp), np.float32)


def parts(od: FloatArray, tissue: BoolArray, stains: StainSet) -> Masks:
    """``tissue`` and, in it, ``nuclei``, ``stroma``, and ``DAB`` if that is among the stains.

    By the library's fixed vectors and Otsu's thresholds, so that no method decides on its own
    yardstick. Nuclei are what holds most of the first stain.
    """
    from scipy.ndimage import gaussian_filter

    q = gaussian_filter(fixed_maps(od, stains), (0, _SIGMA, _SIGMA))
    found, rest = {TISSUE: tissue}, tissue
    labels = [label.casefold() for label in stains.labels]
    if DAB.casefold() in labels:
        dab = q[labels.index(DAB.casefold())]
        found[DAB] = tissue & (dab > max(otsu(dab[tissue]), MIN_DAB_OD))
        rest = tissue & ~found[DAB]
    found[NUCLEI] = rest & (q[0] > otsu(q[0][rest]))
    found[STROMA] = rest & ~found[NUCLEI]
    return found


def fixed_maps(od: FloatArray, stains: StainSet) -> FloatArray:
    """(N, H, W) q of (3, H, W) OD over glass under the library's vectors."""
    import torch

    from wsi_pgdips.optics.unmix import unmix

    rows = torch.from_numpy(stains.stain_matrix)
    with torch.no_grad():
        q = unmix(torch.from_numpy(np.ascontiguousarray(od)), rows, torch.zeros(3))
    return np.asarray(q.numpy(), np.float32)


def otsu(values: npt.NDArray[np.floating]) -> float:
    """The threshold of Otsu; infinite where all values are one."""
    from skimage import filters

    threshold: Any = filters.threshold_otsu  # untyped
    return float(threshold(values)) if values.size and np.ptp(values) > 0 else float("inf")


def distances(
    a: ByteArray, b: ByteArray, masks_a: Masks, masks_b: Masks
) -> dict[str, dict[str, float]]:
    """Structure -> ``od`` and ``lab`` distance of two pictures (h, w, 3), each in its own masks.

    Structures of fewer than 500 pixels in either are left out.
    """
    found = {}
    for name in masks_a:
        if name not in masks_b or min(masks_a[name].sum(), masks_b[name].sum()) < MIN_PIXELS:
            continue
        od, lab = colour_distances(a[masks_a[name]], b[masks_b[name]])
        found[name] = {"od": od, "lab": lab}
    return found
