"""The acquisition of a slide, estimated from its pixels: noise, JPEG, and defocus.

A file rarely states what happened to its pixels.

* JPEG: coding again with the same tables changes little, with other tables more. So the change as a
  function of the quality has a dip at the true quality.
* Noise: the forward model adds as much noise as makes simulated quiet tissue equally noisy. Noise
  is measured off the plane of the stains, where no stain contributes, and in the quietest squares
  only, because not everything off the plane is noise.
* Grain: pixels that were coded as a JPEG and then resampled show no trace of its blocks, but its
  blotches of colour are coarser than pixels and hide more than fine noise does (decision 34).
* Defocus: tissue looks much the same at half the resolution, where a blur is half as wide. So a
  slide that is far softer than its own half resolution is out of focus (decision 32).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import I0
from wsi_pgdips.records import Acquisition, BoolArray, ByteArray, FloatArray
from wsi_pgdips.solver.degrade import COARSE_SIGMAS, coded, degrade
from wsi_pgdips.solver.rays import SATURATED_OD
from wsi_pgdips.solver.tile import TileInput

UNKNOWN_NOISE_OD = 0.01  # assumed for a tile without a full square of tissue
LEAST_NOISE_UNDER_JPEG = 1.5  # counts; quiet tissue does not show the noise that a JPEG removed
LEAST_COARSE = 0.3  # counts; less is due to rounding, or nothing
_COUNTS = (0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.7, 7.0)  # candidates of the noise, at white
_UNIT = 3.0  # counts at which each grain is simulated
_SQUARE = 16
_QUIET = 0.2
Floats = npt.NDArray[np.float64]
MaskedOd = tuple[FloatArray, BoolArray]  # (3, H, W) OD, (H, W) tissue
QUALITIES = range(20, 97)
CHROMAS = ("4:4:4", "4:2:2", "4:2:0", "rgb")
_APART = 3  # a dip is compared with the qualities at this distance on each side
_DIP = 0.75  # a dip is a change below this share of its neighbours' changes
_SIDE = 256  # side in pixels of the part of a tile that is coded again
_TILES = 3
_BLURS = (0.0, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0)  # pixels
# pixels of blur that make half the resolution as soft as full resolution: the typical and the
# largest in focus, certainly out of focus; between the last two, restoring becomes impossible
TYPICAL, IN_FOCUS, OUT_OF_FOCUS, HOPELESS, LOST = 1.3, 1.6, 2.0, 2.7, 3.0
_BANDS = ((1.0, 1.5), (3.2, 4.5), (6.4, 9.0))  # pixels, sigmas whose difference passes a band
# detail of the last band relative to the one before: of smooth blobs, and of tissue, which has
# structure of all sizes
BLOBS, STRUCTURE = 0.85, 1.0


def tissue_noise(od: FloatArray, tissue: BoolArray) -> float:
    """The standard deviation of pixel noise in OD, from the quiet fifth of diagonal differences.

    Real detail also differs from pixel to pixel, so only the quietest squares count.

    Args:
        od: (3, H, W). tissue: (H, W).
    """
    od = np.minimum(od, np.float32(SATURATED_OD))
    d = (od[:, :-1, :-1] - od[:, :-1, 1:] - od[:, 1:, :-1] + od[:, 1:, 1:]) / 2
    power = _quiet_power(np.asarray(d, np.float32), tissue[:-1, :-1])
    return UNKNOWN_NOISE_OD if power is None else float(np.sqrt(power))


def off_plane(stain_matrix: FloatArray) -> FloatArray:
    """Unit directions without any stain, (K, 3); all three directions if the stains leave none."""
    n = len(stain_matrix)
    return np.asarray(np.linalg.svd(stain_matrix.astype(np.float64))[2][n % 3 :], np.float32)


def along(directions: FloatArray, od: FloatArray) -> FloatArray:
    """The components of OD along (K, 3) unit directions: (3, H, W) -> (K, H, W)."""
    return np.asarray(np.tensordot(directions, od, 1), np.float32)


def pixel_noise_like(
    level: float, clean: MaskedOd, directions: FloatArray, jpeg: Acquisition
) -> float:
    """The counts of noise that give ``clean`` a wanted noise in quiet tissue.

    Args:
        level: the wanted :func:`tissue_noise` along ``directions``. clean: OD without noise, and
            tissue. directions: (K, 3) unit rows. jpeg: also applied to the simulated pixels.
    """
    levels: list[float] = []
    for noise in _COUNTS:
        shown = degrade(clean[0], replace(jpeg, noise=noise), np.random.default_rng(0))
        levels.append(tissue_noise(along(directions, shown), clean[1]))
    rising: Floats = np.maximum.accumulate(np.array(levels))
    return float(np.interp(level, rising, _COUNTS))


def with_grain(
    found: Acquisition,
    tiles: Sequence[MaskedOd],
    clean: Sequence[MaskedOd],
    directions: FloatArray,
    executor: Executor,
) -> Acquisition:
    """Split the noise by its grain, if it is coarser than pixels; otherwise return ``found``.

    Powers of independent noises add up. So non-negative least squares find the power of each grain
    from the powers in each band, given the powers that each grain alone produces.

    Args:
        found: an acquisition without JPEG. tiles: the real tiles. clean: tiles without noise.
        directions: of :func:`off_plane`. executor: threads that share the work.
    """
    from scipy import optimize

    wanted = _band_powers(tiles, directions)
    if wanted is None:
        return found

    def shown(counts: Floats) -> Floats | None:
        noise, *coarse = counts.tolist()
        how = replace(found, noise=noise, coarse=tuple(coarse))
        return _band_powers(
            [(degrade(od, how, np.random.default_rng(0)), tissue) for od, tissue in clean],
            directions,
        )

    grains = np.eye(1 + len(COARSE_SIGMAS)) * _UNIT
    powers = [p for p in executor.map(shown, [0 * grains[0], *grains]) if p is not None]
    if not powers:  # the clean tiles have no full square of tissue
        return found
    nothing = powers[0]
    each = np.stack([p - nothing for p in powers[1:]], 1) / _UNIT**2
    scale = 1 / np.maximum(wanted, 1e-12)  # all bands count equally
    power, _ = optimize.nnls(each * scale[:, None], np.maximum(wanted - nothing, 0) * scale)
    noise, *coarse = np.sqrt(power).tolist()
    if max(coarse) < LEAST_COARSE:
        return found
    return replace(found, noise=noise, coarse=tuple(coarse))


def _band_powers(tiles: Sequence[MaskedOd], directions: FloatArray) -> Floats | None:
    """The quiet power in each band, from fine to coarse, (1 + grains,): its median over tiles."""
    from scipy import ndimage

    rows = []
    for od, tissue in tiles:
        fine = along(directions, np.minimum(od, SATURATED_OD))
        row = []
        for sigma in (*COARSE_SIGMAS, 2 * COARSE_SIGMAS[-1]):
            smooth = np.asarray(ndimage.gaussian_filter(fine, (0.0, sigma, sigma)), np.float32)
            row.append(_quiet_power(fine - smooth, tissue))
            fine = smooth
        if None not in row:
            rows.append(row)
    return np.median(np.array(rows, np.float64), axis=0) if rows else None


def _quiet_power(d: FloatArray, tissue: BoolArray) -> float | None:
    """The mean square of (K, H, W) in the quietest fifth of all-tissue squares, or None."""
    h, w = (s // _SQUARE for s in d.shape[1:])
    if not h or not w:
        return None
    cut = np.s_[: h * _SQUARE, : w * _SQUARE]
    squares = (h, _SQUARE, w, _SQUARE)
    power = (d[:, *cut] ** 2).mean(0).reshape(squares).mean((1, 3))
    full = tissue[cut].reshape(squares).all((1, 3))
    return float(np.quantile(power[full], _QUIET)) if full.any() else None


def estimate_acquisition(
    tiles: Sequence[TileInput],
    clean: Sequence[tuple[FloatArray, BoolArray]],
    stain_matrix: FloatArray,
    executor: Executor,
) -> Acquisition:
    """Estimate what happened to the pixels of a slide.

    Args:
        tiles: sampled tiles. Their corners must lie on the grid of the JPEG's blocks, as they do at
            the slide's own resolution. Pixels that were resampled show no dip.
        clean: (3, H, W) optical density without noise of each tile at half its resolution, and its
            tissue (H, W).
        stain_matrix: (N, 3); directions off its rows have no tissue and show noise best.
        executor: threads that share the work.

    Returns:
        The acquisition, with a quality of 0 if no JPEG is found. The noise is more likely too small
        than too large, because ``clean`` has more detail than the tile.
    """
    chosen = sorted(tiles, key=lambda t: -float(t.own_tissue.mean()))[:_TILES]
    quality, chroma = _find_jpeg([_pixels(t) for t in chosen], executor)
    jpeg = Acquisition(0.0, quality, chroma)
    directions = off_plane(stain_matrix)
    real = [(t.corrected, t.own_tissue) for t in tiles]
    level = float(np.median([tissue_noise(along(directions, od), tissue) for od, tissue in real]))
    counts = executor.map(lambda c: pixel_noise_like(level, c, directions, jpeg), clean[:_TILES])
    noise = float(np.median(list(counts)))
    sharp = replace(jpeg, noise=max(noise, LEAST_NOISE_UNDER_JPEG) if quality else noise)
    if not quality and len(stain_matrix) == 2:  # off one or three stains there may be tissue
        sharp = with_grain(sharp, real, clean[:_TILES], directions, executor)
    return replace(sharp, defocus=_defocus(real, clean, sharp, executor))


def _defocus(
    tiles: Sequence[MaskedOd], clean: Sequence[MaskedOd], sharp: Acquisition, executor: Executor
) -> float:
    """The blur that makes half the resolution as soft as the tiles, beyond that of sharp slides."""
    busy = [pair for pair in tiles if pair[1].sum() >= _SQUARE**2]

    def real_detail(bands: Sequence[tuple[float, float]]) -> list[float]:
        details = list(executor.map(lambda pair: _detail(pair[0], pair[1], bands), busy))
        return np.median(details, axis=0).tolist() if busy else [0.0] * len(bands)

    fine, coarse = real_detail(_BANDS[:2])
    lit = [pair for pair in clean if pair[1].sum() >= _SQUARE**2]
    if not lit or min(fine, coarse) <= 0:
        return 0.0

    def softness(blur: float) -> float:
        how = replace(sharp, defocus=blur)
        rng = np.random.default_rng(0)
        details = np.median(
            [_detail(degrade(od, how, rng), t, _BANDS[:2]) for od, t in lit], axis=0
        )
        return float(details[1] / max(details[0], 1e-6))

    # most slides are in focus, and testing one blur is enough to see that
    if coarse / fine <= softness(IN_FOCUS):
        return 0.0
    found = np.maximum.accumulate(np.array(list(executor.map(softness, _BLURS))))
    blur = float(np.interp(coarse / fine, found, _BLURS))
    out = np.interp(blur, (IN_FOCUS, OUT_OF_FOCUS, HOPELESS, LOST), (0, 1, 1, 0))
    (coarser,) = real_detail(_BANDS[2:])
    out *= np.interp(coarser / coarse, (BLOBS, STRUCTURE), (0, 1))
    return float(out * np.sqrt(max(blur**2 - TYPICAL**2, 0.0)))


def _detail(od: FloatArray, tissue: BoolArray, bands: Sequence[tuple[float, float]]) -> list[float]:
    """The standard deviation of the mean OD on tissue in each band, from fine to coarse."""
    from scipy import ndimage

    gray = np.minimum(od, SATURATED_OD).mean(0)
    passed = (ndimage.gaussian_filter(gray, a) - ndimage.gaussian_filter(gray, b) for a, b in bands)
    return [float(band[tissue].std()) for band in passed]


def _pixels(tile: TileInput) -> ByteArray:
    """The 8-bit pixels in the middle of a tile, (h, w, 3), beginning with a whole block."""
    side = min(_SIDE, *tile.od.shape[1:])
    top, left = ((s - side) // 2 // _SQUARE * _SQUARE for s in tile.od.shape[1:])
    od = tile.od[:, top : top + side, left : left + side]
    rgb = np.rint(I0 * 10.0 ** -od.astype(np.float64)).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(1, 2, 0))


def _find_jpeg(tiles: Sequence[ByteArray], executor: Executor) -> tuple[int, str]:
    """The (quality, chroma) of the deepest dip, or (0, "") if there is none."""

    def change(coding: tuple[str, int]) -> float:
        chroma, quality = coding
        return sum(
            float(((p.astype(np.float32) - coded(p, quality, chroma)) ** 2).mean()) for p in tiles
        )

    codings = [(c, q) for c in CHROMAS for q in QUALITIES]
    curves = np.array(list(executor.map(change, codings))).reshape(len(CHROMAS), -1) + 1e-3
    inner = curves[:, _APART:-_APART]
    dips = inner / np.sqrt(curves[:, : -2 * _APART] * curves[:, 2 * _APART :])
    c, q = np.unravel_index(int(dips.argmin()), dips.shape)
    if dips[c, q] > _DIP:
        return 0, ""
    return QUALITIES[int(q) + _APART], CHROMAS[int(c)]
