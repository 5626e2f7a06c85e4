"""A pair: the same glass on two scanners, read, registered and sampled pixel by pixel.

A picture, or a small slide, is registered as a whole. A large slide is registered on an overview
first, and then window by window, because the stages of two scanners differ by some micrometres. Two
files need no mpp: the registration finds their scale.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.looks.register import Float64, Registration, contrast, register, warped
from wsi_pgdips.optics.physics import I0, light_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray
from wsi_pgdips.slide.reader import fallback_mpp, open_source
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.tiles.whitepoint import find_glass

_NOMINAL_MPP = 0.25  # of a file that does not say it; the registration finds the true scale
_SIDE = 1536  # longest side in pixels of a picture that is registered as a whole
_FINE_MPP = 1.0
_WINDOWS, _WINDOW = 16, 768  # of a large slide, and their side in pixels
_MARGIN = 0.1  # of a window, around where the overview says that it lies on scanner A
_MIN_WINDOWS = 3
_STAINED, _TISSUE_SHARE = 0.2, 0.2  # of the contrast; of a window, to be read
BLUR_PX, BLUR_UM = 2.0, 1.5  # whichever is larger: registration is no better than a pixel
MIN_TISSUE_OD = 0.05  # mean over the channels, above glass
MIN_TISSUE_PX, MIN_GLASS_PX = 1000, 200
_NEAR_PALEST = 0.015  # OD: what is so much denser than the palest pixels is pale tissue, not glass
_MAX_PIXELS = 20_000  # of one pair
_REGIONS_ACROSS = 3
_BLACK, _WHITE = 8, 254  # beyond these a scanner shows no colour


@dataclass(frozen=True, eq=False)
class PairPixels:
    """The same tissue pixels on scanners A and B.

    Attributes:
        a, b: (n, 3) float32 OD. region: (n,) the compact part of the glass that each lies in.
        glass_a, glass_b: (3,) OD of the same pixels of glass, or None if the pair shows none.
        palest_a: (3,) OD that all but 1 % of the pixels of A exceed.
        registration: of the whole pair.
        source: the entry of ``ColourMap.sources``.
    """

    a: FloatArray
    b: FloatArray
    region: npt.NDArray[np.intp]
    glass_a: FloatArray | None
    glass_b: FloatArray | None
    palest_a: FloatArray
    registration: Registration
    source: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Sample:
    """A registered pair of pictures, on the pixels of the coarser one."""

    a: FloatArray  # (h, w, 3) OD, blurred
    b: FloatArray
    seen: BoolArray  # (h, w), on both
    glass: BoolArray


def read_pair(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, mpp_source: float | None = None
) -> PairPixels:
    """Read, register and sample the same glass on two scanners.

    Args:
        a, b: slides or pictures of any size and turn.
        mpp_source: micrometres per level-0 pixel of files that do not say it.

    Raises:
        SlideError: a file cannot be read, the two cannot be registered, or they share too little
            tissue.
    """
    where = f"{Path(a).name} and {Path(b).name}"
    (source_a, stated_a), (source_b, stated_b) = (_open(path, mpp_source) for path in (a, b))
    with contextlib.closing(source_a), contextlib.closing(source_b):
        longest = max(max(s.grid.shape) * s.grid.mpp for s in (source_a, source_b))
        own = max(source_a.grid.mpp, source_b.grid.mpp)
        coarse, fine = max(longest / _SIDE, own), max(_FINE_MPP, own)
        (rgb_a, step_a), (rgb_b, step_b) = (s.overview(coarse) for s in (source_a, source_b))
        whole = register(rgb_a, rgb_b, where)
        mpp = max(step_a * source_a.grid.mpp, step_b * source_b.grid.mpp)
        is_small = mpp <= fine
        mpp = min(mpp, fine)
        blur = max(BLUR_PX, BLUR_UM / mpp) if stated_a and stated_b else BLUR_PX
        if is_small:
            samples = [_sample(rgb_a, rgb_b, whole, blur)]
        else:
            windows = _tissue_windows(rgb_b, step_b, mpp / source_b.grid.mpp, whole, rgb_a.shape)
            level0 = _to_level0(whole, step_a, step_b)
            samples = list(_window_samples(source_a, source_b, level0, windows, mpp, blur))
            if len(samples) < _MIN_WINDOWS:
                raise SlideError(
                    "the two slides agree on the overview, but not in detail",
                    expected=f"at least {_MIN_WINDOWS} windows that can be registered",
                    found=f"{len(samples)} of {len(windows)}",
                    where=where,
                    hint="check that both are in focus and are scans of the same glass slide",
                )
    checksums = source_a.meta.checksum, source_b.meta.checksum
    return _pooled(samples, whole, checksums, where)


def _open(path: str | os.PathLike[str], mpp_source: float | None) -> tuple[PyramidSource, bool]:
    """Open a file on its own pixels; also return whether their size is known, not nominal."""
    known = fallback_mpp(path, _NOMINAL_MPP if mpp_source is None else mpp_source)
    return open_source(path, mpp="native", mpp_source=known), not (known and mpp_source is None)


def _to_level0(found: Registration, step_a: float, step_b: float) -> Float64:
    """Return the (2, 3) affine from the edges of A's own pixels to those of B's.

    An overview pixel is ``step`` pixels wide.
    """
    linear = found.linear * step_b / step_a
    # centres of overview pixels lie half a pixel from their edges
    shift = step_b * (found.shift + 0.5 - found.linear @ (0.5, 0.5))
    return np.column_stack([linear, shift])


def _tissue_windows(
    rgb_b: ByteArray,
    step_b: float,
    ratio: float,
    whole: Registration,
    shape_a: tuple[int, ...],
) -> list[Region]:
    """Choose windows of B, in its own pixels, that hold tissue and lie on A, spread over B.

    Args:
        rgb_b: overview of B. step_b: B's own pixels per overview pixel. ratio: B's own pixels per
            pixel of a window. whole: of the overviews. shape_a: of the overview of A.
    """
    everywhere = np.ones((shape_a[0], shape_a[1]), np.float32)
    shared = ~np.isnan(warped(everywhere, whole.inverse, rgb_b.shape[:2]))
    tissue = contrast(rgb_b) > _STAINED
    side = max(round(_WINDOW * ratio / step_b), 1)
    places = []
    for y in range(0, rgb_b.shape[0] - side + 1, side):
        for x in range(0, rgb_b.shape[1] - side + 1, side):
            cell = np.s_[y : y + side, x : x + side]
            if shared[cell].all() and tissue[cell].mean() > _TISSUE_SHARE:
                places.append((round(y * step_b), round(x * step_b)))
    if not places:
        return []
    picked = np.unique(np.linspace(0, len(places) - 1, _WINDOWS).astype(int))
    n = round(side * step_b)
    return [Region(places[i][0], places[i][1], n, n) for i in picked]


def _window_samples(
    a: PyramidSource,
    b: PyramidSource,
    affine: Float64,
    windows: list[Region],
    mpp: float,
    blur: float,
) -> Iterator[_Sample]:
    """Register and sample windows; those that cannot be read or registered are left out.

    Args:
        affine: (2, 3) from A's own pixels to B's. windows: in B's own pixels. mpp: of a window's
            pixels. blur: sigma in these pixels.
    """
    back = np.linalg.inv(affine[:, :2])
    for window in windows:
        ends = (window.y, window.stop_y), (window.x, window.stop_x)
        on_a = (np.array([(y, x) for y in ends[0] for x in ends[1]]) - affine[:, 2]) @ back.T
        margin = _MARGIN * np.ptp(on_a, axis=0)
        y, x = (math.floor(v) for v in np.maximum(on_a.min(0) - margin, 0))
        stop_y, stop_x = (math.ceil(v) for v in on_a.max(0) + margin)
        try:
            rgb_a, _ = a.overview(mpp, Region(y, x, stop_y - y, stop_x - x))
            rgb_b, _ = b.overview(mpp, window)
            found = register(rgb_a, rgb_b)
        except SlideError:
            continue
        yield _sample(rgb_a, rgb_b, found, blur)


def _sample(a: ByteArray, b: ByteArray, found: Registration, blur: float) -> _Sample:
    """Bring two registered pictures to the pixels of the coarser one.

    Args:
        blur: sigma in pixels of the coarser picture.
    """
    from scipy.ndimage import binary_erosion, gaussian_filter

    def blurred(rgb: ByteArray, sigma: float) -> FloatArray:
        return np.asarray(gaussian_filter(np.float32(rgb), (sigma, sigma, 0)), np.float32)

    if found.scale >= 1:  # A is the coarser
        seen_a = blurred(a, blur)
        seen_b = warped(blurred(b, blur * found.scale), np.array(found.affine), a.shape[:2])
    else:
        seen_b = blurred(b, blur)
        seen_a = warped(blurred(a, blur / found.scale), found.inverse, b.shape[:2])
    both = np.asarray(~(np.isnan(seen_a).any(2) | np.isnan(seen_b).any(2)), bool)
    rgb = [np.rint(np.nan_to_num(v, nan=255.0)).astype(np.uint8) for v in (seen_a, seen_b)]
    seen = np.asarray(binary_erosion(both, iterations=math.ceil(2 * blur)), bool)
    od_a, od_b = (light_to_od(np.nan_to_num(v, nan=I0)) for v in (seen_a, seen_b))
    return _Sample(od_a, od_b, seen, _glass(rgb[0], rgb[1], ~both) & seen)


def _glass(a: ByteArray, b: ByteArray, outside: BoolArray) -> BoolArray:
    """Find pixels that are glass on both pictures, or on the one that shows any."""
    found = [find_glass(rgb, outside) for rgb in (a, b)]
    clear = [glass.clear for glass in found if glass.found and glass.clear.any()]
    if not clear:
        return np.zeros(outside.shape, bool)
    return np.asarray(np.logical_and.reduce(clear), bool)


def _pooled(
    samples: list[_Sample], whole: Registration, checksums: tuple[str, str], where: str
) -> PairPixels:
    """Return the tissue pixels of all windows of a pair, with its glass."""
    glass = [np.concatenate([getattr(s, k)[s.glass] for s in samples]) for k in ("a", "b")]
    seen = [np.concatenate([getattr(s, k)[s.seen] for s in samples]) for k in ("a", "b")]
    floor = [np.percentile(v, 1, axis=0) for v in seen]
    has_glass = len(glass[0]) >= MIN_GLASS_PX and all(
        np.median(g, 0).mean() <= f.mean() + _NEAR_PALEST for g, f in zip(glass, floor, strict=True)
    )
    glass_a, glass_b = (
        np.median(v, 0) if has_glass else f for v, f in zip(glass, floor, strict=True)
    )
    parts_a, parts_b, regions = [], [], []
    for i, sample in enumerate(samples):
        above = (sample.a - glass_a + sample.b - glass_b).mean(2) / 2
        tissue = sample.seen & ~sample.glass & (above > MIN_TISSUE_OD) & _unclipped(sample)
        y, x = np.nonzero(tissue)
        parts_a.append(sample.a[y, x])
        parts_b.append(sample.b[y, x])
        regions.append(_compact(y, x) if len(samples) == 1 else np.full(len(y), i))
    a, b, region = (np.concatenate(v) for v in (parts_a, parts_b, regions))
    if len(a) < MIN_TISSUE_PX:
        raise SlideError(
            "the two pictures share too little tissue",
            expected=f"{MIN_TISSUE_PX} pixels of at least {MIN_TISSUE_OD:g} OD above glass",
            found=len(a),
            where=where,
        )
    kept = np.unique(np.linspace(0, len(a) - 1, _MAX_PIXELS).astype(int))
    source = {
        "from": checksums[0],
        "to": checksums[1],
        "inliers": whole.inliers,
        "rms_px": round(whole.rms_px, 4),
        "correlation": round(whole.correlation, 4),
        "glass": has_glass,
    }
    return PairPixels(
        a[kept],
        b[kept],
        region[kept],
        np.asarray(glass_a, np.float32) if has_glass else None,
        np.asarray(glass_b, np.float32) if has_glass else None,
        np.asarray(floor[0], np.float32),
        whole,
        source,
    )


def _unclipped(sample: _Sample) -> BoolArray:
    """Return where neither picture is black or pure white in a channel."""
    high, low = (-math.log10(v / I0) for v in (_BLACK, _WHITE))
    return np.asarray(
        (np.maximum(sample.a, sample.b).max(2) < high)
        & (np.minimum(sample.a, sample.b).max(2) > low),
        bool,
    )


def _compact(y: npt.NDArray[np.intp], x: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Divide pixels into nine compact regions with equally many each: (n,)."""

    def rank(values: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return np.asarray(order * _REGIONS_ACROSS // max(len(values), 1), np.intp)

    row = rank(y)
    column = np.zeros(len(y), np.intp)
    for i in range(_REGIONS_ACROSS):
        column[row == i] = rank(x[row == i])
    return np.asarray(row * _REGIONS_ACROSS + column, np.intp)
