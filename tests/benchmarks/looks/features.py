"""Features that programs measure on tiles: texture and the shape of nuclei.

Normalised tiles should agree in them.

Nuclei are found as by a program that was set up on the target: hematoxylin by the library's
fixed vectors, over the target's white, above the target's threshold of Otsu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.looks.scores import WHITE_PERCENTILE, luminance
from wsi_pgdips.looks.distance import fixed_maps, otsu
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

TILE = 256
MIN_TISSUE = 0.5  # of a tile's pixels
MAX_TILES = 16  # of a picture, spread over those with tissue: convex hulls take their time
MIN_NUCLEUS_UM2 = 8.0
GLCM_LEVELS, GLCM_PROPERTIES = 32, ("contrast", "homogeneity", "energy", "correlation")
LBP_POINTS = 8
NUCLEUS = ("area", "eccentricity", "solidity", "intensity_mean")
_SIGMA = 1.0

Table = npt.NDArray[np.float64]
Tile = tuple[slice, slice]
Item = TypeVar("Item")


def tiles(tissue: BoolArray) -> list[Tile]:
    """Up to 16 tiles of 256 pixels that are mostly tissue."""
    h, w = tissue.shape
    every = [
        (slice(y, y + TILE), slice(x, x + TILE))
        for y in range(0, h - TILE + 1, TILE)
        for x in range(0, w - TILE + 1, TILE)
    ]
    return spread([tile for tile in every if tissue[tile].mean() >= MIN_TISSUE], MAX_TILES)


def spread(every: Sequence[Item], most: int) -> list[Item]:
    """Up to so many items, spread evenly over all."""
    picked = np.unique(np.linspace(0, len(every) - 1, most).astype(int)) if every else ()
    return [every[i] for i in picked]


class Features:
    """Features of tiles, as set up on the target.

    Args:
        target: (H, W, 3) uint8. tissue: (H, W), where tiles are taken.
    """

    def __init__(self, target: ByteArray, tissue: BoolArray, stains: str, mpp: float) -> None:
        self.tiles = tiles(tissue)
        labels = [label.casefold() for label in load_stains(stains).labels]
        self._stains, self._row = stains, labels.index("hematoxylin")
        od = rgb_to_od(target)
        self._white = np.percentile(od[::2, ::2], WHITE_PERCENTILE, axis=(0, 1))
        self._threshold = otsu(self._hematoxylin(target)[tissue])
        self._min_area = MIN_NUCLEUS_UM2 / mpp**2

    def texture(self, rgb: ByteArray) -> Table:
        """(tiles, 14): four properties of the GLCM of L, ten bins of its LBP histogram."""
        return self._table([_texture(luminance(rgb[tile])) for tile in self.tiles], 6 + LBP_POINTS)

    def nuclei(self, rgb: ByteArray) -> Table:
        """(tiles, 5): count, then means over the nuclei of a tile; NaN where it has none."""
        h = self._hematoxylin(rgb)
        rows = [self._nuclei(h[tile]) for tile in self.tiles]
        return self._table(rows, 1 + len(NUCLEUS))

    def _hematoxylin(self, rgb: ByteArray) -> FloatArray:
        from scipy.ndimage import gaussian_filter

        od = rgb_to_od(rgb) - self._white.astype(np.float32)
        od = np.ascontiguousarray(od.transpose(2, 0, 1))
        return np.asarray(
            gaussian_filter(fixed_maps(od, load_stains(self._stains))[self._row], _SIGMA)
        )

    def _nuclei(self, h: FloatArray) -> list[float]:
        from skimage import measure

        parts: Any = measure  # untyped
        labelled = parts.label(h > self._threshold)
        large = np.bincount(labelled.ravel()) >= self._min_area
        found = parts.regionprops_table(labelled * large[labelled], h, properties=NUCLEUS)
        count = len(found[NUCLEUS[0]])
        return [count, *(float(found[k].mean()) if count else np.nan for k in NUCLEUS)]

    def _table(self, rows: list[list[float]], width: int) -> Table:
        return np.asarray(rows, np.float64).reshape(len(self.tiles), width)


def drift(own: Table, target: Table) -> float:
    """Mean over features of |difference of means| / standard deviation over the target's tiles.

    Tiles in which one of the two has no value are left out; so are features that do not vary.
    """
    found = []
    for a, b in zip(own.T, target.T, strict=True):
        known = np.isfinite(a) & np.isfinite(b)
        spread = float(b[known].std(ddof=1)) if known.sum() > 1 else 0.0
        if spread > 1e-9:
            found.append(abs(float(a[known].mean() - b[known].mean())) / spread)
    return float(np.mean(found)) if found else float("nan")


def _texture(light: FloatArray) -> list[float]:
    from skimage import feature

    of: Any = feature  # untyped
    grey = np.clip(light * (GLCM_LEVELS / 100), 0, GLCM_LEVELS - 1).astype(np.uint8)
    glcm = of.graycomatrix(grey, [1], [0, np.pi / 2], GLCM_LEVELS, symmetric=True, normed=True)
    values = [float(of.graycoprops(glcm, name).mean()) for name in GLCM_PROPERTIES]
    fine = np.rint(light * 2.55).astype(np.uint8)
    lbp = of.local_binary_pattern(fine, LBP_POINTS, 1, "uniform").astype(int)
    return values + list(np.bincount(lbp.ravel(), minlength=LBP_POINTS + 2) / lbp.size)
