"""Cameras whose spectra are known: what they see of stains whose absorption was measured.

Light passes a phantom's concentrations wavelength by wavelength, is weighted with the lamp and
the bands of the camera, and is summed to RGB. A sum over a band does not follow the law of
Beer-Lambert, and a tone curve bends it further, as in real scanners.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.physics import I0
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

STEP_NM = 1.0
FAINT = 1e-6  # share of a camera's light below which a wavelength is left out
HALO_PX = 1.2  # sigma of the unsharp mask
FLOOR = 0.5  # counts: what black is taken for, as in the package
_PLANCK_NM_K = 1.4388e7  # second radiation constant, nm K

Floats = npt.NDArray[np.float64]
Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Spectra:
    """Absorption of stains.

    Attributes:
        wavelengths: (W,) nm, evenly spaced. od: (N, W), OD of a concentration of 1.
    """

    wavelengths: Floats
    od: Floats


def load_spectra(path: Path, labels: Sequence[str]) -> Spectra:
    """Read measured spectra, and interpolate them linearly to steps of 1 nm.

    Args:
        path: CSV with ``wavelength_nm`` and a column ``LABEL_od`` for each stain.

    Raises:
        SettingsError: a stain has no column.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"{label.lower()}_od" for label in labels]
    missing = [name for name in ("wavelength_nm", *names) if name not in rows[0]]
    if missing:
        raise SettingsError(
            "a stain has no measured spectrum", expected=", ".join(missing), where=path
        )
    measured = np.array([float(row["wavelength_nm"]) for row in rows])
    wavelengths = np.arange(measured[0], measured[-1] + STEP_NM / 2, STEP_NM)
    columns = [[float(row[name]) for row in rows] for name in names]
    return Spectra(
        wavelengths, np.array([np.interp(wavelengths, measured, column) for column in columns])
    )


