"""Registration of two pictures of the same glass: the affine from one's pixels to the other's.

Local features (SIFT) of the mean optical density are matched, and RANSAC finds the affine that most
of the matches agree on. Any rotation and shift is found, and scales within a factor of about four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SlideError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

Float64 = npt.NDArray[np.float64]
Affine = tuple[tuple[float, float, float], tuple[float, float, float]]

# what a registration must reach; two different fields of one stain reach about 10 matches
MIN_INLIERS, MAX_RMS_PX, MIN_CORRELATION = 30, 1.5, 0.5
MAX_ANISOTROPY = 1.1  # largest scale of the affine relative to its smallest
_RATIO = 0.8  # of a match's distance to that of the second best match
_REACH_PX = 2.0  # a match that is further off is not an inlier
_TRIALS, _FEWEST_TRIALS, _MANY = 5000, 200, 0.3  # few are enough once many matches agree
_MAX_FEATURES = 6000  # of one picture: their table of distances takes 300 MB
_REFITS = 4


@dataclass(frozen=True)
class Registration:
    """The affine from the pixels of picture A to those of picture B, and how well it fits.

    Attributes:
        affine: two rows: (y, x) of B = affine[:, :2] @ (y, x) of A + affine[:, 2]. The centres of
            pixels lie at whole numbers.
        matches: features that were matched. inliers: those that agree with the affine.
        rms_px: root mean square distance of the inliers, in pixels of the coarser picture.
        correlation: of the two pictures' mean optical densities where they overlap.
    """

    affine: Affine
    matches: int
    inliers: int
    rms_px: float
    correlation: float

    @property
    def linear(self) -> Float64:
        """(2, 2) float64: the affine without its shift."""
        return np.asarray(self.affine, np.float64)[:, :2]

    @property
    def shift(self) -> Float64:
        """(2,) float64: (y, x) of B for the first pixel of A."""
        return np.asarray(self.affine, np.float64)[:, 2]

    @property
    def scale(self) -> float:
        """Pixels of B per pixel of A along a line."""
        return float(np.sqrt(abs(np.linalg.det(self.linear))))

    @property
    def inverse(self) -> Float64:
        """(2, 3) float64: the affine from the pixels of B to those of A."""
        back = np.linalg.inv(self.linear)
        return np.column_stack([back, -back @ self.shift])


def register(a: ByteArray, b: ByteArray, where: object = None) -> Registration:
    """Register two pictures of the same glass on different scanners.

    Args:
        a, b: (h, w, 3) uint8, of any size up to about 2000 pixels a side.
        where: named in the error.

    Raises:
        SlideError: the pictures cannot be registered; the message holds the figures.
    """
    grey_a, grey_b = contrast(a), contrast(b)
    at_a, at_b = _matched(_features(grey_a), _features(grey_b))
    affine, inside = _agreed(at_a, at_b)
    if affine is None:
        raise _refused(f"none of {len(at_a)} matching features agree", where)
    scale = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    off = _distance(affine, at_a, at_b)[inside]
    rows = tuple(tuple(float(v) for v in row) for row in affine)
    found = Registration(
        (rows[0], rows[1]),  # type: ignore[arg-type]
        len(at_a),
        int(inside.sum()),
        float(np.sqrt((off**2).mean())) / max(scale, 1.0),
        _correlation(grey_a, grey_b, affine),
    )
    _check(found, where)
    return found


def contrast(rgb: ByteArray) -> FloatArray:
    """Return the mean optical density of (h, w, 3) uint8, with its 1st and 99th percentile at 0, 1.

    Stains look alike in it on all scanners.
    """
    od = rgb_to_od(rgb).mean(2)
    low, high = np.percentile(od, [1, 99])
    return np.asarray(np.clip((od - low) / max(high - low, 1e-3), 0, 1), np.float32)


def warped(image: FloatArray, yx: Float64, shape: tuple[int, int]) -> FloatArray:
    """Sample (H, W) or (H, W, C) on a grid, with NaN outside the image.

    Args:
        yx: (2, 3) affine from the grid's pixels to the image's. shape: (h, w) of the grid.
    """
    from scipy.ndimage import affine_transform

    planes = image[..., None] if image.ndim == 2 else image
    out = [
        affine_transform(
            planes[..., c], yx[:, :2], yx[:, 2], shape, order=1, mode="constant", cval=np.nan
        )
        for c in range(planes.shape[2])
    ]
    return np.asarray(np.stack(out, 2).reshape(*shape, *image.shape[2:]), np.float32)


def _features(grey: FloatArray) -> tuple[Float64, npt.NDArray[np.uint8]]:
    """Find the features of a picture: their (n, 2) places (y, x) and (n, 128) descriptors."""
    from skimage import feature

    untyped: Any = feature.SIFT
    sift = untyped(upsampling=1)
    try:
        sift.detect_and_extract(grey)
    except RuntimeError:  # no features
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    # large ones are the same on all scanners; the smallest are noise and sharpening
    kept = np.argsort(-sift.sigmas, kind="stable")[:_MAX_FEATURES]
    return np.asarray(sift.positions[kept], np.float64), sift.descriptors[kept]


def _matched(
    a: tuple[Float64, npt.NDArray[np.uint8]], b: tuple[Float64, npt.NDArray[np.uint8]]
) -> tuple[Float64, Float64]:
    """Match features that are each other's best; return their (n, 2) places in A and in B."""
    from skimage import feature

    match: Any = feature.match_descriptors  # untyped
    if min(len(a[0]), len(b[0])) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    pairs = match(a[1], b[1], max_ratio=_RATIO, cross_check=True)
    # a feature of two orientations counts once
    places = np.unique(np.column_stack([a[0][pairs[:, 0]], b[0][pairs[:, 1]]]), axis=0)
    return places[:, :2], places[:, 2:]


