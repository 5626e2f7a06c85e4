"""How noisy tissue is, and in what grain, by what lies off the plane of its stains.

No stain is there, so that what is seen is noise, though not all of it tissue's: only the quietest
squares count. Pixels that were coded as a JPEG and then resampled show no trace of its blocks, but
its blotches of colour are coarser than pixels, and take more to see through than finer noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import Acquisition, BoolArray, FloatArray
from wsi_pgdips.solver.degrade import COARSE_SIGMAS, degrade
from wsi_pgdips.solver.rays import SATURATED_OD

UNKNOWN_NOISE_OD = 0.01  # of a tile without a quiet square of tissue
LEAST_NOISE_UNDER_JPEG = 1.5  # counts; quiet tissue does not show what a JPEG swallowed
LEAST_COARSE = 0.3  # counts; less is the rounding's, or nothing
_COUNTS = (0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.7, 7.0)  # at white
_UNIT = 3.0  # counts at which each grain is tried
_SQUARE = 16
_QUIET = 0.2
Floats = npt.NDArray[np.float64]
Shown = tuple[FloatArray, BoolArray]  # (3, H, W) OD, (H, W) tissue


def tissue_noise(od: FloatArray, tissue: BoolArray) -> float:
    """Standard deviation of pixel noise in OD: the quiet fifth of diagonal differences.

    Real detail also differs from pixel to pixel, so only the quietest squares count.

    Args:
        od: (3, H, W). tissue: (H, W).
    """
    od = np.minimum(od, np.float32(SATURATED_OD))
    d = (od[:, :-1, :-1] - od[:, :-1, 1:] - od[:, 1:, :-1] + od[:, 1:, 1:]) / 2
    power = _quiet_power(np.asarray(d, np.float32), tissue[:-1, :-1])
    return UNKNOWN_NOISE_OD if power is None else float(np.sqrt(power))


def off_plane(stain_matrix: FloatArray) -> FloatArray:
    """(K, 3) unit directions in which no stain lies; all three where stains leave none."""
    n = len(stain_matrix)
    return np.asarray(np.linalg.svd(stain_matrix.astype(np.float64))[2][n % 3 :], np.float32)


def along(directions: FloatArray, od: FloatArray) -> FloatArray:
    """(K, 3) unit directions, (3, H, W) -> (K, H, W)."""
    return np.asarray(np.tensordot(directions, od, 1), np.float32)


def pixel_noise_like(level: float, clean: Shown, seen: FloatArray, jpeg: Acquisition) -> float:
    """Counts of noise with which ``clean`` shows the wanted level of noise in quiet tissue.

    Args:
        level: of :func:`tissue_noise` along ``seen``. jpeg: that the pixels went through as well.
    """
    levels: list[float] = []
    for noise in _COUNTS:
        shown = degrade(clean[0], replace(jpeg, noise=noise), np.random.default_rng(0))
        levels.append(tissue_noise(along(seen, shown), clean[1]))
    rising: Floats = np.maximum.accumulate(np.array(levels))
    return float(np.interp(level, rising, _COUNTS))


def with_grain(
    found: Acquisition,
    tiles: Sequence[Shown],
    clean: Sequence[Shown],
    seen: FloatArray,
    executor: Executor,
) -> Acquisition:
    """The noise by its grain, where it is coarser than pixels; else what was found.

    Powers of independent noises add up, so those of each grain that are seen in each band give
    those of the grains by non-negative least squares.

    Args:
        found: without JPEG. tiles: as they are. clean: without noise.
        seen: of :func:`off_plane`. executor: threads that share the work.
    """
    from scipy import optimize

    wanted = _band_powers(tiles, seen)
    if wanted is None:
        return found

    def shown(counts: Floats) -> Floats | None:
        noise, *coarse = counts.tolist()
        how = replace(found, noise=noise, coarse=tuple(coarse))
        return _band_powers(
            [(degrade(od, how, np.random.default_rng(0)), tissue) for od, tissue in clean], seen
        )

    grains = np.eye(1 + len(COARSE_SIGMAS)) * _UNIT
    powers = [p for p in executor.map(shown, [0 * grains[0], *grains]) if p is not None]
    if not powers:  # the clean ones hold no square of tissue
        return found
    nothing = powers[0]
    each = np.stack([p - nothing for p in powers[1:]], 1) / _UNIT**2
    scale = 1 / np.maximum(wanted, 1e-12)  # every band counts alike
    power, _ = optimize.nnls(each * scale[:, None], np.maximum(wanted - nothing, 0) * scale)
    noise, *coarse = np.sqrt(power).tolist()
    if max(coarse) < LEAST_COARSE:
        return found
    return replace(found, noise=noise, coarse=tuple(coarse))


def _band_powers(pictures: Sequence[Shown], seen: FloatArray) -> Floats | None:
    """(1 + grains,) median over pictures of the quiet power in each band, from fine to coarse."""
    from scipy import ndimage

    rows = []
    for od, tissue in pictures:
        fine = along(seen, np.minimum(od, SATURATED_OD))
        row = []
        for sigma in (*COARSE_SIGMAS, 2 * COARSE_SIGMAS[-1]):
            smooth = np.asarray(ndimage.gaussian_filter(fine, (0.0, sigma, sigma)), np.float32)
            row.append(_quiet_power(fine - smooth, tissue))
            fine = smooth
        if None not in row:
            rows.append(row)
    return np.median(np.array(rows, np.float64), axis=0) if rows else None


def _quiet_power(d: FloatArray, tissue: BoolArray) -> float | None:
    """Mean square of (K, H, W) in the quietest fifth of squares; None where none is all tissue."""
    h, w = (s // _SQUARE for s in d.shape[1:])
    if not h or not w:
        return None
    cut = np.s_[: h * _SQUARE, : w * _SQUARE]
    squares = (h, _SQUARE, w, _SQUARE)
    power = (d[:, *cut] ** 2).mean(0).reshape(squares).mean((1, 3))
    full = tissue[cut].reshape(squares).all((1, 3))
    return float(np.quantile(power[full], _QUIET)) if full.any() else None
