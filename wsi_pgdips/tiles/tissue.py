"""Tissue and glass of a whole slide, found once on its overview.

tiatoolbox's masker finds what is clearly stained. It judges by luminance alone and leaves holes in
pale stroma and mucin. So connected pixels that are denser or rougher than glass are added, small
holes are filled, and pixels that look like glass are removed. Without glass no threshold can be
right, and everything scanned counts as tissue.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, TileSource
from wsi_pgdips.tiles.masks import load_mask, load_roi
from wsi_pgdips.tiles.whitepoint import (
    Glass,
    assumed_background,
    find_glass,
    find_lumens,
    palest,
)

Masker = Literal["otsu", "morphological"]
MASKERS = ("otsu", "morphological")
DILATION_UM = 32.0
GLASS_MARGIN_UM = 40.0
HOLE_UM = 200.0  # a hole of this diameter or less is filled
GAP_UM = 24.0  # clefts twice as wide are closed
SPECK_UM2 = 500.0  # area of stained pixels; pieces with less are dust
_TEXTURE_OD = 0.010
_SPARSE = 0.02  # with a smaller share of glass, gaps of the tissue are searched for glass, too
_LUMEN_MPP, _LUMEN_SIDE = 2.0, 4096
_STAINED_OD = 0.15  # OD sum above glass that no glass has
BACKGROUND_ASSUMED = "background_from_palest"


def dark_mask(rgb: ByteArray, masker: Masker, mpp: float) -> BoolArray:
    """Find tissue with one of tiatoolbox's maskers.

    Args:
        rgb: (H, W, 3) uint8 overview. mpp: its micrometres per pixel.

    Returns:
        (H, W) bool.
    """
    tools = _tissuemask()
    tool = tools.OtsuTissueMasker() if masker == "otsu" else tools.MorphologicalMasker(mpp=mpp)
    images = np.ascontiguousarray(rgb)[None]  # (1, H, W, 3)
    tool.fit(images)
    # Otsu's threshold is the darker class's last grey level, but the maskers compare with `<`
    tool.threshold = int(tool.threshold) + 1  # an int: 255 + 1, for a white overview, exceeds uint8
    return np.asarray(tool.transform(images)[0], bool)


@functools.cache
def _tissuemask() -> Any:
    """Load ``tiatoolbox.tools.tissuemask`` without the rest of its package.

    The rest (graphs, registration, models) is not needed and takes some eight seconds to import.
    """
    with _quiet_import():
        import tiatoolbox

        file = Path(tiatoolbox.__file__).parent / "tools" / "tissuemask.py"
        spec = importlib.util.spec_from_file_location("tiatoolbox_tissuemask", file)
        if not file.is_file() or spec is None or spec.loader is None:
            from tiatoolbox.tools import tissuemask

            return tissuemask
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Undo the side effects of importing tiatoolbox: warnings, and all logs sent to stdout."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            # an unclosed file (tiatoolbox), deprecations (defusedxml), missing Tensorflow (umap);
            # SimpleITK crashes the interpreter if its deprecation warning is an error
            for category in (ResourceWarning, DeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@dataclass(frozen=True, eq=False)
class TissueMap:
    """Tissue and glass of a slide, on the grid of its overview.

    Attributes:
        mask: (H, W) bool, tissue dilated by 32 um; this area is rendered.
        core: (H, W) bool, the tissue itself; this area counts for fitting.
        glass: (H, W) bool, certain glass, at least 40 um from tissue.
        glass_od: (H, W, 3) float32, OD of the overview; valid on glass only.
        scale: output pixels per overview pixel; pixel (i, j) covers [i*scale, (i+1)*scale).
        shape: (height, width) in output pixels.
        flags: ``no_glass``, ``glass_in_lumens`` (only there), ``glass_saturated``,
            ``background_from_palest`` (there is no glass, or it is saturated), ``mask_from_file``,
            ``roi``.
        assumed: (3,) OD assumed for glass if the slide has no usable glass, else None.
        raised: (3,) the part of ``assumed`` that only lifts it to a floor, else None. Stain vectors
            are estimated without it (decision 30).
    """

    mask: BoolArray
    core: BoolArray
    glass: BoolArray
    glass_od: FloatArray
    scale: float
    shape: tuple[int, int]
    flags: tuple[str, ...] = ()
    assumed: FloatArray | None = None
    raised: FloatArray | None = None

    def window(self, y: int, x: int, h: int, w: int) -> BoolArray:
        """The mask at output pixels (nearest neighbour), (h, w) bool; False outside the slide."""
        rows, inside_y = self._index(y, h, 0)
        columns, inside_x = self._index(x, w, 1)
        # rows first, then columns: several times as fast as both at once
        out = self.mask[:, columns[0] : columns[-1] + 1].take(rows, 0).take(columns - columns[0], 1)
        if not inside_y.all() or not inside_x.all():
            out &= inside_y[:, None] & inside_x[None, :]
        return np.asarray(out)

    def fraction(self, region: Region) -> float:
        """The share of tissue (undilated) in a region of output pixels; 0 if it is empty."""
        return self._share(self.core, region)

    def touches(self, region: Region) -> bool:
        """Return whether any output pixel of a region lies in the dilated mask."""
        return self._share(self.mask, region) > 0

    def _share(self, mask: BoolArray, region: Region) -> float:
        if region.h <= 0 or region.w <= 0:
            return 0.0
        (y0, in_rows), (x0, in_columns) = (
            self._runs(region.y, region.h, 0),
            self._runs(region.x, region.w, 1),
        )
        part = mask[y0 : y0 + len(in_rows), x0 : x0 + len(in_columns)]
        return float(in_rows @ part @ in_columns) / (region.h * region.w)

    def _runs(self, start: int, length: int, axis: int) -> tuple[int, npt.NDArray[np.int64]]:
        """The first overview index of a run of output pixels, and their number on each index."""
        index, inside = self._index(start, length, axis)
        first = int(index[0])
        return first, np.bincount(index - first, weights=inside).astype(np.int64)

    def _index(self, start: int, length: int, axis: int) -> tuple[npt.NDArray[np.intp], BoolArray]:
        position = start + np.arange(length)
        index = np.floor((position + 0.5) / self.scale).astype(np.intp)
        inside = (position >= 0) & (position < self.shape[axis])
        return np.clip(index, 0, self.mask.shape[axis] - 1), inside


def find_tissue(
    source: TileSource,
    *,
    masker: Masker = "otsu",
    mask_file: Path | None = None,
    roi_file: Path | None = None,
    overview_mpp: float = 8.0,
) -> TissueMap:
    """Find the tissue and the glass of a slide.

    Args:
        source: the slide on its output grid.
        masker: the masker of tiatoolbox to start from.
        mask_file: PNG or GeoJSON with the tissue, used as it is.
        roi_file: GeoJSON that restricts tissue (glass is still measured everywhere).
        overview_mpp: resolution of the mask in um per pixel.

    Raises:
        SettingsError: the masker is unknown, or a mask or region file cannot be used.
        SlideError: the slide has no tissue.
    """
    if masker not in MASKERS:
        raise SettingsError(
            "the masker is unknown", expected=" or ".join(MASKERS), found=masker, where="--masker"
        )
    rgb, scale = source.overview(overview_mpp)
    mpp = source.grid.mpp * scale
    glass = find_glass(rgb)
    flags = list(glass.flags)
    if mask_file is not None:
        core = load_mask(mask_file, source.grid, rgb.shape[:2], scale)
        mask = core
        flags.append("mask_from_file")
    else:
        solid = _tissue(rgb, glass, mpp, masker)
        core = filled(solid, mpp) & ~glass.padding
        mask = dilated(core, DILATION_UM / mpp)
        if glass.found:
            mask &= ~glass.padding
    # tissue outside a drawn mask is not glass either
    stained = solid if mask_file is None else core | _tissue(rgb, glass, mpp, masker)
    clear = glass.clear & ~dilated(stained, GLASS_MARGIN_UM / mpp)
    glass_od = rgb_to_od(rgb)
    fine, ratio = rgb, 1.0
    if clear.mean() < _SPARSE or "glass_saturated" in flags:
        fine, ratio = _finer(source, rgb, scale)
    if clear.mean() < _SPARSE and ratio < 1:
        gaps, gaps_od = _lumens(fine, ratio, rgb.shape[:2])
        glass_od[gaps & ~clear] = gaps_od[gaps & ~clear]
        clear |= gaps
        if "no_glass" in flags and gaps.any():
            flags[flags.index("no_glass")] = "glass_in_lumens"
    assumed = raised = None
    if "no_glass" in flags or "glass_saturated" in flags:
        assumed, raised = assumed_background(palest(fine, "no_glass" in flags))
        flags.append(BACKGROUND_ASSUMED)
    if roi_file is not None:
        roi = load_roi(roi_file, source.grid, rgb.shape[:2], scale)
        core, mask = core & roi, mask & roi
        flags.append("roi")
    if not core.any():
        raise SlideError(
            "no tissue found",
            expected="pixels denser than glass" if roi_file is None else "tissue inside the ROI",
            where=source.meta.name,
            hint="try another --masker, or draw the tissue and give it with --mask",
        )
    shape = source.grid.shape
    return TissueMap(mask, core, clear, glass_od, scale, shape, tuple(flags), assumed, raised)


def _finer(source: TileSource, rgb: ByteArray, scale: float) -> tuple[ByteArray, float]:
    """Read an overview at about 2 um per pixel.

    Returns:
        The overview, and the side of its pixels relative to the coarse one's. This is the coarse
        overview itself if the slide is too large, or if there is no finer one.
    """
    mpp = max(_LUMEN_MPP, max(source.grid.shape) * source.grid.mpp / _LUMEN_SIDE)
    if mpp > 2 * _LUMEN_MPP or mpp >= scale * source.grid.mpp:
        return rgb, 1.0
    finer, fine_scale = source.overview(mpp)
    return (finer, fine_scale / scale) if fine_scale < scale else (rgb, 1.0)


def _lumens(fine: ByteArray, ratio: float, shape: tuple[int, int]) -> tuple[BoolArray, FloatArray]:
    """Find glass in gaps of the tissue on a finer overview, pooled to the coarse one's pixels.

    Returns:
        (H, W) bool, and (H, W, 3) float32, the mean OD of its True pixels.
    """
    y, x = np.nonzero(find_lumens(fine))
    index = (y * ratio).astype(np.intp) * shape[1] + (x * ratio).astype(np.intp)
    n = shape[0] * shape[1]
    od = rgb_to_od(fine[y, x])
    count = np.bincount(index, minlength=n)
    total = np.stack([np.bincount(index, od[:, c], n) for c in range(3)], 1)
    mean = np.asarray(total / np.maximum(count, 1)[:, None], np.float32)
    return (count > 0).reshape(shape), mean.reshape(*shape, 3)


def _tissue(rgb: ByteArray, glass: Glass, mpp: float, masker: Masker) -> BoolArray:
    """Find the tissue with its holes, undilated: (H, W) bool."""
    from scipy import ndimage

    if not glass.found:
        return np.asarray(~glass.padding)
    dense = (glass.excess > glass.tolerance) & ~glass.padding
    image = rgb.copy()
    if glass.clear.any():  # otherwise the fill would form its own class
        image[glass.padding] = np.median(rgb[glass.clear], axis=0).astype(np.uint8)
    stained = dense & (dark_mask(image, masker, mpp) | (glass.excess > _STAINED_OD))
    rough = (glass.texture > _TEXTURE_OD) & (glass.excess > glass.tolerance / 4) & ~glass.padding
    labels, n = ndimage.label(dense | rough, np.ones((3, 3), bool))
    area = np.bincount(labels[stained], minlength=n + 1) * mpp**2
    keep = area >= SPECK_UM2
    keep[0] = False
    return np.asarray(keep[labels] & ~glass.padding)


def filled(tissue: BoolArray, mpp: float) -> BoolArray:
    """Close narrow clefts and fill holes up to ``HOLE_UM``; larger holes are lumens or glass."""
    from scipy import ndimage

    gap = GAP_UM / mpp
    pad = int(np.ceil(gap)) + 1
    # closing by distance: with the padding, the erosion does not remove tissue at the border
    grown = dilated(np.pad(tissue, pad, mode="edge"), gap)
    closed = ndimage.distance_transform_edt(grown) > gap if not grown.all() else grown
    out = tissue | np.asarray(closed, bool)[pad:-pad, pad:-pad]
    labels, n = ndimage.label(~out)
    limit = np.pi * (HOLE_UM / 2 / mpp) ** 2
    small = np.bincount(labels.ravel(), minlength=n + 1) <= limit
    small[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[edge] = False
    return np.asarray(out | small[labels])


def dilated(mask: BoolArray, radius: float) -> BoolArray:
    """Grow a mask by a disk of ``radius`` pixels."""
    from scipy import ndimage

    if not mask.any():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius, bool)