def _agreed(at_a: Float64, at_b: Float64) -> tuple[Float64 | None, BoolArray]:
    """Find the (2, 3) affine that most matches agree on, and which do; None if there is none."""
    none = np.zeros(len(at_a), bool)
    if len(at_a) < 4:
        return None, none
    rng = np.random.default_rng(0)
    best, inside = 0, none
    ones = np.column_stack([at_a, np.ones(len(at_a))])
    for trials in range(_TRIALS):
        if trials > _FEWEST_TRIALS and best > _MANY * len(at_a):
            break
        three = rng.choice(len(at_a), 3, replace=False)
        if abs(np.linalg.det(ones[three])) < 1.0:  # on a line
            continue
        trial = np.asarray(np.linalg.solve(ones[three], at_b[three]).T, np.float64)
        if not _is_plausible(trial[:, :2]):
            continue
        close = _distance(trial, at_a, at_b) < _reach(trial)
        if (count := int(close.sum())) > best:
            best, inside = count, close
    if best < 4:
        return None, none
    affine = np.zeros((2, 3))
    for _ in range(_REFITS):
        affine = np.asarray(np.linalg.lstsq(ones[inside], at_b[inside], rcond=None)[0].T, float)
        closer = _distance(affine, at_a, at_b) < _reach(affine)
        if closer.sum() < 4:
            return None, none
        inside = closer
    return affine, inside


def _distance(affine: Float64, at_a: Float64, at_b: Float64) -> Float64:
    """Return how far each match is off, in pixels of B."""
    return np.asarray(np.linalg.norm(at_a @ affine[:, :2].T + affine[:, 2] - at_b, axis=1))


def _reach(affine: Float64) -> float:
    """Return the distance of an inlier in pixels of B: two pixels of the coarser picture."""
    return _REACH_PX * max(float(np.sqrt(abs(np.linalg.det(affine[:, :2])))), 1.0)


def _is_plausible(linear: Float64) -> bool:
    """Return whether (2, 2) may join two scans: not mirrored, and nearly the same in all ways."""
    largest, smallest = np.linalg.svd(linear, compute_uv=False)
    return bool(np.linalg.det(linear) > 0 and largest <= MAX_ANISOTROPY * smallest)


def _correlation(a: FloatArray, b: FloatArray, affine: Float64) -> float:
    """Return the correlation of two pictures on the pixels of the coarser; 0 without overlap."""
    from scipy.ndimage import gaussian_filter

    back = np.linalg.inv(affine[:, :2])
    scale = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if scale >= 1:  # A is the coarser
        fixed, moved = gaussian_filter(a, 2.0), gaussian_filter(b, 2.0 * scale)
        seen = warped(moved, affine, fixed.shape)
    else:
        fixed, moved = gaussian_filter(b, 2.0), gaussian_filter(a, 2.0 / scale)
        seen = warped(moved, np.column_stack([back, -back @ affine[:, 2]]), fixed.shape)
    both = ~np.isnan(seen)
    if both.sum() < 100 or min(seen[both].std(), fixed[both].std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(seen[both], fixed[both])[0, 1])


def _check(found: Registration, where: object) -> None:
    """Refuse a registration that is not that of one glass."""
    good = (
        found.inliers >= MIN_INLIERS
        and found.rms_px <= MAX_RMS_PX
        and found.correlation >= MIN_CORRELATION
        and _is_plausible(found.linear)
    )
    if not good:
        large, small = np.linalg.svd(found.linear, compute_uv=False)
        mirrored = ", mirrored" if np.linalg.det(found.linear) < 0 else ""
        raise _refused(
            f"{found.inliers} of {found.matches} matching features agree, rms {found.rms_px:.2f} "
            f"px, correlation {found.correlation:.2f}, scales {small:.3g} and {large:.3g}"
            + mirrored,
            where,
        )


def _refused(found: str, where: object) -> SlideError:
    return SlideError(
        "the two pictures cannot be registered",
        expected=f"at least {MIN_INLIERS} features that agree, rms at most {MAX_RMS_PX:g} px, "
        f"correlation at least {MIN_CORRELATION:g}, scales within {MAX_ANISOTROPY - 1:.0%}",
        found=found,
        where=where,
        hint="give two scans of the same glass slide and field that are not mirrored; "
        "serial sections are not the same glass",
    )