@dataclass(frozen=True)
class SpectralCamera:
    """A camera with Gaussian bands.

    Attributes:
        centres, widths: of the R, G and B band, nm; a width is a standard deviation.
        lamp: kelvin of a black body; None gives all wavelengths alike.
        white: RGB of glass in the picture, counts.
        strength: factor on concentrations: a stain so strong that the picture is about as dark as
            usual, whatever band and tone curve take of its contrast.
        srgb: encode with the curve of sRGB; else counts are proportional to light.
        sharpening: share of an unsharp mask, on encoded pixels.
        noise: standard deviation at glass, counts of linear light; it falls as the root of light.
        quality: of the JPEG that the picture is stored as; 0 is lossless.
    """

    centres: Triple
    widths: Triple
    lamp: float | None = None
    white: Triple = (243.0, 244.0, 242.0)
    strength: float = 1.0
    srgb: bool = False
    sharpening: float = 0.0
    noise: float = 1.5
    quality: int = 0

    def bands(self, wavelengths: Floats) -> Floats:
        """(3, W) share of each wavelength in a channel's light through glass; rows sum to 1."""
        centre, width = (np.array(v)[:, None] for v in (self.centres, self.widths))
        seen = np.exp(-0.5 * ((wavelengths - centre) / width) ** 2) * self._lamp(wavelengths)
        return np.asarray(seen / seen.sum(1, keepdims=True), np.float64)

    def light(self, q: FloatArray, spectra: Spectra) -> FloatArray:
        """(3, H, W) linear light of (N, H, W) concentrations, 1 through glass."""
        bands = self.bands(spectra.wavelengths)
        light = np.zeros((3, *q.shape[1:]), np.float32)
        exponents = (-np.log(10.0) * self.strength * spectra.od).astype(np.float32)
        for k in np.flatnonzero(bands.max(0) > FAINT):
            passed = np.exp(np.tensordot(exponents[:, k], q, 1))
            for channel in np.flatnonzero(bands[:, k] > FAINT):
                light[channel] += np.float32(bands[channel, k]) * passed
        return light

    def encoded(self, light: FloatArray) -> FloatArray:
        """(3, H, W) counts, neither rounded nor clipped: white balance, then the tone curve."""
        gain = np.array(self.white) / I0
        if not self.srgb:
            return np.asarray(light * (I0 * gain[:, None, None]), np.float32)
        balanced = light * _linear(gain)[:, None, None]
        return np.asarray(I0 * _srgb(balanced), np.float32)

    def picture(self, q: FloatArray, spectra: Spectra, seed: int = 0) -> ByteArray:
        """(H, W, 3) uint8 before compression. Equal seeds give equal pictures."""
        light = self.light(q, spectra)
        if self.noise:
            normal = np.random.default_rng([seed, 405]).standard_normal(light.shape, np.float32)
            light += np.float32(self.noise / I0) * np.sqrt(light) * normal
        counts = self.encoded(light)
        if self.sharpening:
            soft = gaussian_filter(counts, HALO_PX, axes=(1, 2))
            counts = counts + np.float32(self.sharpening) * (counts - soft)
        rgb = np.clip(np.rint(counts), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(rgb.transpose(1, 2, 0))

    def _lamp(self, wavelengths: Floats) -> Floats:
        """(W,) photons of the lamp, relative."""
        if self.lamp is None:
            return np.ones_like(wavelengths)
        spectrum = wavelengths**-4 / np.expm1(_PLANCK_NM_K / (wavelengths * self.lamp))
        return np.asarray(spectrum / spectrum.max(), np.float64)


# diodes lit one after the other, and a colour filter on the sensor under a halogen lamp
_NARROW = ((625.0, 530.0, 465.0), (5.0, 5.0, 5.0))
_BROAD = ((600.0, 540.0, 460.0), (35.0, 35.0, 30.0), 3200.0)
CAMERAS = {
    "spectral_narrow": SpectralCamera(*_NARROW),
    "spectral_broad": SpectralCamera(*_BROAD, strength=1.5),
    "spectral_narrow_srgb": SpectralCamera(*_NARROW, strength=2.0, srgb=True),
    "spectral_broad_srgb": SpectralCamera(
        *_BROAD, strength=3.0, srgb=True, sharpening=0.5, quality=80
    ),
}


@dataclass(frozen=True, eq=False)
class LinearFit:
    """The linear model that comes nearest to what a camera sees.

    Attributes:
        vectors: (N, 3) OD of a concentration of 1, not of unit length. background: (3,) of glass.
        departure: root mean square of what the model leaves, over that of the OD above glass.
    """

    vectors: FloatArray
    background: FloatArray
    departure: float


def fit_linear(
    camera: SpectralCamera, q: FloatArray, spectra: Spectra, tissue: BoolArray
) -> LinearFit:
    """Regress the OD above glass on the true concentrations, over tissue, by least squares.

    The picture is taken without noise, sharpening, rounding and JPEG.

    Args:
        q: (N, H, W). tissue: (H, W).
    """
    at = np.asarray(q[:, tissue], np.float64)
    counts = camera.encoded(camera.light(q[:, tissue][:, None], spectra))[:, 0]
    background = -np.log10(np.array(camera.white) / I0)
    od = -np.log10(np.maximum(counts, FLOOR) / I0) - background[:, None]
    vectors = np.linalg.lstsq(at.T, od.T, rcond=None)[0]
    left = od - vectors.T @ at
    departure = float(np.sqrt(np.mean(left**2) / np.mean(od**2)))
    return LinearFit(vectors.astype(np.float32), background.astype(np.float32), departure)


def _srgb(light: FloatArray) -> FloatArray:
    light = np.maximum(light, 0)
    above = 1.055 * light ** np.float32(1 / 2.4) - 0.055
    return np.asarray(np.where(light > 0.0031308, above, 12.92 * light), np.float32)


def _linear(encoded: Floats) -> FloatArray:
    """The inverse of ``_srgb``."""
    above = ((encoded + 0.055) / 1.055) ** 2.4
    return np.asarray(np.where(encoded > 0.04045, above, encoded / 12.92), np.float32)
