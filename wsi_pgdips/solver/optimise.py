"""The PGDIPS objective, and its minimisation over C (by networks), S, M and B for T tiles at once.

    L = alpha * MSE(OD) + beta * exclusion

Each loss keeps the tile axis, so that the tiles of a batch stay independent problems. The loop
reads no value back to the host; a tile that diverges is noticed afterwards.
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
_JITTER = 0.03  # standard deviation of the noise added to the input at each step


def mixture(q: Tensor, stain_matrix: Tensor, background: Tensor) -> Tensor:
    """Compose OD = sum_n q_n S_n + B.

    Args:
        q: (T, N, H, W). stain_matrix: (T, N, 3). background: (T, 3).

    Returns:
        (T, 3, H, W).
    """
    return torch.einsum("tnhw,tnc->tchw", q, stain_matrix) + background[:, :, None, None]


def reconstruction(od: Tensor, model: Tensor, valid: Tensor) -> Tensor:
    """The mean squared OD error over valid pixels of each tile.

    Args:
        od, model: (T, 3, H, W). valid: (T, 1, H, W) weights in [0, 1].

    Returns:
        (T,).
    """
    error = ((od - model) ** 2 * valid).sum((1, 2, 3))
    return error / (3 * valid.sum((1, 2, 3))).clamp_min(1)


def exclusion(maps: Tensor) -> Tensor:
    """The exclusion loss of each tile: edges shared by pairs of maps (Zhang, Ng, Chen 2018).

    For each pair, direction and scale it is the product of the squared gradients, squashed by tanh.
    The second map's gradient is scaled to the first's mean size, so that shrinking a map does not
    lower the loss.

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
            # the fourth root has the unit of one gradient; the floor keeps its slope finite
            total = total + (shared + 1e-12).pow(0.25).mean(1)
    return total / (2 * _SCALES)


@dataclass
class Physics:
    """The physical parameters as tensors: S (T, N, 3) unit rows, M (T, N) and B (T, 3)."""

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
    """q (T, N, H, W) in OD, the physics, and the final reconstruction loss (T,)."""

    concentration: Tensor
    physics: Physics
    loss: Tensor


def autocast(device: torch.device) -> torch.autocast:
    """The context for networks: bf16 if the device supports it. All else stays float32."""
    supported = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=supported)


def maps(weights: network.Weights, x: Tensor, spec: NetworkSpec, n: int) -> Tensor:
    """Compute C (T, N, H, W) by T * N networks; those of a tile share its input (T, C, H, W)."""
    with autocast(x.device):
        stacked = network.forward(weights, x.repeat_interleave(n, 0), spec)
    return stacked.reshape(x.shape[0], n, *stacked.shape[2:])


def objective(
    concentration: Tensor, od: Tensor, valid: Tensor, physics: Physics, preset: Preset
) -> tuple[Tensor, Tensor]:
    """The loss to minimise (T,), and its reconstruction part (T,)."""
    q = concentration * physics.spectral_correction[:, :, None, None]
    fit = reconstruction(od, mixture(q, physics.stain_matrix, physics.background), valid)
    total = preset.alpha * fit
    if preset.beta:
        total = total + preset.beta * exclusion(concentration)
    return total, fit


def unit(rows: Tensor) -> Tensor:
    """Make rows positive and of unit length: a stain absorbs at least a little in each channel."""
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
        weights: (T*N, ...) initial weights; each stain of each tile has its own network.
        start: initial physics.
        preset, spec: of the solver and of the networks. generators: one per tile, on the device of
            ``od``, for the jitter of its input. So a tile's result does not depend on the others
            in its batch.

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

    # all tiles have the same sequence of turns, so that a batch turns as a whole
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
