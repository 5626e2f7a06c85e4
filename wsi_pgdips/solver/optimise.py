"""The optimisation loop: C (through the network), S, M and B by the PGDIPS loss, T tiles at once.

No value is read back to the host inside the loop; a tile that diverges is noticed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsi_pgdips.solver import network
from wsi_pgdips.solver.network import NetworkSpec
from wsi_pgdips.solver.presets import Preset

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


_JITTER = 0.03  # standard deviation of the noise added to the input at each step


@dataclass
class Physics:
    """S (T, N, 3) unit rows, M (T, N) and B (T, 3), as tensors."""

    stain_matrix: Tensor
    spectral_correction: Tensor
    background: Tensor

    def repeat(self, tiles: int) -> Physics:
        return Physics(
            self.stain_matrix.expand(tiles, -1, -1).clone(),
            self.spectral_correction.expand(tiles, -1).clone(),
            self.background.expand(tiles, -1).clone(),
        )


@dataclass
class Solution:
    """q (T, N, H, W) in OD, the physics, and the reconstruction loss (T,) of the last step."""

    concentration: Tensor
    physics: Physics
    loss: Tensor


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the device computes in it; parameters, losses and physics stay float32."""
    supported = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=supported)


def maps(weights: network.Weights, x: Tensor, spec: NetworkSpec, n: int) -> Tensor:
    """C (T, N, H, W) from T * N networks; the N of a tile see the same input (T, C, H, W)."""
    with autocast(x.device):
        stacked = network.forward(weights, x.repeat_interleave(n, 0), spec)
    return stacked.reshape(x.shape[0], n, *stacked.shape[2:])


def objective(
    concentration: Tensor, od: Tensor, valid: Tensor, physics: Physics, preset: Preset
) -> tuple[Tensor, Tensor]:
    """(loss to minimise (T,), reconstruction part (T,))."""
    q = concentration * physics.spectral_correction[:, :, None, None]
    fit = reconstruction(od, mixture(q, physics.stain_matrix, physics.background), valid)
    total = preset.alpha * fit
    if preset.beta:
        total = total + preset.beta * exclusion(concentration)
    return total, fit


def unit(rows: Tensor) -> Tensor:
    """Non-negative unit rows: a stain absorbs in every channel, however little."""
    return F.normalize(rows.clamp_min(1e-3), dim=-1)


def solve(
    od: Tensor,
    valid: Tensor,
    inputs: Tensor,
    weights: dict[str, Tensor],
    start: Physics,
    preset: Preset,
    spec: NetworkSpec,
    generators: Sequence[torch.Generator],
) -> Solution:
    """Fit T independent tiles.

    Args:
        od: (T, 3, H, W) float32. valid: (T, 1, H, W). inputs: (T, inputs, H, W).
        weights: (T*N, ...) starting weights: each stain of each tile has its own network.
        start: physics to start from.
        preset, spec: how. generators: one a tile, on the device of ``od``, for the jitter of its
            input; so a tile's result does not depend on which others share its batch.

    Returns:
        The solution after ``preset.steps`` Adam steps.
    """
    n = start.stain_matrix.shape[1]
    trained = {k: v.detach().clone().requires_grad_() for k, v in weights.items()}
    rows = start.stain_matrix.clone().requires_grad_()
    log_scale = start.spectral_correction.clamp_min(1e-3).log().requires_grad_()
    background = start.background.clone().requires_grad_()
    optimiser = torch.optim.Adam(
        [*trained.values(), rows, log_scale, background], preset.learning_rate
    )

    def physics() -> Physics:
        return Physics(unit(rows), log_scale.exp(), background)

    # one sequence of turns for every tile, so that a batch is turned as one
    turns = torch.randint(8, (preset.steps,), generator=torch.Generator().manual_seed(0)).tolist()
    for step in range(preset.steps):
        x, y, v = inputs, od, valid
        x, y, v = (_turned(t, turns[step] if step % 2 else 0) for t in (x, y, v))
        jitter = [torch.randn(x.shape[1:], generator=g, device=x.device) for g in generators]
        x = x + _JITTER * torch.stack(jitter)
        total, _ = objective(maps(trained, x, spec, n), y, v, physics(), preset)
        optimiser.zero_grad(set_to_none=True)
        total.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        final = physics()
        c = maps(trained, inputs, spec, n)
        _, fit = objective(c, od, valid, final, preset)
        q = c * final.spectral_correction[:, :, None, None]
    return Solution(q, final, fit)


def _turned(t: Tensor, turn: int) -> Tensor:
    t = torch.rot90(t, turn % 4, (2, 3))
    return t.flip(3) if turn >= 4 else t
