"""How a slide's pixels came to be, found in the pixels themselves: JPEG, noise, and defocus.

A file rarely says what happened to its pixels, so it is measured. Coding a JPEG a second time with
its own tables changes little, with others more: the change as a function of the quality dips at the
true one. The noise is what the forward model must add for quiet tissue to look as quiet as it does.
Tissue looks much the same at half the resolution, where a blur is half as wide: a slide that is far
softer than its own half resolution is out of focus.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.density import I0, rgb_to_od
from wsi_pgdips.records import Acquisition, BoolArray, ByteArray, FloatArray
from wsi_pgdips.solver.rays import SATURATED_OD
from wsi_pgdips.solver.tile import TileInput

QUALITIES = range(20, 97)
CHROMAS = ("4:4:4", "4:2:2", "4:2:0", "rgb")
_APART = 3  # qualities a dip is compared with, on each side
_DIP = 0.75  # a change below this share of its neighbours' is a dip
_SIDE = 256  # pixels of a tile that are coded again
_TILES = 3
_NOISES = (0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.7, 7.0)  # counts at white
UNKNOWN_NOISE_OD = 0.01  # of a tile without a quiet square of tissue
_SQUARE = 16
_FLAT = (0.0, 0.0, 0.0)
LEAST_NOISE_UNDER_JPEG = 1.5  # counts; quiet tissue does not show what a JPEG swallowed
_BLURS = (0.0, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0)  # pixels
# pixels, by which half the resolution is sharper: of slides in focus, at most of those, and surely
# out of it; what is softer than the last two has no detail that could be brought back
TYPICAL, IN_FOCUS, OUT_OF_FOCUS, HOPELESS, LOST = 1.3, 1.6, 2.0, 2.7, 3.0
_BANDS = ((1.0, 1.5), (3.2, 4.5), (6.4, 9.0))  # pixels, sigmas whose difference passes a band
# detail of the last band over that of the one before: of blobs that are smooth by themselves, of
# tissue, which has structure of all sizes
BLOBS, STRUCTURE = 0.85, 1.0


def degrade(od: FloatArray, acquisition: Acquisition, rng: np.random.Generator) -> FloatArray:
    """OD as the scanner and the file would show it.

    Args:
        od: (3, H, W) true optical density. acquisition: what happens to it. rng: of the noise.

    Returns:
        (3, H, W) float32 OD of the 8-bit pixels: defocus, photon noise, rounding, JPEG.
    """
    intensity = np.exp(od * np.float32(-np.log(10.0))) * np.float32(I0)
    if acquisition.defocus:
        from scipy import ndimage

        blur = (0.0, acquisition.defocus, acquisition.defocus)
        intensity = np.asarray(ndimage.gaussian_filter(intensity, blur), np.float32)
    # photon noise: variance proportional to the intensity
    spread = np.sqrt(intensity * np.float32(1 / I0)) * np.float32(acquisition.noise)
    intensity += spread * rng.standard_normal(intensity.shape, np.float32)
    rgb = np.clip(np.rint(intensity), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if acquisition.quality:
        rgb = _coded(rgb, acquisition.quality, acquisition.chroma)
    return np.ascontiguousarray(rgb_to_od(rgb).transpose(2, 0, 1))


def estimate_acquisition(
    tiles: Sequence[TileInput],
    clean: Sequence[tuple[FloatArray, BoolArray]],
    stain_matrix: FloatArray,
    executor: Executor,
) -> Acquisition:
    """What happened to the pixels of a slide.

    Args:
        tiles: sampled tiles; their corner must lie on the grid of the JPEG's blocks, as tiles read
            at the slide's own resolution do. Pixels that were resampled show no dip.
        clean: of each tile, (3, H, W) optical density without noise at half its resolution, and
            (H, W) its tissue.
        stain_matrix: (N, 3); what lies off its rows holds no tissue, and noise is best seen there.
        executor: threads that share the work.

    Returns:
        Quality 0 where no JPEG shows. The noise is rather too small than too large, since ``clean``
        is busier than the tile.
    """
    chosen = sorted(tiles, key=lambda t: -float(t.own_tissue.mean()))[:_TILES]
    quality, chroma = _find_jpeg([_pixels(t) for t in chosen], executor)
    n = len(stain_matrix)
    seen = np.linalg.svd(stain_matrix.astype(np.float64))[2][n % 3 :].astype(np.float32)
    level = float(np.median([tissue_noise(_along(seen, t.corrected), t.own_tissue) for t in tiles]))

    def noise(pair: tuple[FloatArray, BoolArray]) -> float:
        return _noise_like(level, *pair, seen, quality, chroma)

    found = float(np.median(list(executor.map(noise, clean[:_TILES]))))
    sharp = Acquisition(max(found, LEAST_NOISE_UNDER_JPEG) if quality else found, quality, chroma)
    return replace(sharp, defocus=_defocus(tiles, clean, sharp, executor))


def tissue_noise(od: FloatArray, tissue: BoolArray) -> float:
    """Standard deviation of pixel noise in OD: the quiet fifth of diagonal differences.

    Real detail also differs from pixel to pixel, so only the quietest squares count.

    Args:
        od: (3, H, W). tissue: (H, W).
    """
    od = np.minimum(od, SATURATED_OD)
    d = (od[:, :-1, :-1] - od[:, :-1, 1:] - od[:, 1:, :-1] + od[:, 1:, 1:]) / 2
    h, w = (s // _SQUARE for s in d.shape[1:])
    if not h or not w:
        return UNKNOWN_NOISE_OD
    cut = np.s_[: h * _SQUARE, : w * _SQUARE]
    squares = (h, _SQUARE, w, _SQUARE)
    power = (d[:, *cut] ** 2).mean(0).reshape(squares).mean((1, 3))
    full = tissue[:-1, :-1][cut].reshape(squares).all((1, 3))
    return float(np.sqrt(np.quantile(power[full], 0.2))) if full.any() else UNKNOWN_NOISE_OD


def _defocus(
    tiles: Sequence[TileInput],
    clean: Sequence[tuple[FloatArray, BoolArray]],
    sharp: Acquisition,
    executor: Executor,
) -> float:
    """Blur that makes half the resolution as soft as the tiles, beyond what sharp ones need."""
    busy = [(t.corrected, t.own_tissue) for t in tiles if t.own_tissue.sum() >= _SQUARE**2]
    fine, coarse, coarser = np.median([_detail(*pair) for pair in busy], axis=0) if busy else _FLAT
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

    found = np.maximum.accumulate(np.array(list(executor.map(softness, _BLURS))))
    blur = float(np.interp(coarse / fine, found, _BLURS))
    out = np.interp(blur, (IN_FOCUS, OUT_OF_FOCUS, HOPELESS, LOST), (0, 1, 1, 0))
    out *= np.interp(coarser / coarse, (BLOBS, STRUCTURE), (0, 1))
    return float(out * np.sqrt(max(blur**2 - TYPICAL**2, 0.0)))


def _detail(
    od: FloatArray, tissue: BoolArray, bands: Sequence[tuple[float, float]] = _BANDS
) -> list[float]:
    """Standard deviation of the mean OD on tissue in each band, from fine to coarse."""
    from scipy import ndimage

    gray = np.minimum(od, SATURATED_OD).mean(0)
    passed = (ndimage.gaussian_filter(gray, a) - ndimage.gaussian_filter(gray, b) for a, b in bands)
    return [float(band[tissue].std()) for band in passed]


def _pixels(tile: TileInput) -> ByteArray:
    """(h, w, 3) the 8-bit pixels of a tile's middle, from its first block on."""
    side = min(_SIDE, *tile.od.shape[1:])
    top, left = ((s - side) // 2 // _SQUARE * _SQUARE for s in tile.od.shape[1:])
    od = tile.od[:, top : top + side, left : left + side]
    rgb = np.rint(I0 * 10.0 ** -od.astype(np.float64)).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(1, 2, 0))


