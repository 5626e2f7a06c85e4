"""``calibrate``: what sampled tiles say of the whole slide (decisions 6, 7, 17, 19)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray, SlidePrior
from wsi_pgdips.solver import network, optimise
from wsi_pgdips.solver.presets import Preset
from wsi_pgdips.solver.rays import (
    MIN_CELLS,
    SATURATED_OD,
    across_noise,
    estimate_rays,
    pool_od,
)
from wsi_pgdips.solver.tile import TileInput, batch

CROP = 160  # side of a training crop at the network's resolution
CROPS_PER_STEP = 4
RATE = 2e-2  # Adam, before the division by fan-in; peak of a one-cycle schedule
PERCENTILE_M = 99.9
MIN_PRESENCE_OD = 0.05
FAITHFUL_PRIOR_WEIGHT = 100.0  # as published: the network's own maps are the result
UNKNOWN_NOISE_OD = 0.01  # of a tile without a quiet square of tissue


def calibrate_prior(
    tiles: Sequence[TileInput],
    library: FloatArray,
    background: FloatArray,
    preset: Preset,
    *,
    steps: int,
    seed: int,
    prior_weight: float | None,
    device: torch.device,
    executor: Executor,
    flags: tuple[str, ...] = (),
) -> SlidePrior:
    """The slide's prior from sampled tissue tiles.

    Args:
        tiles: sampled tiles. library: (N, 3). background: (3,) B0 of the slide.
        preset: how tiles will be solved. steps: training steps of the slide-level network.
        seed: of the slide. prior_weight: Lambda for every stain, or None to estimate it.
        device: where the network trains. executor: threads that share the work; the result does
            not depend on how many.
        flags: what is already known of the slide.

    Returns:
        The prior; its network is empty for noise input, which shares no weights. Where the tiles
        hold no tissue at all the library's vectors stand and nothing is trained.
    """
    if prior_weight is None and preset.noise_input:
        prior_weight = FAITHFUL_PRIOR_WEIGHT
    if not any(t.own_tissue.any() for t in tiles):
        return _library_prior(library, background, prior_weight or 0.0, flags)
    pooled = [pool_od(t.corrected, t.own_tissue)[0] for t in tiles]
    rays = estimate_rays(np.concatenate(pooled), library)
    flags += tuple(f"stain_{i}_from_library" for i, ok in enumerate(rays.measured) if not ok)
    s0, measured = rays.stain_matrix, np.array(rays.measured)
    pooled_noise = _pooled_noise(pooled, s0)
    q = np.concatenate([_pixels(t, s0) for t in tiles], 1)
    m0 = np.maximum(np.percentile(q, PERCENTILE_M, axis=1), MIN_PRESENCE_OD).astype(np.float32)
    noise = float(np.median([tile_noise(t) for t in tiles]))
    gain = np.sqrt(np.diag(np.linalg.pinv(s0.astype(np.float64) @ s0.T.astype(np.float64))))
    presence = np.maximum(4 * noise * gain, MIN_PRESENCE_OD).astype(np.float32)
    n = len(s0)
    if preset.noise_input:
        held = np.full(n, prior_weight, np.float32)
        return SlidePrior(
            s0, m0, background, presence, noise, pooled_noise, held, measured, flags=flags
        )
    weights, loss = _train(tiles, s0, m0, q.mean(1), preset, steps, seed, device, executor)
    weight = (
        _estimate_prior_weight(tiles, weights, s0, m0, noise, preset, device)
        if prior_weight is None
        else np.full(n, prior_weight, np.float32)
    )
    arrays = {k: v.cpu().numpy() for k, v in weights.items()}
    return SlidePrior(
        s0, m0, background, presence, noise, pooled_noise, weight, measured, arrays, flags, loss
    )


def _library_prior(
    library: FloatArray, background: FloatArray, prior_weight: float, flags: tuple[str, ...]
) -> SlidePrior:
    """What is left where no tile could be read."""
    n = len(library)
    return SlidePrior(
        stain_matrix=np.asarray(library, np.float32),
        spectral_correction=np.ones(n, np.float32),
        background=background,
        presence=np.full(n, MIN_PRESENCE_OD, np.float32),
        noise_od=UNKNOWN_NOISE_OD,
        pooled_noise_od=0.0,
        prior_weight=np.full(n, prior_weight, np.float32),
        measured=np.zeros(n, bool),
        flags=(*flags, *(f"stain_{i}_from_library" for i in range(n))),
    )


def _pooled_noise(pooled: Sequence[FloatArray], stain_matrix: FloatArray) -> float:
    """Median over tiles, so that a drift over the slide does not count as noise."""
    if len(stain_matrix) != 2:
        return 0.0
    plane = Plane.of(stain_matrix)
    values = [across_noise(y, plane) for y in pooled if len(y) >= MIN_CELLS]
    return float(np.median(values)) if values else 0.0


def _pixels(tile: TileInput, stain_matrix: FloatArray) -> FloatArray:
    """(N, K) q under S0 of the tile's own tissue pixels."""
    y = tile.corrected[:, tile.own_tissue]
    q = unmix(torch.from_numpy(y), torch.from_numpy(stain_matrix), torch.zeros(3))
    return np.asarray(q.numpy())


