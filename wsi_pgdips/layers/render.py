"""The data-consistent render of one tile: q under the blended fields (decision 19)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray


@dataclass(frozen=True)
class RenderedTile:
    """(N, h, w) q in OD and (3, h, w) signed residual OD - B - q S."""

    concentration: FloatArray
    residual: FloatArray


def render_tile(
    od: FloatArray,
    stain_matrix: FloatArray,
    background: FloatArray,
    prior_weight: FloatArray | None = None,
    prior: FloatArray | None = None,
    *,
    device: str = "cpu",
) -> RenderedTile:
    """Render one tile, each pixel on its own.

    Args:
        od: (3, h, w). stain_matrix: (N, 3, h, w) or (N, 3). background: (3, h, w) or (3,).
        prior_weight: (N,) Lambda, and prior: (N, h, w) map it pulls towards; None for plain
            non-negative least squares. device: where to compute.
    """

    def tensor(a: FloatArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).to(device)

    y, s, b = tensor(od), tensor(stain_matrix), tensor(background)
    weight = None if prior_weight is None else tensor(prior_weight)
    anchor = None if prior is None else tensor(prior)
    with torch.no_grad():
        q = unmix(y, s, b, weight, anchor)
        rows = s if s.ndim == 4 else s[:, :, None, None]
        model = (q[:, None] * rows).sum(0)
        residual = y - (b if b.ndim == 3 else b[:, None, None]) - model
    return RenderedTile(q.cpu().numpy(), residual.cpu().numpy())


def cross_faded(
    maps: dict[tuple[int, int], npt.NDArray[np.float16]],
    fade: FloatArray,
    side: int,
) -> FloatArray:
    """One tile's prior map with its neighbours' faded in.

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
