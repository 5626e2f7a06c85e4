"""Simulated scanners: the differences between two scanners, applied to the pixels of one."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import ByteArray

GAMMA = 2.2  # of the pixels that are taken for linear light
_WHITE_PERCENTILE = 99.5
_HALO_PX = 1.2  # sigma of the unsharp mask

Rows = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Camera:
    """One simulated scanner.

    Attributes:
        matrix: of the channels, in linear light. tone: exponent over that of a plain display.
        white: RGB of glass. sharpening: share of an unsharp mask. blur: sigma, pixels.
        noise: standard deviation, counts. quality: of its JPEG, chroma not subsampled.
    """

    matrix: Rows
    tone: float
    white: tuple[float, float, float]
    sharpening: float = 0.0
    blur: float = 0.0
    noise: float = 1.0
    quality: int = 85

    def picture(self, rgb: ByteArray, seed: int = 0) -> ByteArray:
        """(H, W, 3) uint8: the same field through this camera, in register.

        Glass is the 99.5th percentile of each channel of the picture.
        """
        glass = np.percentile(rgb.reshape(-1, 3), _WHITE_PERCENTILE, axis=0)
        light = self._developed(rgb / 255.0)
        light *= np.asarray(self.white) / self._developed(glass / 255.0)
        light += np.random.default_rng(seed).normal(0, self.noise, light.shape)
        return _jpeg(np.clip(np.rint(light), 0, 255).astype(np.uint8), self.quality)

    def _developed(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        from scipy.ndimage import gaussian_filter

        mixed = np.clip(values**GAMMA @ np.asarray(self.matrix).T, 0, 1)
        light: npt.NDArray[np.float64] = np.asarray(mixed ** (self.tone / GAMMA), np.float64)
        if light.ndim == 3 and self.blur:
            light = gaussian_filter(light, (self.blur, self.blur, 0))
        if light.ndim == 3 and self.sharpening:
            soft = gaussian_filter(light, (_HALO_PX, _HALO_PX, 0))
            light = light + self.sharpening * (light - soft)
        return light


# invented, each unlike the others in everything; `dark` has the contrast that saturates nuclei
CAMERAS = {
    "warm": Camera(
        ((0.92, 0.06, 0.02), (0.05, 0.90, 0.05), (0.00, 0.12, 0.88)),
        tone=1.12,
        white=(235, 228, 215),
        blur=0.6,
        quality=85,
    ),
    "dark": Camera(
        ((1.06, -0.04, -0.02), (-0.03, 1.05, -0.02), (0.02, -0.08, 1.06)),
        tone=1.45,
        white=(250, 250, 252),
        sharpening=0.6,
        quality=80,
    ),
    "flat": Camera(
        ((0.85, 0.10, 0.05), (0.08, 0.85, 0.07), (0.05, 0.10, 0.85)),
        tone=0.75,
        white=(242, 243, 245),
        noise=1.5,
        quality=75,
    ),
}


def _jpeg(rgb: ByteArray, quality: int) -> ByteArray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))
