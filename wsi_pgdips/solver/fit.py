"""The fits of tiles: statistics and, in the preset ``paper``, PGDIPS in batches, with fall-backs.

All results are finite, except the loss of a tile without a fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.optics.stains import match_rows
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray, SlidePrior, TileFlag
from wsi_pgdips.solver import network, optimise
from wsi_pgdips.solver.presets import NOISE_CHANNELS, Preset
from wsi_pgdips.solver.rays import MIN_CELLS, POOL, SATURATED_OD
from wsi_pgdips.solver.slide_network import in_focus
from wsi_pgdips.solver.statistics import (
    PERCENTILE_M,
    dark_cells,
    empty_statistics,
    tile_statistics,
    upper_quantile,
)
from wsi_pgdips.solver.tile import TileInput, batch
from wsi_pgdips.solver.trust import MOST_FOREIGN, pooled_tile, without_foreign

TILE_GATE_DEG = 20.0
SATURATED_SHARE = 0.01  # of tissue pixels
_PRESENT_SHARE = 0.01  # least share of pixels with a stain for it to count as present
_HALF_CONFIDENCE = 0.05  # share of pixels with a stain at which its confidence is one half
_FIT_SCALE_OD = 0.03  # residual that halves the confidence


@dataclass(frozen=True)
class TileFit:
    """The result for one tile; arrays as in ``records.BlockFit`` without the tile axis."""

    stain_matrix: FloatArray
    spectral_correction: FloatArray
    background: FloatArray
    confidence: FloatArray
    loss: float
    steps: int
    flags: TileFlag
    statistics: dict[str, npt.NDArray[Any]]
    concentration: npt.NDArray[np.float16] | None


def fit_tiles(
    tiles: Sequence[TileInput], prior: SlidePrior, preset: Preset, device: torch.device
) -> list[TileFit]:
    """Fit T tiles; each result depends only on its own tile, its seed and the prior.

    Args:
        tiles: T tiles of one size. prior: of the slide. preset: of the run. device: for the fit.

    Returns:
        T results in order; a blank or diverged tile has the prior's parameters and a flag.
    """
    measured = [_measure(in_focus(t, prior, device), prior) for t in tiles]
    busy = [i for i, m in enumerate(measured) if not m.flags & TileFlag.BLANK]
    if not busy or not preset.noise_input:
        return measured
    solution = _solve([tiles[i] for i in busy], prior, preset, device)
    for k, i in enumerate(busy):
        measured[i] = _merge(measured[i], solution, k, prior, preset)
    return measured


def fallback(tile_background: FloatArray, prior: SlidePrior, flags: TileFlag) -> TileFit:
    """The result for a tile without a fit: the slide's parameters, no confidence, no statistics."""
    n = len(prior.stain_matrix)
    return TileFit(
        prior.stain_matrix,
        prior.spectral_correction,
        tile_background,
        np.zeros(n, np.float32),
        float("nan"),
        0,
        flags | TileFlag.INHERITED,
        empty_statistics(prior.stain_matrix),
        None,
    )


def _measure(tile: TileInput, prior: SlidePrior) -> TileFit:
    """Measure a tile's statistics, M and confidence under the slide's prior, without a network."""
    pooled = pooled_tile(tile, prior.stain_matrix, prior.pooled_noise_od)
    if prior.foreign <= MOST_FOREIGN:
        tile = without_foreign(tile, pooled)
    own, flat = np.flatnonzero(tile.own_tissue), tile.corrected.reshape(3, -1)
    # mode="clip" saves a copy, and a check of each index
    od = flat if len(own) == flat.shape[1] else np.take(flat, own, axis=1, mode="clip")
    # saturated cells are not pooled, so a black tile is both saturated and blank
    bright = np.maximum(np.maximum(od[0], od[1]), od[2]) > SATURATED_OD
    saturated = np.count_nonzero(bright) > SATURATED_SHARE * len(own)
    flags = TileFlag.SATURATED if saturated else TileFlag.NONE
    s0 = torch.from_numpy(prior.stain_matrix)
    q = unmix(torch.from_numpy(od), s0, torch.zeros(3)).numpy()
    saturates = prior.saturating >= 0
    statistics = tile_statistics(
        tile, q, prior.stain_matrix, prior.pooled_noise_od, saturates=saturates
    )
    if saturates:
        statistics["dark"] = dark_cells(
            pooled, tile.halo, prior.saturating, prior.library[prior.saturating]
        )
        if statistics["dark"][..., 1].sum() * POOL**2 > SATURATED_SHARE * len(own):
            flags |= TileFlag.SATURATED
    if statistics["count"].sum() < MIN_CELLS:
        return fallback(tile.background, prior, flags | TileFlag.BLANK)
    residual = od - prior.stain_matrix.T @ q
    loss = float(np.vdot(residual, residual)) / residual.size
    share = np.array([np.count_nonzero(row > p) for row, p in zip(q, prior.presence, strict=True)])
    share = share / len(own)
    present = share >= _PRESENT_SHARE
    if not present.all():
        flags |= TileFlag.SCARCE_STAIN
    confidence = present * share / (share + _HALF_CONFIDENCE) / (1 + loss / _FIT_SCALE_OD**2)
    m = np.maximum([upper_quantile(row, PERCENTILE_M / 100) for row in q], prior.presence)
    return TileFit(
        prior.stain_matrix,
        m.astype(np.float32),
        tile.background,
        confidence.astype(np.float32),
        loss,
        0,
        flags,
        statistics,
        None,
    )


