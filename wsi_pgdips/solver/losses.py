"""The PGDIPS objective: reconstruction of OD by the Beer-Lambert mixture, and exclusion.

    L = alpha * MSE(OD) + beta * exclusion

Every loss keeps the tile axis, so that the tiles of a batch stay independent problems.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

_SCALES = 3


def mixture(q: Tensor, stain_matrix: Tensor, background: Tensor) -> Tensor:
    """OD = sum_n q_n S_n + B.

    Args:
        q: (T, N, H, W). stain_matrix: (T, N, 3). background: (T, 3).

    Returns:
        (T, 3, H, W).
    """
    return torch.einsum("tnhw,tnc->tchw", q, stain_matrix) + background[:, :, None, None]


def reconstruction(od: Tensor, model: Tensor, valid: Tensor) -> Tensor:
    """Mean squared OD error over valid pixels, per tile.

    Args:
        od, model: (T, 3, H, W). valid: (T, 1, H, W) weights in [0, 1].

    Returns:
        (T,).
    """
    error = ((od - model) ** 2 * valid).sum((1, 2, 3))
    return error / (3 * valid.sum((1, 2, 3))).clamp_min(1)


def exclusion(maps: Tensor) -> Tensor:
    """Shared edges between every pair of maps (Zhang, Ng, Chen 2018), per tile.

    For each pair, direction and scale: the product of the squared, tanh-squashed gradients, the
    second map's gradient scaled to the first's mean size so that neither can win by shrinking.

    Args:
        maps: (T, N, H, W) concentrations C.

    Returns:
        (T,), zero for N = 1.
    """
    total = maps.new_zeros(maps.shape[0])
    pairs = list(combinations(range(maps.shape[1]), 2))
    if not pairs:
        return total
    first, second = [p[0] for p in pairs], [p[1] for p in pairs]
    for scale in range(_SCALES):
        if scale:
            maps = F.avg_pool2d(maps, 2)
        for axis in (2, 3):
            gradient = torch.diff(maps, dim=axis)
            a, b = gradient[:, first], gradient[:, second]
            size_a = a.abs().mean((2, 3), keepdim=True)
            size_b = b.abs().mean((2, 3), keepdim=True)
            ratio = (2 * size_a / (size_b + 1e-6)).detach().clamp(1e-3, 1e3)
            shared = (torch.tanh(a) ** 2 * torch.tanh(ratio * b) ** 2).mean((2, 3))
            # fourth root: back to the unit of one gradient; the floor keeps its slope finite
            total = total + (shared + 1e-12).pow(0.25).mean(1)
    return total / (2 * _SCALES)
