"""The data-consistent render of one tile: q under the blended fields (decision 22)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wsi_pgdips.layers.schema import CODE_MAX, SCALE_FACTOR
from wsi_pgdips.optics.foreign import BLACK_OD, is_carbon, is_foreign
from wsi_pgdips.optics.unmix import dot, unmix
from wsi_pgdips.records import Artifact, FloatArray
from wsi_pgdips.solver.rays import POOL


def render_pixels(
    od: Tensor,
    stain_matrix: Tensor,
    background: Tensor,
    prior_weight: Tensor | None = None,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (N, ...) q and (3, ...) residual OD - B - q S of pixels; arguments as of ``unmix``."""
    q = unmix(od, stain_matrix, background, prior_weight, prior)
    return q, residual_of(od, stain_matrix, background, q)


def residual_of(od: Tensor, stain_matrix: Tensor, background: Tensor, q: Tensor) -> Tensor:
    """Return OD - B - q S, (3, ...)."""
    extra = (1,) * (od.ndim - 1)
    residual = od - (background.reshape(3, *extra) if background.ndim == 1 else background)
    for row, amount in zip(stain_matrix, q, strict=True):
        rows = row if row.ndim > 1 else row.reshape(3, *extra)
        residual = torch.addcmul(residual, rows, amount, value=-1)
    return residual


def saturated_amounts(
    y: Tensor, stain_matrix: Tensor, q: Tensor, black: Tensor, stain: int, usual: Tensor
) -> Tensor:
    """Return (N, ...) q in which black belongs to the stain that saturates (decision 56).

    How much of the others is there cannot be seen: they keep at most what tissue holds on average.
    The saturating stain takes what is left along its vector.

    Args:
        y: (3, ...) OD - B. stain_matrix: (N, 3, ...). q: (N, ...). black: (...) in [0, 1], how far
            a pixel is black. stain: index of the saturating one. usual: (N,) OD.
    """
    extra = (1,) * (q.ndim - 1)
    others = torch.minimum(q, usual.reshape(-1, *extra))
    others[stain] = 0
    left = y - (others[:, None] * stain_matrix).sum(0)
    others[stain] = dot(left, stain_matrix[stain]).clamp_min_(0)
    return torch.lerp(q, others, black[None])


def artifacts_of(
    y: Tensor, stain_matrix: Tensor, noise: float, brown: Tensor | None
) -> npt.NDArray[np.uint8]:
    """Find foreign and saturated pixels in squares of 4x4.

    Args:
        y: (3, H, W) OD - B. stain_matrix: (N, 3, H, W). noise: of pooled OD.
        brown: (H, W), how far black is the saturating stain; None where no stain saturates.

    Returns:
        (ceil(H/4), ceil(W/4)) uint8, ``Artifact``.
    """
    pooled = F.avg_pool2d(y[None], POOL, ceil_mode=True, count_include_pad=False)[0]
    rows = stain_matrix[..., ::POOL, ::POOL]
    q = unmix(pooled, rows, torch.zeros(3, device=y.device))
    outside = pooled - (q[:, None] * rows).sum(0)
    foreign = is_foreign(dot(pooled, pooled).sqrt_(), dot(outside, outside).sqrt_(), noise)
    saturated = torch.zeros_like(foreign)
    if brown is not None:
        around = brown[::POOL, ::POOL] > 0.5
        saturated = (pooled.amin(0) > BLACK_OD) & around
        length = dot(pooled, pooled).sqrt_()
        foreign = (foreign & ~saturated) | (is_carbon(pooled, length) & ~around)
    found = foreign * int(Artifact.FOREIGN) + saturated * int(Artifact.SATURATED)
    return np.asarray(found.to(torch.uint8).cpu().numpy())


def encode_pixels(q: Tensor) -> npt.NDArray[np.uint16]:
    """Return the codes of ``pyramid.encode`` for q that is measured everywhere; made on q's device.

    Raises:
        ValueError: an optical density is not finite.
    """
    counts = (q * (1 / SCALE_FACTOR)).round_().clamp_(1, CODE_MAX)
    codes = np.asarray(counts.to(torch.uint16).cpu().numpy())
    if not math.isfinite(q.sum()):  # one that is not finite is enough
        raise ValueError("an optical density is not finite where it is measured")
    return codes


def residual_rms(residual: Tensor, levels: int) -> npt.NDArray[np.uint16]:
    """Return codes of the root mean square of a tile's residual, ``levels`` levels coarser.

    Args:
        residual: (3, h, w) OD, measured everywhere.

    Returns:
        (ceil(h / 2**levels), ceil(w / 2**levels)) uint16; what hangs over the end counts for less.
    """
    side = 1 << levels
    mean = F.avg_pool2d(
        residual.square().mean(0)[None], side, ceil_mode=True, count_include_pad=False
    )
    return encode_pixels(mean[0].sqrt_())


def cross_faded(
    maps: dict[tuple[int, int], npt.NDArray[np.float16]],
    fade: FloatArray,
    side: int,
) -> FloatArray:
    """Return a tile's prior map with its neighbours' faded in.

    Args:
        maps: (dy, dx) in -1..1 -> (N, side + 2 halo, side + 2 halo) of the tile and of those of its
            neighbours that have one; the tile itself is (0, 0).
        fade: (side + 2 halo,) weight along one axis. side: of a tile.

    Returns:
        (N, side, side) float32; weights are normalised by their sum.
    """
    halo = (len(fade) - side) // 2
    n = maps[0, 0].shape[0]
    total = np.zeros((n, side, side), np.float32)
    mass = np.zeros((side, side), np.float32)
    for (dy, dx), q in sorted(maps.items()):
        spans = []
        for d in (dy, dx):
            start = d * side - halo  # of the neighbour's map
            first, last = max(start, 0), min(start + len(fade), side)
            spans.append((slice(first, last), slice(first - start, last - start)))
        (oy, iy), (ox, ix) = spans
        weight = fade[iy, None] * fade[None, ix]
        total[:, oy, ox] += weight * q[:, iy, ix].astype(np.float32)
        mass[oy, ox] += weight
    return np.asarray(total / np.maximum(mass, 1e-6), np.float32)