def _solve(
    tiles: list[TileInput], prior: SlidePrior, preset: Preset, device: torch.device
) -> optimise.Solution:
    n, count = len(prior.stain_matrix), len(tiles)
    spec = preset.network
    od, valid, background = batch(tiles, device)
    start = optimise.Physics(
        torch.from_numpy(prior.stain_matrix).to(device)[None],
        torch.from_numpy(prior.spectral_correction).to(device)[None],
        background,
    ).repeat(count)
    generators = [torch.Generator().manual_seed(t.seed) for t in tiles]
    shape = (NOISE_CHANNELS, *od.shape[2:])
    inputs = torch.stack([torch.rand(shape, generator=g) * 0.1 for g in generators]).to(device)
    per_stain = [g for g in generators for _ in range(n)]
    bias = _mean_logits(od, valid, start).reshape(-1, 1).cpu()
    fresh = network.init_weights(spec, per_stain, bias)
    weights = {k: v.to(device) for k, v in fresh.items()}
    jitter = [torch.Generator(device).manual_seed(t.seed ^ 1) for t in tiles]
    return optimise.solve(od, valid, inputs, weights, start, preset, spec, jitter)


def _mean_logits(od: Tensor, valid: Tensor, start: optimise.Physics) -> Tensor:
    """The head biases of the mean concentrations, (T, N); 0.5 would waste hundreds of steps."""
    rows = []
    for t in range(len(od)):
        coarse = torch.nn.functional.avg_pool2d(od[t], 8)
        q = unmix(coarse, start.stain_matrix[t], start.background[t])
        inside = torch.nn.functional.avg_pool2d(valid[t], 8)
        mean = (q * inside).sum((1, 2)) / inside.sum().clamp_min(1e-6)
        rows.append(mean / start.spectral_correction[t])
    return torch.logit(torch.stack(rows).clamp(0.02, 0.98))


def _merge(
    measured: TileFit, solution: optimise.Solution, k: int, prior: SlidePrior, preset: Preset
) -> TileFit:
    """Merge a tile's solution with its measurements; the prior replaces unreliable parameters."""
    s, m, b, q, loss = (
        _host(t[k])
        for t in (
            solution.physics.stain_matrix,
            solution.physics.spectral_correction,
            solution.physics.background,
            solution.concentration,
            solution.loss,
        )
    )
    flags = measured.flags
    finite = all(bool(np.isfinite(a).all()) for a in (s, m, b, q, loss))
    if not finite:
        return replace(
            measured,
            confidence=np.zeros_like(measured.confidence),
            steps=preset.steps,
            flags=flags | TileFlag.DIVERGED | TileFlag.INHERITED,
        )
    order, _ = match_rows(s, prior.stain_matrix)
    if list(order) != list(range(len(s))):
        flags |= TileFlag.SWAPPED
        s = prior.stain_matrix
    outside = angle_deg(s, prior.stain_matrix) > TILE_GATE_DEG
    if outside.any():
        flags |= TileFlag.OUTSIDE_GATE
        s = np.where(outside[:, None], prior.stain_matrix, s).astype(np.float32)
    return replace(
        measured,
        stain_matrix=s,
        spectral_correction=m,
        background=b,
        loss=float(loss),
        steps=preset.steps,
        flags=flags,
        concentration=q.astype(np.float16),
    )


def _host(t: Tensor) -> FloatArray:
    return np.asarray(t.detach().float().cpu().numpy())