def tile_noise(tile: TileInput) -> float:
    """Standard deviation of pixel noise in OD: the quiet fifth of the tile's diagonal differences.

    Real detail also differs from pixel to pixel, so only the quietest squares count.
    """
    od = np.minimum(tile.corrected, SATURATED_OD)
    d = (od[:, :-1, :-1] - od[:, :-1, 1:] - od[:, 1:, :-1] + od[:, 1:, 1:]) / 2
    inside = tile.own_tissue[:-1, :-1]
    side = 16
    h, w = (s // side for s in inside.shape)
    if not h or not w:
        return UNKNOWN_NOISE_OD
    power = (d[:, : h * side, : w * side] ** 2).mean(0).reshape(h, side, w, side).mean((1, 3))
    full = inside[: h * side, : w * side].reshape(h, side, w, side).all((1, 3))
    return float(np.sqrt(np.quantile(power[full], 0.2))) if full.any() else UNKNOWN_NOISE_OD


def _train(
    tiles: Sequence[TileInput],
    s0: FloatArray,
    m0: FloatArray,
    mean_q: FloatArray,
    preset: Preset,
    steps: int,
    seed: int,
    device: torch.device,
    executor: Executor,
) -> tuple[dict[str, Tensor], float]:
    """The slide-level network: S0, M0 and glass held, weights trained on random crops."""
    n = len(s0)
    spec = preset.network(n)
    generator = torch.Generator().manual_seed(seed)
    odds = torch.from_numpy(np.clip(mean_q / m0, 0.02, 0.98).astype(np.float32))
    weights = network.init_weights(spec, [generator], torch.logit(odds)[None])
    od, valid, background = batch(list(tiles), preset.shrink, device)
    crop = min(CROP, min(od.shape[2:]) // spec.multiple * spec.multiple)
    inputs = od - background[:, :, None, None]
    weights = {k: v.to(device) for k, v in weights.items()}
    probe = min(len(tiles), 8)
    weights = network.calibrate_weights(weights, inputs[:probe, :, :crop, :crop], spec)
    trained = [v.requires_grad_() for v in weights.values()]
    named = dict(zip(weights, trained, strict=True))
    anchor = optimise.Physics(
        torch.from_numpy(s0).to(device)[None], torch.from_numpy(m0).to(device)[None], background[:1]
    )
    groups = optimise.parameter_groups(named, RATE, spec)
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [g["lr"] for g in groups], total_steps=max(steps, 2), pct_start=0.15
    )

    def gradient(place: tuple[int, int, int]) -> tuple[list[Tensor], Tensor]:
        t, y, x = place
        window = (slice(t, t + 1), slice(None), slice(y, y + crop), slice(x, x + crop))
        physics = optimise.Physics(
            anchor.stain_matrix, anchor.spectral_correction, background[t : t + 1]
        )
        c = optimise.maps(named, inputs[window], spec, n)
        total, fit = optimise.objective(c, od[window], valid[window], physics, physics, preset)
        return list(torch.autograd.grad(total.sum(), trained)), fit.detach().sum()

    history: list[Tensor] = []
    for _ in range(steps):
        places = [
            (
                int(torch.randint(len(tiles), (), generator=generator)),
                int(torch.randint(od.shape[2] - crop + 1, (), generator=generator)),
                int(torch.randint(od.shape[3] - crop + 1, (), generator=generator)),
            )
            for _ in range(CROPS_PER_STEP)
        ]
        results = list(executor.map(gradient, places))
        for i, p in enumerate(trained):
            # summed in the order of the crops, whichever thread was first
            p.grad = torch.stack([g[i] for g, _ in results]).sum(0)
        optimiser.step()
        schedule.step()
        history.append(torch.stack([fit for _, fit in results]).mean())
    loss = float(torch.stack(history[-10:]).mean())
    return {k: v.detach() for k, v in named.items()}, loss


def _estimate_prior_weight(
    tiles: Sequence[TileInput],
    weights: dict[str, Tensor],
    s0: FloatArray,
    m0: FloatArray,
    noise: float,
    preset: Preset,
    device: torch.device,
) -> FloatArray:
    """Lambda_n = noise variance / variance of the prior map's error (decision 19).

    The error of the network's map is what the closed form sees beyond its own noise; on clean
    tiles it is many times the noise, and Lambda all but vanishes.
    """
    n = len(s0)
    spec = preset.network(n)
    stain_matrix = torch.from_numpy(s0)
    own_noise = noise**2 * np.diag(np.linalg.pinv(s0.astype(np.float64) @ s0.T.astype(np.float64)))
    errors = []
    for tile in list(tiles)[:6]:
        od, _, background = batch([tile], preset.shrink, device)
        with torch.no_grad():
            c = optimise.maps(weights, od - background[:, :, None, None], spec, n)
        q = c.cpu()[0] * torch.from_numpy(m0)[:, None, None]
        full = F.interpolate(q[None], size=tile.od.shape[1:], mode="bilinear")[0]
        y = torch.from_numpy(tile.od)
        closed = unmix(y, stain_matrix, torch.from_numpy(tile.background))
        inside = torch.from_numpy(tile.tissue)
        if inside.any():
            errors.append(((closed - full)[:, inside] ** 2).mean(1).numpy())
    if not errors:
        return np.zeros(n, np.float32)
    seen = np.mean(errors, 0)
    error = np.maximum(seen - own_noise, 0.1 * seen)
    return np.asarray(noise**2 / np.maximum(error, 1e-6), np.float32)
