"""Tissue and glass of a whole slide, found once on its overview.

A pixel is tissue where it is denser than the glass around by more than that glass's own noise, or
where it is rougher than glass. Small holes are filled, and small pieces are dust. Without glass no
threshold can be right, and everything scanned counts as tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import Region, bounding_box
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import Artifact, BoolArray, ByteArray, FloatArray, TileSource
from wsi_pgdips.tiles.artifacts import find_ink
from wsi_pgdips.tiles.brightfield import require_brightfield
from wsi_pgdips.tiles.fill import find_fill
from wsi_pgdips.tiles.gaps import assumed_background, find_lumens, palest
from wsi_pgdips.tiles.masks import load_mask, load_roi
from wsi_pgdips.tiles.pixels import enclosed, near
from wsi_pgdips.tiles.solid import (
    MASKERS,
    Masker,
    Solid,
    Specimen,
    dilated,
    filled,
    find_solid,
)
from wsi_pgdips.tiles.tissue_map import TissueMap
from wsi_pgdips.tiles.whitepoint import Glass, find_glass

DILATION_UM = 32.0
GLASS_MARGIN_UM = 40.0
_SPARSE = 0.02  # with a smaller share of glass, gaps of the tissue are searched for glass, too
_LUMEN_MPP, _LUMEN_SIDE = 2.0, 4096
_STAINED_MEAN_OD = 0.05  # OD sum above glass over 3x3 pixels
_COVERED, _LEFT_OUT = 0.9, 0.1  # least share in the mask; most dust, relative to the mask
BACKGROUND_ASSUMED = "background_from_palest"


def find_tissue(
    source: TileSource,
    *,
    masker: Masker = "od",
    specimen: Specimen = "tissue",
    mask_file: Path | None = None,
    roi_file: Path | None = None,
    overview_mpp: float = 8.0,
    stains: Sequence[FloatArray] = (),
) -> TissueMap:
    """Find the tissue and the glass of a slide.

    Args:
        source: the slide on its output grid.
        masker: what finds the tissue: ``od``, or a masker of tiatoolbox.
        specimen: how small a piece may be: a section's, or single cells.
        mask_file: PNG or GeoJSON with the tissue. It is not dilated; fill and ink are taken out.
        roi_file: GeoJSON that restricts tissue (glass is still measured everywhere).
        overview_mpp: resolution of the mask in um per pixel.
        stains: (N, 3) vectors of the stains, and alternatives; without, ink is not searched for.

    Raises:
        SettingsError: the masker is unknown, or a mask or region file cannot be used.
        SlideError: the slide has no tissue besides fill and ink, or is not brightfield.
    """
    if masker not in MASKERS:
        raise SettingsError(
            "the masker is unknown", expected=" or ".join(MASKERS), found=masker, where="--masker"
        )
    rgb, scale = source.overview(overview_mpp)
    mpp = source.grid.mpp * scale
    glass, fill = _find_glass(source, rgb, scale)
    require_brightfield(rgb, glass, fill, source.meta.name)
    ink, ink_lost = np.zeros_like(fill), False
    if stains:
        ink, ink_lost = find_ink(_above_glass(rgb, glass, fill), ~fill, mpp, stains)
    solid = find_solid(rgb, replace(glass, padding=glass.padding | ink), mpp, masker, specimen)
    flags = [*glass.flags, *(["ink_over_tissue"] if ink_lost else [])]
    area, area_name = np.ones_like(fill), "slide"  # where tissue may lie
    if mask_file is not None:
        core = load_mask(mask_file, source.grid, rgb.shape[:2], scale)
        mask = area = core
        area_name = "mask"
        flags.append("mask_from_file")
    else:
        core = filled(solid.tissue, mpp, glass.padding) & ~glass.padding
        mask = dilated(core, DILATION_UM / mpp)
        if glass.found:
            mask &= ~glass.padding
    # tissue outside a drawn mask is not glass either
    stained = solid.tissue if mask_file is None else core | solid.tissue
    clear = glass.clear & ~dilated(stained, GLASS_MARGIN_UM / mpp)
    # pixels that are left out of everything, by their reason
    foreign = {"fill": fill, "ink": ink}
    for pixels in foreign.values():
        core, mask, clear = core & ~pixels, mask & ~pixels, clear & ~pixels
    glass_od, clear, assumed, raised = _measured_glass(source, rgb, scale, fill, clear, flags)
    coverage, left_out = _left_out(glass, solid, mask, foreign, mpp)
    if (enclosed(fill) & near(core, 1)).any():
        flags.append("unwritten_tiles")
    if mask_file is None and _is_much(coverage, left_out, mask.sum() * mpp**2 * 1e-6):
        flags.append("tissue_left_out")
    if solid.scattered and specimen != "cytology":
        flags.append("perhaps_cytology")
    if roi_file is not None:
        roi = load_roi(roi_file, source.grid, rgb.shape[:2], scale)
        core, mask, area = core & roi, mask & roi, area & roi
        area_name = "ROI" if mask_file is None else "mask inside the ROI"
        flags.append("roi")
    if not core.any():
        dust = 0.0 if mask_file is not None else left_out.get("dust", 0.0)
        raise _no_tissue(source.meta.name, area_name, area, foreign, dust, mpp)
    return TissueMap(
        mask,
        core,
        clear,
        glass_od,
        scale,
        source.grid.shape,
        tuple(flags),
        assumed,
        raised,
        coverage,
        left_out,
        np.where(fill, int(Artifact.FILL), foreign["ink"] * int(Artifact.INK)).astype(np.uint8),
    )


def _above_glass(rgb: ByteArray, glass: Glass, fill: BoolArray) -> FloatArray:
    """The OD of the overview above glass, (H, W, 3), or above the palest pixels without glass."""
    od = rgb_to_od(rgb)
    if glass.clear.any():
        return np.asarray(od - np.median(od[glass.clear], axis=0), np.float32)
    return np.asarray(od - assumed_background(palest(rgb, fill, glass.found))[0], np.float32)


def _find_glass(source: TileSource, rgb: ByteArray, scale: float) -> tuple[Glass, BoolArray]:
    """Find the glass, and the fill, (H, W).

    A constant piece that is as bright as glass is fill if there is more glass elsewhere.
    """
    found = find_fill(source, rgb, scale)
    if found.like_glass.any():
        both = found.certain | found.like_glass
        glass = find_glass(rgb, both)
        if not glass.flags and glass.clear.sum() > found.like_glass.sum():
            return glass, both
    return find_glass(rgb, found.certain), found.certain


def _measured_glass(
    source: TileSource,
    rgb: ByteArray,
    scale: float,
    fill: BoolArray,
    clear: BoolArray,
    flags: list[str],
) -> tuple[FloatArray, BoolArray, FloatArray | None, FloatArray | None]:
    """Measure the OD of glass; where it is scarce, in gaps of the tissue, too.

    Args:
        rgb, scale, fill: of the overview. clear: (H, W) bool, its certain glass.
        flags: of the glass; changed to what is found.

    Returns:
        ``glass_od``, ``glass``, ``assumed`` and ``raised`` of :class:`TissueMap`.
    """
    glass_od = rgb_to_od(rgb)
    fine, fine_fill, ratio, corner = rgb, fill, 1.0, (0, 0)
    scarce = clear.sum() < _SPARSE * (~fill).sum()
    if scarce or "glass_saturated" in flags:
        fine, fine_fill, ratio, corner = _finer(source, rgb, fill, scale)
    if scarce and ratio < 1:
        gaps, gaps_od = _lumens(fine, fine_fill, ratio, corner, rgb.shape[:2])
        glass_od[gaps & ~clear] = gaps_od[gaps & ~clear]
        clear = clear | gaps
        if "no_glass" in flags and gaps.any():
            flags[flags.index("no_glass")] = "glass_in_lumens"
    if "no_glass" not in flags and "glass_saturated" not in flags:
        return glass_od, clear, None, None
    flags.append(BACKGROUND_ASSUMED)
    assumed, raised = assumed_background(palest(fine, fine_fill, "no_glass" not in flags))
    return glass_od, clear, assumed, raised


def _left_out(
    glass: Glass, solid: Solid, mask: BoolArray, foreign: dict[str, BoolArray], mpp: float
) -> tuple[float, dict[str, float]]:
    """The share of stained pixels that are in the mask, and the area in mm2 of what is not."""
    from scipy import ndimage

    anywhere = np.logical_or.reduce([glass.padding, *foreign.values()])
    stained = ~anywhere
    if glass.found:
        stained &= ndimage.uniform_filter(glass.excess, 3, mode="nearest") > _STAINED_MEAN_OD
    missed = stained & ~mask
    areas = {
        "dust": solid.dust & ~mask,
        "pale": missed & ~near(solid.dust, 2),
        # what surrounds a scan was not left out of it
        **{name: enclosed(a) if name == "fill" else a for name, a in foreign.items()},
    }
    mm2 = {name: round(float(a.sum()) * mpp**2 * 1e-6, 6) for name, a in areas.items()}
    coverage = 1 - float(missed.sum()) / max(int(stained.sum()), 1)
    return round(coverage, 4), {name: v for name, v in mm2.items() if v > 0}


def _no_tissue(
    name: str,
    area_name: str,
    area: BoolArray,
    foreign: dict[str, BoolArray],
    dust: float,
    mpp: float,
) -> SlideError:
    """The error of a slide without tissue, which names what was left out.

    Args:
        name: of the slide. area: (H, W) where tissue may lie. dust: mm2 of small pieces.
    """
    found = [f"small pieces that count as dust, {dust:.3g} mm2"] if dust else []
    for reason, pixels in foreign.items():
        n = int((pixels & area).sum())
        if n:
            share = f"{100 * n / int(area.sum()):.3g} % of the {area_name}"
            found.append(f"{reason}, {n * mpp**2 * 1e-6:.3g} mm2 ({share})")
    wanted = "denser than glass"
    hint = (
        "try another --masker, give --specimen cytology for single cells, "
        "or draw the tissue and give it with --mask"
    )
    if area_name.startswith("mask"):
        wanted = "neither fill nor ink"
        hint = "mark tissue that is neither fill (never scanned, or of one value) nor ink"
    return SlideError(
        "no tissue found",
        expected=f"pixels of the {area_name} that are {wanted}",
        found="; ".join(found) or None,
        where=name,
        hint=hint,
    )


def _is_much(coverage: float, left_out: dict[str, float], mask_mm2: float) -> bool:
    missed = left_out.get("dust", 0.0) + left_out.get("pale", 0.0)
    return coverage < _COVERED or missed > _LEFT_OUT * mask_mm2


def _finer(
    source: TileSource, rgb: ByteArray, fill: BoolArray, scale: float
) -> tuple[ByteArray, BoolArray, float, tuple[int, int]]:
    """Read the scanned part of the overview at about 2 um per pixel.

    Returns:
        The overview; its fill; the side of its pixels relative to the coarse one's; and the (y, x)
        of its first pixel, in its own pixels. This is the coarse overview itself if the scanned
        part is too large, or if there is no finer one.
    """
    box = bounding_box(~fill)
    part = Region(*(round(v * scale) for v in (box.y, box.x, box.h, box.w)))
    part = part.clipped(source.grid.shape)
    mpp = max(_LUMEN_MPP, max(part.h, part.w) * source.grid.mpp / _LUMEN_SIDE)
    if not fill.all() and mpp <= 2 * _LUMEN_MPP and mpp < scale * source.grid.mpp:
        finer, fine_scale = source.overview(mpp, part)
        if fine_scale < scale:
            ratio = fine_scale / scale
            corner = int(part.y // fine_scale), int(part.x // fine_scale)
            y, x = (
                ((np.arange(n) + first) * ratio).astype(np.intp)
                for n, first in zip(finer.shape[:2], corner, strict=True)
            )
            return finer, fill[np.ix_(y, x)], ratio, corner
    return rgb, fill, 1.0, (0, 0)


def _lumens(
    fine: ByteArray,
    fill: BoolArray,
    ratio: float,
    corner: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[BoolArray, FloatArray]:
    """Find glass in gaps of the tissue on a finer overview, pooled to the coarse one's pixels.

    Args:
        fine, fill, ratio, corner: of :func:`_finer`. shape: of the coarse overview.

    Returns:
        (H, W) bool, and (H, W, 3) float32, the mean OD of its True pixels.
    """
    y, x = np.nonzero(find_lumens(fine, fill))
    od = rgb_to_od(fine[y, x])
    row, column = (((a + c) * ratio).astype(np.intp) for a, c in zip((y, x), corner, strict=True))
    index = row * shape[1] + column
    n = shape[0] * shape[1]
    count = np.bincount(index, minlength=n)
    total = np.stack([np.bincount(index, od[:, c], n) for c in range(3)], 1)
    mean = np.asarray(total / np.maximum(count, 1)[:, None], np.float32)
    return (count > 0).reshape(shape), mean.reshape(*shape, 3)
