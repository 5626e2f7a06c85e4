"""Training of the slide's network on the slide's own tissue, degraded once more (decision 22).

The true concentrations of a slide are unknown, but the effect of a scanner on them is known. So the
closed form's maps of sampled tiles serve as the truth, mostly at half the resolution, where noise
and lost chroma have averaged out, and sometimes at full resolution, for the tissue's own scale. The
forward model turns them into pixels, with noise and JPEG, and the network learns the inverse. No
other data is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from wsi_pgdips.optics.physics import compose_od
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import Acquisition, BoolArray, FloatArray, SlidePrior
from wsi_pgdips.solver import optimise, slide_network
from wsi_pgdips.solver.acquisition import estimate_acquisition
from wsi_pgdips.solver.degrade import degrade
from wsi_pgdips.solver.presets import NETWORK_ONLY, Preset
from wsi_pgdips.solver.tile import TileInput

BETA2, EPSILON = 0.99, 1e-8
WARM_SHARE = 0.1  # share of the steps in which the rate rises
FIRST, LAST = 1 / 25, 1 / 25e4  # rates relative to the highest rate
MOMENTUM = (0.95, 0.85)  # beta1 at the lowest and at the highest rate
CROP = 96  # pixels, side of a training crop, a multiple of 4
GROUPS, CROPS_PER_GROUP = 2, 1  # a group is computed at once; independent of the threads
INITIAL_SEED = 0  # every run starts from the same weights, so that seeds differ less (decision 59)
FULL_RESOLUTION_SHARE = 0.15  # of the crops
MIN_TISSUE = 0.3  # share of a crop
_TRIES = 12
_CHECKED_TILES = 4
OnStep = Callable[[], None]
# truth and pixels of a group, (T, N, h, w) and (T, 3, h, w), and its generator for further draws
_Crops = tuple[FloatArray, FloatArray, np.random.Generator]


class OneCycleAdam:
    """Adam with one cycle of rates, for a number of steps that is known in advance.

    It calls torch's function ``adam``. Making a ``torch.optim.Adam`` would import torch's compiler,
    which takes two seconds and memory without any use.

    Args:
        parameters: tensors, changed in place. rate: the highest. steps: of the whole training.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float, steps: int) -> None:
        self._parameters = list(parameters)
        self._rate, self._steps, self._done = rate, max(steps, 2), 0
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._counts = [torch.zeros((), device=p.device) for p in self._parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step.

        Args:
            gradients: of each parameter, in order.
        """
        rate, beta1 = one_cycle(self._done, self._steps, self._rate)
        self._done += 1
        adam(
            self._parameters,
            list(gradients),
            self._means,
            self._squares,
            [],
            self._counts,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=BETA2,
            lr=rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )


def one_cycle(step: int, steps: int, rate: float) -> tuple[float, float]:
    """The (rate, beta1) of a step (Smith 2018).

    The rate rises by half a cosine and then falls; the momentum does the opposite.

    Args:
        step: from 0. steps: of the training. rate: the highest.
    """
    top = WARM_SHARE * steps - 1
    slow, fast = MOMENTUM
    if step < top:
        return _between(FIRST * rate, rate, step / top), _between(slow, fast, step / top)
    share = (step - top) / (steps - 1 - top)
    return _between(rate, LAST * rate, share), _between(fast, slow, share)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)


@dataclass(frozen=True)
class _Truth:
    """Concentrations to draw crops from: (N, H, W) q, (H, W) tissue, and (3,) local B."""

    q: FloatArray
    tissue: BoolArray
    background: FloatArray


def train_slide_network(
    tiles: Sequence[TileInput],
    prior: SlidePrior,
    preset: Preset,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    executor: Executor,
    on_step: OnStep = lambda: None,
) -> SlidePrior | None:
    """Train the slide's network on sampled tiles.

    Args:
        tiles: at least one with tissue. prior: the slide's S0 and M0. preset: weights of the
            PGDIPS loss on real crops, 0 for none. steps: of Adam. seed: of the slide.
        device: for the training. executor: threads that share the work; their number does not
            change the result.
        on_step: called after each step.

    Returns:
        The prior with the ``network``, its ``loss`` (the mean over the last steps), Lambda in
        ``prior_weight``, and the ``acquisition`` that degraded the pixels. None if the training did
        not stay finite.
    """
    rows = prior.stain_matrix
    n, scale = len(rows), float(prior.spectral_correction.mean())
    closed = executor.map(lambda tile: _closed(tile, rows), tiles)
    full = [_Truth(q, t.tissue, t.background) for q, t in zip(closed, tiles, strict=True)]
    half = [_Truth(_halved(s.q), _halved(s.tissue[None])[0] > 0.5, s.background) for s in full]
    busy = [s.tissue.any() for s in full]
    full, half = ([s for s, some in zip(x, busy, strict=True) if some] for x in (full, half))
    lit = [t for t, some in zip(tiles, busy, strict=True) if some]
    clean = [(compose_od(s.q, rows, np.zeros(3, np.float32)), s.tissue) for s in half]
    acquisition = estimate_acquisition(lit, clean, rows, executor)
    generator = torch.Generator().manual_seed(INITIAL_SEED)
    weights = {
        k: v.to(device).requires_grad_()
        for k, v in slide_network.init_weights(n, generator).items()
    }
    trained = list(weights.values())
    optimiser = OneCycleAdam(trained, preset.learning_rate, steps)
    matrix = torch.from_numpy(rows).to(device)
    simulated = (half, full)
    # out of focus, only half the resolution is sharp
    full_share = 0.0 if acquisition.defocus else FULL_RESOLUTION_SHARE
    side = min(CROP, *(s // 4 * 4 for one in half for s in one.tissue.shape))

    def crops(step: int, group: int) -> _Crops:
        rng = np.random.default_rng([seed, step, group])
        truth, pixels = [], []
        for _ in range(CROPS_PER_GROUP):
            q, glass = _crop(simulated[int(rng.random() < full_share)], side, rng)
            od = degrade(compose_od(q, rows, glass), acquisition, rng)
            truth.append(q)
            pixels.append(od - glass[:, None, None])
        return np.stack(truth), np.stack(pixels), rng

    def gradient(drawn: Future[_Crops]) -> tuple[list[Tensor], Tensor, Tensor]:
        *pair, rng = drawn.result()
        truth, pixels = (torch.from_numpy(part).to(device) for part in pair)
        found, closed = slide_network.estimate(
            weights, pixels, matrix, torch.zeros(3, device=device), scale
        )
        error = ((found - truth) ** 2).mean()
        total = error / scale**2
        if preset.alpha or preset.beta:
            total = total + _pgdips(weights, lit, prior, preset, side, rng, device)
        seen = slide_network.extent(pixels, matrix, truth - closed, scale)
        return list(torch.autograd.grad(total, trained)), error.detach(), seen

    def draw(step: int) -> list[Future[_Crops]]:
        return [executor.submit(crops, step, group) for group in range(GROUPS)]

    history: list[Tensor] = []
    extents: list[Tensor] = []
    drawn = draw(0)
    for step in range(steps):
        running = [executor.submit(gradient, group) for group in drawn]
        # queued behind them, for any thread that is idle before the end of the step
        drawn = draw(step + 1) if step + 1 < steps else []
        results = [future.result() for future in running]
        # summed in the order of the groups, whichever thread finished first
        by_weight = zip(*(gradients for gradients, *_ in results), strict=True)
        optimiser.step([torch.stack(of_groups).mean(0) for of_groups in by_weight])
        history.append(torch.stack([error for _, error, _ in results]).mean())
        extents += [seen for *_, seen in results]
        on_step()
    final = {k: v.detach() for k, v in weights.items()}
    low, high = torch.stack(extents, 1)
    final[slide_network.LOW], final[slide_network.HIGH] = low.amin(0), high.amax(0)
    loss = float(torch.stack(history[-20:]).mean())
    if not np.isfinite(loss) or not all(bool(torch.isfinite(v).all()) for v in final.values()):
        return None
    prior_weight = estimate_prior_weight(lit, final, prior, acquisition, scale, device, executor)
    arrays = {k: v.cpu().numpy() for k, v in final.items()}
    return replace(
        prior, prior_weight=prior_weight, network=arrays, loss=loss, acquisition=acquisition
    )


def _closed(tile: TileInput, rows: FloatArray) -> FloatArray:
    """The closed form of a tile, (N, H, W); what is denser than tissue but none, as fill, is 0."""
    q = unmix(torch.from_numpy(tile.od), torch.from_numpy(rows), torch.from_numpy(tile.background))
    maps = np.asarray(q.numpy())
    if tile.tissue.any():
        densest = maps[:, tile.tissue].max(1)[:, None, None]
        maps *= ~((maps > densest).any(0) & ~tile.tissue)
    return maps


def _halved(a: FloatArray | BoolArray) -> FloatArray:
    """Average 2x2 pixels: (C, H, W) -> (C, H/2, W/2)."""
    return np.asarray(F.avg_pool2d(torch.from_numpy(np.asarray(a, np.float32))[None], 2)[0].numpy())


def _crop(
    truths: Sequence[_Truth], side: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw a crop with tissue, turned at random: (N, side, side) q, and the local B (3,)."""
    for _ in range(_TRIES):
        truth = truths[int(rng.integers(len(truths)))]
        h, w = truth.tissue.shape
        y, x = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
        own = np.s_[y : y + side, x : x + side]
        if truth.tissue[own].mean() >= MIN_TISSUE:
            break
    q = np.rot90(truth.q[(slice(None), *own)], int(rng.integers(4)), (1, 2))
    q = q[:, :, ::-1] if rng.random() < 0.5 else q
    return np.ascontiguousarray(q), truth.background


def _pgdips(
    weights: dict[str, Tensor],
    tiles: Sequence[TileInput],
    prior: SlidePrior,
    preset: Preset,
    side: int,
    rng: np.random.Generator,
    device: torch.device,
) -> Tensor:
    """The published loss on a crop of real pixels: alpha reconstruction + beta exclusion."""
    tile = tiles[int(rng.integers(len(tiles)))]
    y, x = (int(rng.integers(s - side + 1)) for s in tile.od.shape[1:])
    od = (tile.od - tile.background[:, None, None])[:, y : y + side, x : x + side]
    real = torch.from_numpy(np.ascontiguousarray(od)).to(device)[None]
    matrix = torch.from_numpy(prior.stain_matrix).to(device)
    m = torch.from_numpy(prior.spectral_correction).to(device)
    nothing = torch.zeros(3, device=device)
    q, _ = slide_network.estimate(weights, real, matrix, nothing, float(m.mean()))
    model = optimise.mixture(q, matrix[None], nothing[None])
    fit = optimise.reconstruction(real, model, torch.ones_like(real[:, :1]))
    shared = optimise.exclusion((q / m[:, None, None]).clamp(0, 1))
    return (preset.alpha * fit + preset.beta * shared).sum()


def estimate_prior_weight(
    tiles: Sequence[TileInput],
    weights: dict[str, Tensor],
    prior: SlidePrior,
    acquisition: Acquisition,
    scale: float,
    device: torch.device,
    executor: Executor,
) -> FloatArray:
    """Estimate Lambda_n = noise variance of the closed form / squared error of the network.

    The network's maps differ from the closed form's by the noise that it removed. If its maps are
    degraded once more, it removes the same amount again, provided that the tissue is like in
    training. Any more that it removes from the real pixels is not noise and counts as its own
    error.
    """
    rows = prior.stain_matrix
    matrix = torch.from_numpy(rows).to(device)

    def squares(numbered: tuple[int, TileInput]) -> FloatArray:
        """Sums over a tile's tissue, (3, N): removed, removed once more, noise."""
        index, tile = numbered
        glass = torch.from_numpy(tile.background).to(device)

        def both(od: FloatArray) -> tuple[FloatArray, FloatArray]:
            with torch.no_grad():
                found = slide_network.estimate(
                    weights, torch.from_numpy(od).to(device), matrix, glass, scale
                )
            return tuple(t.cpu().numpy() for t in found)  # type: ignore[return-value]

        q, closed = both(tile.od)
        q = np.maximum(q, 0)
        rng = np.random.default_rng([index])
        again, closed_again = both(degrade(compose_od(q, rows, tile.background), acquisition, rng))
        pairs = ((closed, q), (closed_again, np.maximum(again, 0)), (closed_again, q))
        return np.stack([((a - b)[:, tile.tissue] ** 2).sum(1) for a, b in pairs])

    sums = executor.map(squares, enumerate(tiles[:_CHECKED_TILES]))
    taken, expected, noise = np.stack(list(sums)).sum(0, dtype=np.float64)
    gain = np.diag(np.linalg.pinv(rows.astype(np.float64) @ rows.T.astype(np.float64)))
    excess = np.maximum(taken - expected, noise / NETWORK_ONLY)
    weight = noise / np.maximum(excess * gain, 1e-12)
    return np.asarray(np.minimum(weight, NETWORK_ONLY), np.float32)
