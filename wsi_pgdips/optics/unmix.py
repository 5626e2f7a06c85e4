"""Closed-form unmixing per pixel: non-negative least squares, with or without a prior map.

    q = argmin_{q >= 0} |OD - B - q S|^2 + (q - q_prior)' Lambda (q - q_prior)

This is the data-consistent render; Lambda = 0 is plain NNLS. It works on torch tensors, so that it
runs on the solver's device, and uses only additions, products and comparisons of whole maps.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

MAX_STAINS = 8
_RIDGE = 1e-6


def unmix(
    od: Tensor,
    stain_matrix: Tensor,
    background: Tensor,
    prior_weight: Tensor | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """Solve exactly per pixel, by enumerating the sets of stains that may be present.

    Args:
        od: (3, ...) optical density, float32.
        stain_matrix: (N, 3) unit rows, or (N, 3, ...) if they vary per pixel.
        background: (3,), or (3, ...).
        prior_weight: (N,) Lambda >= 0, or None.
        prior: (N, ...) q_prior; required with ``prior_weight``.

    Returns:
        (N, ...) q >= 0 in OD along the unit vectors, float32.

    Raises:
        ValueError: more than 8 stains (the enumeration grows as 2**N), or Lambda without a prior
            map.
    """
    n = stain_matrix.shape[0]
    if n > MAX_STAINS:
        raise ValueError(f"at most {MAX_STAINS} stains can be unmixed, got {n}")
    if prior_weight is not None and prior is None:
        raise ValueError("prior_weight pulls towards a prior map, and none was given")
    weight = torch.zeros(n, device=od.device) if prior_weight is None else prior_weight
    # with more stains than channels the Gram matrix is singular: a small ridge selects the
    # solution of least norm
    ridge = _RIDGE if n <= 3 else 1e-3
    gram = [[dot(stain_matrix[i], stain_matrix[j]) for j in range(i + 1)] for i in range(n)]
    moment = _moments(od, stain_matrix, background)
    for i in range(n):
        gram[i][i] = gram[i][i] + (weight[i] + ridge)
        if prior is not None:
            moment[i] = torch.addcmul(moment[i], weight[i], prior[i])
    if n == 1:
        return (moment[0] / gram[0][0]).clamp_min(0).unsqueeze(0)
    if n == 2:
        return _two(gram, moment)
    return _subsets(gram, moment)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The dot product over the channels of (3, ...): plane by plane it is many times as fast."""
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def cross(a: Tensor, b: Tensor) -> Tensor:
    """The cross product over the channels of (3, ...), plane by plane: (3, ...)."""
    pairs = ((1, 2), (2, 0), (0, 1))
    return torch.stack([torch.addcmul(a[i] * b[j], a[j], b[i], value=-1) for i, j in pairs])


def _moments(od: Tensor, rows: Tensor, background: Tensor) -> list[Tensor]:
    """The dot product of OD - B with each row, as N maps."""
    extra = (1,) * (od.ndim - 1)
    y = od - (background.reshape(3, *extra) if background.ndim == 1 else background)
    if rows.ndim == 2:
        return list((rows @ y.reshape(3, -1)).reshape(len(rows), *od.shape[1:]))
    return [dot(row, y) for row in rows]


def _two(gram: list[list[Tensor]], moment: list[Tensor]) -> Tensor:
    """The solution for two stains, (2, ...): each is the best given the other.

    The problem is strictly convex. If the first stain is negative, it is set to zero and the second
    follows. This needs no selection between maps, which would take a CPU longer than all the rest.
    """
    (a,), (b, c) = gram
    u, v = moment
    free = torch.addcmul(c * u, b, v, value=-1) / (a * c - b * b)
    second = (torch.addcmul(v, b, free.clamp_min(0), value=-1) / c).clamp_min(0)
    first = (torch.addcmul(u, b, second, value=-1) / a).clamp_min(0)
    return torch.stack([first, second])


def _subsets(gram: list[list[Tensor]], moment: list[Tensor]) -> Tensor:
    n = len(moment)
    best = torch.zeros_like(moment[0])  # gain of q = 0
    out = [torch.zeros_like(moment[0]) for _ in range(n)]
    for size in range(1, n + 1):
        for subset in combinations(range(n), size):
            solution = _cholesky_solve(gram, moment, subset)
            gain = sum((moment[i] * q for i, q in zip(subset, solution, strict=True)), best * 0)
            feasible = solution[0] >= 0
            for q in solution[1:]:
                feasible = feasible & (q >= 0)
            # a weight instead of torch.where, which takes a CPU ten times as long
            better = (feasible & (gain > best)).to(best.dtype)
            best = torch.lerp(best, gain, better)
            for i in range(n):
                value = solution[subset.index(i)] if i in subset else torch.zeros_like(best)
                out[i] = torch.lerp(out[i], value, better)
    return torch.stack(out)


def _cholesky_solve(
    gram: list[list[Tensor]], moment: list[Tensor], subset: tuple[int, ...]
) -> list[Tensor]:
    k = len(subset)
    low: list[list[Tensor]] = [[] for _ in range(k)]
    z: list[Tensor] = []
    for i in range(k):
        for j in range(i + 1):
            s = gram[subset[i]][subset[j]]
            for m in range(j):
                s = s - low[i][m] * low[j][m]
            low[i].append(s / low[j][j] if j < i else s.clamp_min(1e-12).sqrt())
        s = moment[subset[i]]
        for m in range(i):
            s = s - low[i][m] * z[m]
        z.append(s / low[i][i])
    q = list(z)
    for i in reversed(range(k)):
        s = z[i]
        for m in range(i + 1, k):
            s = s - low[m][i] * q[m]
        q[i] = s / low[i][i]
    return q
