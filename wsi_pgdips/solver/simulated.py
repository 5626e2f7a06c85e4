"""The pixels that the slide's network is trained on: their range, and how wrong the closed form is.

Both come from simulated pixels whose concentrations are known. They say what the network has seen,
and by how much noise explains a change of the closed form (decision 51).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsi_pgdips.optics.physics import compose_od
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import Acquisition, BoolArray, FloatArray
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.acquisition import off_plane
from wsi_pgdips.solver.degrade import degrade

Pair = tuple[Tensor, Tensor]
BOUND_MARGIN = 0.1  # share of the range of simulated pixels by which real ones may lie beyond it
LIMIT_QUANTILE = 0.99  # of the errors of simulated windows, up to which a change is kept whole
TILT = 0.02  # of the simulated stain vectors out of their plane, about a degree
FAR = 1.25  # times the largest contrast of simulated windows: the closed form stands
_LIMIT_RUNS = 12


@dataclass(frozen=True)
class Truth:
    """Concentrations to draw crops from: (N, H, W) q, (H, W) tissue, and (3,) local B."""

    q: FloatArray
    tissue: BoolArray
    background: FloatArray


@dataclass(frozen=True)
class SimulatedRange:
    """The values that simulated pixels have, and the errors of the closed form on them.

    Attributes:
        bound: (2, 3) the lowest and the highest coordinates, with a margin.
        limit: (2, N, K) of ``slide_network.allowed``. error: (N,) root mean square, OD.
    """

    bound: FloatArray
    limit: FloatArray
    error: FloatArray


def tilted(rows: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Tilt stain vectors out of their plane at random, as estimates are; amounts do not change.

    Otherwise the network would take what lies off the plane for traces of the JPEG.
    """
    n = len(rows)
    if n >= 3:
        return rows
    directions = off_plane(rows)
    amounts = rng.normal(0, TILT, (n, len(directions)))
    return np.asarray(rows + amounts @ directions, np.float32)


def simulate(
    truths: Sequence[Truth], rows: FloatArray, acquisition: Acquisition, executor: Executor
) -> list[Pair]:
    """Make glass-corrected pixels of known concentrations; no random choice of the seed is in them.

    Returns:
        (3, h, w) optical density and (N, h, w) q of each truth, sides multiples of 4.
    """
    side = slide_network.MULTIPLE

    def pair(numbered: tuple[int, Truth]) -> Pair:
        index, truth = numbered
        h, w = (s // side * side for s in truth.tissue.shape)
        q, glass = truth.q[:, :h, :w], truth.background
        rng = np.random.default_rng([index])
        od = degrade(compose_od(q, tilted(rows, rng), glass), acquisition, rng)
        return torch.from_numpy(od - glass[:, None, None]), torch.from_numpy(q)

    return list(executor.map(pair, enumerate(truths)))


def simulated_range(pairs: Sequence[Pair], rows: FloatArray, executor: Executor) -> SimulatedRange:
    """Measure the pixels that the network learns from."""
    matrix = torch.from_numpy(rows)

    def measured(pair: Pair) -> list[Tensor]:
        od, q = pair
        x = slide_network.coordinates(od, matrix)
        error = unmix(od, matrix, torch.zeros(3)) - q
        size, contrast = slide_network.local_size(error[None], x[None, : len(rows)])
        return [x.flatten(1), size[0].flatten(1), contrast[0].flatten(1), error.flatten(1)]

    parts = zip(*executor.map(measured, pairs), strict=True)
    x, size, contrast, error = (torch.cat(part, 1).numpy() for part in parts)
    low, high = x.min(1), x.max(1)
    margin = BOUND_MARGIN * (high - low)
    limit = np.stack([_limit(*of_stain) for of_stain in zip(size, contrast, strict=True)], 1)
    return SimulatedRange(
        np.stack([low - margin, high + margin]), limit, np.sqrt((error**2).mean(1))
    )


def merit(
    weights: slide_network.Weights,
    pairs: Sequence[Pair],
    rows: FloatArray,
    scale: float,
    device: torch.device,
    executor: Executor,
) -> FloatArray:
    """Compute how far a network has learned anything, from simulated pixels.

    Returns:
        (N,) 0 where it is no better than the closed form, 1 where half the squared error is gone.
    """
    matrix = torch.from_numpy(rows).to(device)

    def powers(pair: Pair) -> FloatArray:
        """Sums of squared errors of the network and of the closed form, (2, N)."""
        od, q = (part.to(device) for part in pair)
        with torch.no_grad():
            both = slide_network.estimate(weights, od, matrix, torch.zeros_like(od[:, 0, 0]), scale)
        return np.stack([(m.clamp_min(0) - q).square().sum((1, 2)).cpu().numpy() for m in both])

    left, noise = np.stack(list(executor.map(powers, pairs))).sum(0, dtype=np.float64)
    return np.asarray(np.clip(2 * (1 - left / np.maximum(noise, 1e-12)), 0, 1), np.float32)


def _limit(size: FloatArray, contrast: FloatArray) -> FloatArray:
    """Tabulate the size that nearly all windows stay below, by contrast: (2, K).

    All columns but the last two are made of the same number of windows. Up to the largest contrast
    the size stays the same. Beyond it nothing was learned, and hardly any change is allowed.
    """
    runs = np.array_split(np.argsort(contrast, kind="stable"), _LIMIT_RUNS)
    most = [np.quantile(size[run], LIMIT_QUANTILE) for run in runs]
    most = np.maximum.accumulate(np.maximum(most, slide_network.LEAST_LIMIT)).tolist()
    largest = float(contrast.max())
    at = [*(float(np.median(contrast[run])) for run in runs), largest, FAR * largest]
    apart = np.arange(len(at)) * 1e-6  # no two are the same
    return np.stack([at + apart, [*most, most[-1], slide_network.LEAST_LIMIT]]).astype(np.float32)
