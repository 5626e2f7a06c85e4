"""Simulation of a scanner and a file on optical density: defocus, noise, rounding, JPEG."""

from __future__ import annotations

import functools
import io

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import I0, rgb_to_od
from wsi_pgdips.records import Acquisition, ByteArray, FloatArray

_SHEET = 512  # pixels, side of the sheet of noise that small windows are cut from
COARSE_SIGMAS = (0.7, 1.4, 2.8)  # pixels, sizes of the blotches of ``Acquisition.coarse``


def degrade(od: FloatArray, acquisition: Acquisition, rng: np.random.Generator) -> FloatArray:
    """Degrade OD like a scanner and a file do.

    Args:
        od: (3, H, W) true optical density. acquisition: the degradation. rng: for the noise.

    Returns:
        (3, H, W) float32 OD of the 8-bit pixels, after defocus, photon noise, rounding and JPEG. If
        pixels were resampled after their JPEG, blotches of colour take the place of the JPEG.
    """
    intensity = np.exp(od * np.float32(-np.log(10.0))) * np.float32(I0)
    if acquisition.defocus:
        from scipy import ndimage

        blur = (0.0, acquisition.defocus, acquisition.defocus)
        intensity = np.asarray(ndimage.gaussian_filter(intensity, blur), np.float32)
    # photon noise: variance proportional to the intensity
    spread = np.sqrt(intensity * np.float32(1 / I0)) * np.float32(acquisition.noise)
    intensity += spread * rng.standard_normal(intensity.shape, np.float32)
    for sigma, counts in zip(COARSE_SIGMAS, acquisition.coarse, strict=False):
        if counts:
            intensity += np.float32(counts) * _blotches(intensity.shape, sigma, rng)
    rgb = np.clip(np.rint(intensity), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if acquisition.quality:
        rgb = coded(rgb, acquisition.quality, acquisition.chroma)
    return np.ascontiguousarray(rgb_to_od(rgb).transpose(2, 0, 1))


def coded(rgb: ByteArray, quality: int, chroma: str) -> ByteArray:
    """Code (H, W, 3) uint8 as a JPEG and decode it again; ``chroma`` as in ``Acquisition``."""
    from PIL import Image

    buffer = io.BytesIO()
    how = {"keep_rgb": True} if chroma == "rgb" else {"subsampling": chroma}
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, **how)
    return np.asarray(Image.open(buffer))


def _blotches(
    shape: tuple[int, ...], sigma: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Make smooth noise of unit variance, (3, H, W), in the colour but not in the brightness."""
    if max(shape[1:]) > _SHEET // 2:
        return _smooth_noise(shape, sigma, rng)
    # a window of one sheet takes a tenth of the time
    y, x = (int(rng.integers(_SHEET - side + 1)) for side in shape[1:])
    return _sheet(sigma)[:, y : y + shape[1], x : x + shape[2]]


@functools.cache
def _sheet(sigma: float) -> npt.NDArray[np.float32]:
    return _smooth_noise((3, _SHEET, _SHEET), sigma, np.random.default_rng(0))


def _smooth_noise(
    shape: tuple[int, ...], sigma: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    from scipy import ndimage

    noise = rng.standard_normal(shape, np.float32)
    noise = ndimage.gaussian_filter(noise - noise.mean(0), (0.0, sigma, sigma))
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)
