"""How far two pictures are apart in colour, as a whole and structure by structure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

WHOLE = "whole"
_LEVELS = (np.arange(512) + 0.5) / 512
_MIN_PIXELS = 500  # fewer say nothing of a structure
_DAB_OD = 0.2  # what is paler is background, whatever Otsu says
# D65, as scikit-image and every viewer take sRGB
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)


def wasserstein(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Mean over channels of the 1-Wasserstein distance of two samples, (C, n) and (C, m)."""
    qa, qb = (np.quantile(values, _LEVELS, axis=1) for values in (a, b))
    return float(np.abs(qa - qb).mean())


def lab(rgb: ByteArray) -> npt.NDArray[np.float64]:
    """(..., 3) sRGB uint8 -> (3, ...) CIELAB under D65."""
    light = rgb / 255.0
    linear = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def structures(
    od: FloatArray, tissue: BoolArray, background: FloatArray, stain_matrix: FloatArray
) -> dict[str, BoolArray]:
    """Masks of what a picture shows: the whole tissue, nuclei, stroma, and DAB where it is stained.

    By the library's fixed vectors and Otsu's thresholds, so that no method decides on its own
    yardstick. The first stain is taken for that of nuclei; a second one called DAB is left out of
    nuclei and stroma.

    Args:
        od: (3, H, W). tissue: (H, W). background: (3,) OD of glass. stain_matrix: (N, 3), N <= 2,
            of the library; its second row is DAB's where that is asked for, see ``has_dab``.
    """
    import torch

    with torch.no_grad():
        rows = [torch.from_numpy(np.ascontiguousarray(a)) for a in (od, stain_matrix, background)]
        q = unmix(*rows).numpy()
    q = gaussian_filter(q, (0, 1, 1))
    found = {WHOLE: tissue}
    rest = tissue
    if has_dab(stain_matrix):
        dab = tissue & (q[1] > max(otsu(q[1][tissue]), _DAB_OD))
        found["DAB"], rest = dab, tissue & ~dab
    nuclei = rest & (q[0] > otsu(q[0][rest]))
    found["nuclei"], found["stroma"] = nuclei, rest & ~nuclei
    return found


def has_dab(stain_matrix: FloatArray) -> bool:
    """Whether the second of two stains is brown: it absorbs blue light most."""
    return len(stain_matrix) == 2 and int(np.argmax(stain_matrix[1])) == 2


def otsu(values: npt.NDArray[np.floating]) -> float:
    """Otsu's threshold; of nothing, infinity."""
    if not values.size:
        return float("inf")
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mass = np.cumsum(counts * centres)
    mean_below = mass / np.maximum(below, 1)
    mean_above = (mass[-1] - mass) / np.maximum(above - counts, 1)
    between = below * (above - counts) * (mean_below - mean_above) ** 2
    return float(centres[int(np.argmax(between))])


def distances(
    a: ByteArray, b: ByteArray, masks_a: dict[str, BoolArray], masks_b: dict[str, BoolArray]
) -> dict[str, dict[str, float]]:
    """Structure -> ``od`` and ``lab`` distance of two pictures (h, w, 3), each in its own masks.

    Structures of fewer than 500 pixels in either are left out.
    """
    from wsi_pgdips.optics.density import rgb_to_od

    found = {}
    for name in masks_a:
        if name not in masks_b or min(masks_a[name].sum(), masks_b[name].sum()) < _MIN_PIXELS:
            continue
        pa, pb = a[masks_a[name]], b[masks_b[name]]
        found[name] = {
            "od": wasserstein(rgb_to_od(pa).T, rgb_to_od(pb).T),
            "lab": wasserstein(lab(pa), lab(pb)),
        }
    return found