def _coded(rgb: ByteArray, quality: int, chroma: str) -> ByteArray:
    from PIL import Image

    buffer = io.BytesIO()
    how = {"keep_rgb": True} if chroma == "rgb" else {"subsampling": chroma}
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, **how)
    return np.asarray(Image.open(buffer))


def _find_jpeg(pictures: Sequence[ByteArray], executor: Executor) -> tuple[int, str]:
    """(quality, chroma) of the deepest dip, (0, "") where there is none."""

    def change(place: tuple[str, int]) -> float:
        chroma, quality = place
        return sum(
            float(((p.astype(np.float32) - _coded(p, quality, chroma)) ** 2).mean())
            for p in pictures
        )

    places = [(c, q) for c in CHROMAS for q in QUALITIES]
    curves = np.array(list(executor.map(change, places))).reshape(len(CHROMAS), -1) + 1e-3
    inner = curves[:, _APART:-_APART]
    dips = inner / np.sqrt(curves[:, : -2 * _APART] * curves[:, 2 * _APART :])
    c, q = np.unravel_index(int(dips.argmin()), dips.shape)
    if dips[c, q] > _DIP:
        return 0, ""
    return QUALITIES[int(q) + _APART], CHROMAS[int(c)]


def _along(directions: FloatArray, od: FloatArray) -> FloatArray:
    """(K, 3) unit directions, (3, H, W) -> (K, H, W)."""
    return np.asarray(np.tensordot(directions, od, 1), np.float32)


def _noise_like(
    level: float,
    clean: FloatArray,
    tissue: BoolArray,
    seen: FloatArray,
    quality: int,
    chroma: str,
) -> float:
    """Counts of noise with which ``clean`` shows the wanted level of noise in quiet tissue."""
    levels: list[float] = []
    for noise in _NOISES:
        rng = np.random.default_rng(0)
        shown = degrade(clean, Acquisition(noise, quality, chroma), rng)
        levels.append(tissue_noise(_along(seen, shown), tissue))
    rising: npt.NDArray[np.float64] = np.maximum.accumulate(np.array(levels))
    return float(np.interp(level, rising, _NOISES))
