"""Small tiles of known stains: smooth blobs with pure regions, glass beneath, noise on top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from wsi_pgdips.optics.physics import compose_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import FloatArray, SlidePrior
from wsi_pgdips.solver.tile import TileInput

HE = load_stains("he").stain_matrix
HDAB = load_stains("hdab").stain_matrix
THREE = load_stains("hedab").stain_matrix
GLASS = np.array([0.04, 0.02, 0.06], np.float32)


def concentrations(
    n: int, side: int, seed: int, strength: Sequence[float] | None = None, sigma: float = 3.0
) -> FloatArray:
    """(N, side, side) q with regions of each stain alone and of all together."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(n, side, side)), (0, sigma, sigma), mode="wrap")
    field /= field.std((1, 2), keepdims=True)
    q = np.maximum(field + 0.3, 0) * 0.4
    scale = np.ones(n) if strength is None else np.asarray(strength)
    return np.asarray(q * scale[:, None, None], np.float32)


def of_all_sizes(seed: int, blur: float, side: int = 320) -> FloatArray:
    """q of tissue with structure of all sizes (variance as the inverse square of frequency)."""
    rng = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    passed = np.exp(-2 * (np.pi * blur * f) ** 2) / np.maximum(f, 1 / side)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, side, side))) * passed).real
    field /= field.std((1, 2), keepdims=True)
    return np.asarray(np.maximum(field + 1.0, 0) * 0.2, np.float32)


def tile_of(
    q: FloatArray,
    stain_matrix: FloatArray,
    *,
    noise: float = 0.005,
    halo: int = 0,
    seed: int = 0,
    tissue: bool = True,
) -> TileInput:
    """A tile of these concentrations."""
    rng = np.random.default_rng(seed)
    od = compose_od(q, stain_matrix, GLASS) + rng.normal(0, noise, (3, *q.shape[1:]))
    return TileInput(
        np.ascontiguousarray(od, np.float32),
        np.full(q.shape[1:], tissue),
        GLASS,
        halo,
        seed,
    )


def prior_of(stain_matrix: FloatArray, network: dict[str, FloatArray] | None = None) -> SlidePrior:
    """What calibrate would say of slides made of such tiles."""
    n = len(stain_matrix)
    return SlidePrior(
        stain_matrix=stain_matrix,
        spectral_correction=np.full(n, 1.2, np.float32),
        background=GLASS,
        presence=np.full(n, 0.1, np.float32),
        noise_od=0.005,
        pooled_noise_od=0.0015 if n == 2 else 0.0,
        prior_weight=np.zeros(n, np.float32),
        measured=np.ones(n, bool),
        network=network or {},
    )
