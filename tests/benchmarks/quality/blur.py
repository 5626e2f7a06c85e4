"""Gaussian blur of maps by several sigmas at once, by one Fourier transform."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import fft

from wsi_pgdips.records import FloatArray

SIGMAS = (1.0, 2.0, 4.0)  # pixels, as of the records
_TRUNCATE = 4


def blurred(
    maps: FloatArray, sigmas: Sequence[float] = SIGMAS
) -> Iterator[tuple[float, FloatArray]]:
    """Blurred maps, reflected beyond their edges.

    Args:
        maps: (N, H, W), finite. sigmas: pixels, > 0.

    Yields:
        sigma and (N, H, W) float32, for each sigma.
    """
    h, w = maps.shape[1:]
    pad = int(np.ceil(_TRUNCATE * max(sigmas)))
    pad_y, pad_x = min(pad, h), min(pad, w)
    wide = np.pad(maps, ((0, 0), (pad_y, pad_y), (pad_x, pad_x)), mode="symmetric")
    shape = tuple(fft.next_fast_len(s, real=True) for s in wide.shape[1:])
    spectrum = fft.rfft2(wide.astype(np.float32, copy=False), s=shape)
    own = np.s_[:, pad_y : pad_y + h, pad_x : pad_x + w]
    for sigma in sigmas:
        down, across = (_response(sigma, n) for n in shape)
        passed = spectrum * down[:, None] * across[None, : spectrum.shape[2]]
        yield sigma, np.ascontiguousarray(fft.irfft2(passed, s=shape)[own], np.float32)


def _response(sigma: float, n: int) -> FloatArray:
    """(n,) transform of a sampled Gaussian, real since it is even."""
    distance = np.minimum(np.arange(n), n - np.arange(n))
    kernel = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= round(_TRUNCATE * sigma))
    return np.asarray(fft.fft(kernel / kernel.sum()).real, np.float32)
