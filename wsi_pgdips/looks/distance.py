"""Colour distances between two slides or pictures, as a whole and structure by structure."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.pixels import unmixed
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, StainSet
from wsi_pgdips.slide.reader import fallback_mpp, open_source
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import find_tissue

TISSUE, NUCLEI, STROMA, DAB = "tissue", "nuclei", "stroma", "DAB"
MIN_PIXELS = 500  # a smaller structure is not compared
_GAP_SHARE = 0.1  # of the picture's 95th percentile of OD: surroundings below it are a gap
_MIN_DAB_OD = 0.15  # in a picture without DAB, Otsu's threshold would divide its noise
_SIGMA = 1.0
_TISSUE_SIGMA_UM = 4.0
_LEVELS = (np.arange(512) + 0.5) / 512
_WINDOWS, _SIDE = 48, 256  # windows of a slide that are compared, and their side in pixels

Masks = dict[str, BoolArray]
Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """Distances of slide A to slide B: structure -> ``od`` and ``lab`` distance.

    Attributes:
        after: of A. before: of the slide that A was made from, if it was given.
    """

    after: Table
    before: Table | None


def compare_slides(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    before: str | os.PathLike[str] | None = None,
    stains: str = "he",
    mpp: float = 0.5,
    mpp_source: float | None = None,
) -> Comparison:
    """Compare the colours of two slides by 1-Wasserstein distances in OD and CIELAB.

    Distances are taken over the tissue of each slide, and over its nuclei, stroma and DAB, which
    fixed library vectors and Otsu's thresholds find. The distance over all tissue also counts how
    much of each structure the slides hold.

    Args:
        a, b: slides or images, e.g. a normalised export and the slide that it should look like.
        before: the slide that ``a`` was made from, to compare it too.
        stains: library set whose vectors find the structures.
        mpp: micrometres per pixel of the comparison.
        mpp_source: micrometres per level-0 pixel of files that do not say it.

    Raises:
        SlideError: a slide cannot be read, or has no tissue. StainError: unknown stains.
    """
    library = load_stains(stains)
    target, target_masks = _sample(b, library, mpp, mpp_source)

    def table(path: str | os.PathLike[str]) -> Table:
        rgb, masks = _sample(path, library, mpp, mpp_source)
        return distances(rgb, target, masks, target_masks)

    return Comparison(table(a), None if before is None else table(before))


def _sample(
    path: str | os.PathLike[str], library: StainSet, mpp: float, mpp_source: float | None
) -> tuple[ByteArray, Masks]:
    """Read windows of a slide as one tall picture, with the masks of its structures."""
    known = fallback_mpp(path, mpp_source)
    with contextlib.closing(open_source(Path(path), mpp=mpp, mpp_source=known)) as source:
        tissue, grid = find_tissue(source), source.grid
        glass, _, _ = background_field(tissue, grid)  # (CY, CX, 3)
        height, width = grid.shape
        side = min(_SIDE, height, width)
        places = [
            (y, x)
            for y in range(0, height - side + 1, side)
            for x in range(0, width - side + 1, side)
            if tissue.window(y, x, side, side).mean() > 0.5
        ] or [((height - side) // 2, (width - side) // 2)]
        picked = np.unique(np.linspace(0, len(places) - 1, _WINDOWS).astype(int))
        windows = [(*places[i], side, side) for i in picked]
        rgb = np.concatenate([source.read(*w) for w in windows])
        inside = np.concatenate([tissue.window(*w) for w in windows])
    od = rgb_to_od(rgb).transpose(2, 0, 1) - glass.reshape(-1, 3).mean(0)[:, None, None]
    return rgb, structures(np.asarray(od, np.float32), inside, library, grid.mpp)


def wasserstein(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Return the 1-Wasserstein distance of two samples, (n,) and (m,), by 512 quantiles."""
    return float(np.abs(np.quantile(a, _LEVELS) - np.quantile(b, _LEVELS)).mean())


def colour_distances(a: ByteArray, b: ByteArray) -> tuple[float, float]:
    """Return the distances of two samples of pixels, (n, 3) and (m, 3) uint8, in OD and CIELAB.

    Each is the mean of the three channels' 1-Wasserstein distances.
    """
    from skimage.color import rgb2lab

    spaces = ((rgb_to_od(a), rgb_to_od(b)), (rgb2lab(a), rgb2lab(b)))
    od, lab = (np.mean([wasserstein(x[:, c], y[:, c]) for c in range(3)]) for x, y in spaces)
    return float(od), float(lab)


def structures(od: FloatArray, inside: BoolArray, stains: StainSet, mpp: float) -> Masks:
    """Return the masks of a picture's ``tissue`` without its gaps, and of its :func:`parts`.

    The threshold for gaps is relative, because scanners differ in contrast.

    Args:
        od: (3, H, W) OD over glass. inside: (H, W) tissue mask. stains: a library set.
        mpp: micrometres per pixel.
    """
    around = mean_around(od, mpp)
    darkest = np.percentile(around[inside], 95) if inside.any() else 0.0
    return parts(od, np.asarray(inside & (around > _GAP_SHARE * darkest)), stains)


def mean_around(od: FloatArray, mpp: float) -> FloatArray:
    """Return the (H, W) mean OD of the channels around each pixel, by a Gaussian of 4 um."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(od.mean(0), _TISSUE_SIGMA_UM / mpp), np.float32)


def parts(od: FloatArray, tissue: BoolArray, stains: StainSet) -> Masks:
    """Return masks of ``tissue``, its ``nuclei`` and ``stroma``, and ``DAB`` if it is a stain.

    They follow from fixed library vectors and Otsu's thresholds, so that no method is measured by
    itself. Nuclei are the pixels with most of the first stain.
    """
    from scipy.ndimage import gaussian_filter

    q = gaussian_filter(fixed_maps(od, stains), (0, _SIGMA, _SIGMA))
    found, rest = {TISSUE: tissue}, tissue
    labels = [label.casefold() for label in stains.labels]
    if DAB.casefold() in labels:
        dab = q[labels.index(DAB.casefold())]
        found[DAB] = tissue & (dab > max(otsu(dab[tissue]), _MIN_DAB_OD))
        rest = tissue & ~found[DAB]
    found[NUCLEI] = rest & (q[0] > otsu(q[0][rest]))
    found[STROMA] = rest & ~found[NUCLEI]
    return found


def fixed_maps(od: FloatArray, stains: StainSet) -> FloatArray:
    """Unmix (3, H, W) OD over glass with the library's vectors; return (N, H, W) q."""
    return unmixed(od, stains.stain_matrix, np.zeros(3, np.float32))


def otsu(values: npt.NDArray[np.floating]) -> float:
    """Return Otsu's threshold; infinite if all values are equal or there are none."""
    from skimage import filters

    threshold: Any = filters.threshold_otsu  # untyped
    return float(threshold(values)) if values.size and np.ptp(values) > 0 else float("inf")


def distances(a: ByteArray, b: ByteArray, masks_a: Masks, masks_b: Masks) -> Table:
    """Return structure -> ``od`` and ``lab`` distance of two (h, w, 3) uint8 pictures.

    Structures with fewer than 500 pixels in either picture are left out.

    Args:
        masks_a, masks_b: of the pictures' structures, see :func:`structures`.
    """
    found = {}
    for name in masks_a:
        if name not in masks_b or min(masks_a[name].sum(), masks_b[name].sum()) < MIN_PIXELS:
            continue
        od, lab = colour_distances(a[masks_a[name]], b[masks_b[name]])
        found[name] = {"od": od, "lab": lab}
    return found
