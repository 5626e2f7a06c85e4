"""The layout of a phantom slide: slow fields by seed, on a lattice of the whole slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wsi_pgdips.phantom.config import PhantomConfig
from wsi_pgdips.records import FloatArray

_STEP = 32  # pixels between the samples of the slow fields
_MARGIN = 8  # samples around the slide, for halos
_OVERHANG = 20  # samples beyond its end: the last cell is computed whole


def _lattice(config: PhantomConfig) -> tuple[int, int]:
    """Return the shape of the lattice."""
    return (
        -(-config.shape[0] // _STEP) + 2 * _MARGIN + _OVERHANG,
        -(-config.shape[1] // _STEP) + 2 * _MARGIN + _OVERHANG,
    )


def _slow_noise(rng: np.random.Generator, lattice: tuple[int, int], sigma_px: float) -> FloatArray:
    """Draw smooth noise of zero mean and unit variance on the slide's lattice."""
    field = ndimage.gaussian_filter(rng.standard_normal(lattice), sigma_px / _STEP, mode="reflect")
    return np.asarray((field - field.mean()) / max(field.std(), 1e-9), np.float32)


@dataclass(frozen=True)
class Layout:
    """Slow fields on the slide's lattice: sample (i, j) lies at pixel ((i - 8) * 32, (j - 8) * 32).

    Attributes:
        edge: about the depth in the tissue, pixels, negative outside. glands: > 0 in glands' zones.
        density: nuclei shown, 0 to 1. thickness: factor on the matrix. weave: choice of fibres.
        presence: (N, ...) share of each stain, 0 to 1. fold: gain of dark folds, >= 1.
    """

    edge: FloatArray
    glands: FloatArray
    density: FloatArray
    thickness: FloatArray
    weave: FloatArray
    presence: FloatArray
    fold: FloatArray

    def sample(self, field: FloatArray, y: float, x: float) -> float:
        """Return the sample of a field that is nearest to a pixel."""
        i = min(max(round(y / _STEP) + _MARGIN, 0), field.shape[0] - 1)
        j = min(max(round(x / _STEP) + _MARGIN, 0), field.shape[1] - 1)
        return float(field[i, j])

    def window(self, field: FloatArray, y: int, x: int, h: int, w: int) -> FloatArray:
        """Return the (..., h, w) bilinear values of a (..., I, J) field."""
        (i0, rows), (j0, cols) = _weights(y, h), _weights(x, w)
        part = field[..., i0 : i0 + rows.shape[1], j0 : j0 + cols.shape[1]]
        return np.asarray(rows @ part @ cols.T, np.float32)


def _weights(start: int, count: int) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the first sample and (count, samples) interpolation weights of a run of pixels."""
    at = np.arange(start, start + count) / _STEP + _MARGIN
    first = int(np.floor(at[0]))
    low = np.floor(at).astype(int) - first
    # float64, because a product's last bit may depend on its shape, and windows must agree
    weights = np.zeros((count, int(low[-1]) + 2))
    share = at - np.floor(at)
    weights[np.arange(count), low] = 1 - share
    weights[np.arange(count), low + 1] += share
    return first, weights


def _tissue_edge(config: PhantomConfig, rng: np.random.Generator) -> FloatArray:
    """Draw ``Layout.edge``: rough pieces of tissue with holes."""
    lattice, scale = _lattice(config), 1 / config.mpp
    rough = _slow_noise(rng, lattice, 90 * scale) * 42 * scale
    rough += _slow_noise(rng, lattice, 28 * scale) * 9 * scale
    holes = _slow_noise(rng, lattice, 40 * scale)
    if not config.glass:
        return np.full(lattice, 1e4, np.float32)
    height, width = config.shape
    yy = (np.arange(lattice[0])[:, None] - _MARGIN) * _STEP
    xx = (np.arange(lattice[1])[None, :] - _MARGIN) * _STEP
    along_x = width >= height
    edge = np.full(lattice, -np.inf)
    for k in range(config.pieces):
        share = (k + 0.5) / config.pieces
        cy, cx = (0.5, share) if along_x else (share, 0.5)
        cy, cx = cy + rng.uniform(-0.03, 0.03), cx + rng.uniform(-0.03, 0.03) / config.pieces
        ry, rx = (0.43, 0.43 / config.pieces) if along_x else (0.43 / config.pieces, 0.43)
        u, v = (yy / height - cy) / ry, (xx / width - cx) / rx
        # superellipse: a tissue piece fills more of its box than an ellipse
        r = (np.abs(u) ** 2.6 + np.abs(v) ** 2.6) ** (1 / 2.6)
        edge = np.maximum(edge, (1 - r) * min(ry * height, rx * width))
    edge = edge + rough
    return np.asarray(np.minimum(edge, (2.1 - holes) * 40 * scale), np.float32)


def make_layout(config: PhantomConfig) -> Layout:
    """Draw the slow fields of a slide, by its seed."""
    rng = np.random.default_rng([config.seed, 202])
    lattice, scale = _lattice(config), 1 / config.mpp
    edge = _tissue_edge(config, rng)
    inside = np.zeros(lattice, bool)
    rows, columns = (slice(_MARGIN, _MARGIN + -(-n // _STEP)) for n in config.shape)
    inside[rows, columns] = True
    inside &= edge > 0
    size = min(config.shape)
    presence = []
    for stain in config.stains:
        field = _slow_noise(rng, lattice, 0.09 * size)
        if stain.presence >= 1 or not inside.any():
            presence.append(np.ones(lattice, np.float32))
            continue
        threshold = np.quantile(field[inside], 1 - stain.presence)
        share = np.clip((field - threshold) / 0.3 + 0.5, 0, 1)
        presence.append(share.astype(np.float32))
    fold = np.ones(lattice, np.float32)
    crease = np.abs(_slow_noise(rng, lattice, 0.11 * size))
    if config.saturated_fraction > 0 and inside.any():
        width = np.quantile(crease[inside], config.saturated_fraction)
        fold += (4.5 * np.clip((width - crease) / (0.35 * width) + 0.5, 0, 1)).astype(np.float32)
    follicles = _slow_noise(rng, lattice, 48 * scale)
    patches = _slow_noise(rng, lattice, 20 * scale)
    return Layout(
        edge=edge,
        glands=_slow_noise(rng, lattice, 130 * scale) + 0.25,
        density=np.clip(
            0.2 + 0.05 * patches + 0.75 * np.clip(follicles - 0.85, 0, 0.9), 0.04, 0.95
        ).astype(np.float32),
        thickness=np.clip(
            1 + 0.16 * _slow_noise(rng, lattice, 110 * scale) + 0.05 * patches, 0.5, 1.5
        ),
        weave=_slow_noise(rng, lattice, 55 * scale),
        presence=np.stack(presence),
        fold=fold,
    )
