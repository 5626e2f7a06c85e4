"""The slide's network: q from optical density, corrected for noise and JPEG (decision 22).

It is a small U-Net over 2x2 groups of pixels, one for all tiles of a slide. Its input is each pixel
in the coordinates of its own stain vectors (the amounts along them, and the rest outside them). Its
output is a correction to the closed form. So it follows the fields S(x) and B(x) without having
them as input. It looks no further than ``REACH`` pixels, so tiles with that halo give the same maps
as the whole slide.

Out of focus, nuclei bleed into their surroundings. No pixel is pure then, and the edges of the cone
lean inwards. So the network's correction is put back into the pixels, and edges are estimated from
those (decision 32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsi_pgdips.optics.unmix import cross, dot, unmix
from wsi_pgdips.records import SlidePrior
from wsi_pgdips.solver import optimise
from wsi_pgdips.solver.tile import TileInput

Weights = Mapping[str, Tensor]
MAX_STAINS = 3  # more stains than channels have no coordinates of their own
WIDTH = 24
MULTIPLE = 4  # sides of its input
REACH = 24  # pixels; a tile's halo must be at least as large
LOW, HIGH = "low", "high"  # bounds of input and correction, (3 + N,): what training saw
_SLOPE = 0.1
_FLAT = 1e-4  # least volume of three unit rows that counts


def layer_shapes(n: int) -> dict[str, tuple[int, int, int]]:
    """The convolutions for n stains: name -> (out channels, in channels, kernel)."""
    w = WIDTH
    return {
        "fine0": (w, 12, 3),
        "fine1": (w, w, 3),
        "down": (2 * w, w, 2),
        "coarse0": (2 * w, 2 * w, 3),
        "coarse1": (2 * w, 2 * w, 3),
        "coarse2": (2 * w, 2 * w, 3),
        "up": (4 * w, 2 * w, 1),
        "join": (w, 2 * w, 3),
        "head": (4 * n, w, 1),
    }


def init_weights(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Make initial ``X.weight`` and ``X.bias`` on the CPU.

    The head is zero, so that q is the closed form at first.
    """
    weights: dict[str, Tensor] = {}
    for name, (out, inp, k) in layer_shapes(n).items():
        bound = math.sqrt(6.0 / ((1 + _SLOPE**2) * inp * k * k))
        fresh = (torch.rand(out, inp, k, k, generator=generator) * 2 - 1) * bound
        weights[f"{name}.weight"] = fresh * (name != "head")
        weights[f"{name}.bias"] = torch.zeros(out)
    return weights


def forward(weights: Weights, x: Tensor) -> Tensor:
    """Compute the correction to q.

    Args:
        weights: from :func:`init_weights`. x: (T, 3, H, W) coordinates, sides multiples of 4.

    Returns:
        (T, N, H, W), in the unit of ``x``.
    """
    y = F.pixel_unshuffle(x, 2)  # (T, 12, H/2, W/2)
    y = y.contiguous(memory_format=torch.channels_last)
    fine = _layer(_layer(y, weights, "fine0"), weights, "fine1")
    y = _act(F.conv2d(fine, weights["down.weight"], weights["down.bias"], stride=2))
    y = y + _layer(_layer(y, weights, "coarse0"), weights, "coarse1")
    y = _layer(y, weights, "coarse2")
    y = F.pixel_shuffle(_layer(y, weights, "up"), 2)  # (T, w, H/2, W/2)
    y = _layer(torch.cat([fine, y], 1), weights, "join")
    y = F.conv2d(y, weights["head.weight"], weights["head.bias"])
    return F.pixel_shuffle(y, 2)


def estimate(
    weights: Weights, od: Tensor, stain_matrix: Tensor, background: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Estimate q of one or several tiles under their S and B.

    Args:
        weights: of the network. od: (T, 3, H, W) or (3, H, W). stain_matrix: (N, 3) unit rows, or
            (N, 3, H, W) if they vary. background: (3,), or (3, H, W). scale: OD that counts as one
            in the network.

    Returns:
        The network's q, which may be slightly negative, and the closed form (non-negative least
        squares), both (T, N, H, W) or (N, H, W) float32.
    """
    batched = od if od.ndim == 4 else od[None]
    planes = batched.transpose(0, 1)  # (3, T, H, W): unmix takes channels first
    rows = stain_matrix if stain_matrix.ndim == 2 else stain_matrix[:, :, None]
    glass = background if background.ndim == 1 else background[:, None]
    if rows.ndim > 2:
        rows = rows.expand(-1, -1, *planes.shape[1:])
        glass = glass.expand(*planes.shape)
    closed = unmix(planes, rows, glass).transpose(0, 1)
    corrected = planes - (glass if glass.ndim > 1 else glass[:, None, None, None])
    q = closed + _correction(weights, corrected, rows, scale)
    return (q, closed) if od.ndim == 4 else (q[0], closed[0])


def correction(weights: Weights, od: Tensor, stain_matrix: Tensor, scale: float) -> Tensor:
    """Compute the network's correction to the closed form of one tile.

    Args:
        weights, scale: as for :func:`estimate`. od: (3, H, W) glass-corrected.
        stain_matrix: (N, 3, H, W).

    Returns:
        (N, H, W) float32.
    """
    return _correction(weights, od[:, None], stain_matrix[:, :, None], scale)[0]


def _correction(weights: Weights, od: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Compute the correction of T tiles: (3, T, H, W) -> (T, N, H, W)."""
    x = coordinates(od, rows).transpose(0, 1) / scale
    if LOW not in weights:  # in training
        return _changed(weights, x) * scale
    low, high = (weights[name][:, None, None] for name in (LOW, HIGH))
    change = _changed(weights, x.clamp(low[:3], high[:3]))
    return change.clamp(low[3:], high[3:]) * scale


def _changed(weights: Weights, x: Tensor) -> Tensor:
    with optimise.autocast(x.device):
        return forward(weights, x).float()


def extent(od: Tensor, stain_matrix: Tensor, change: Tensor, scale: float) -> Tensor:
    """Return the least and the largest input and correction of crops.

    Args:
        od: (T, 3, H, W) glass-corrected. stain_matrix: (N, 3).
        change: (T, N, H, W) OD, the true correction. scale: OD that counts as one.

    Returns:
        (2, 3 + N), in the network's unit.
    """
    x = coordinates(od.transpose(0, 1), stain_matrix).transpose(0, 1)
    seen = torch.cat([x, change], 1) / scale
    return torch.stack([seen.amin((0, 2, 3)), seen.amax((0, 2, 3))])


def coordinates(od: Tensor, stain_matrix: Tensor) -> Tensor:
    """The coordinates of optical density along the stain vectors, completed to a basis.

    Args:
        od: (3, ...) glass-corrected. stain_matrix: (N, 3) or (N, 3, ...), N at most 3.

    Returns:
        (3, ...) u with od = sum_i u_i R_i. The first N rows of R are the stain vectors, the others
        are unit vectors normal to them. So u_i of a stain is its unconstrained least squares.
    """
    extra = (1,) * (od.ndim - 1)
    rows = (
        stain_matrix if stain_matrix.ndim > 2 else stain_matrix.reshape(*stain_matrix.shape, *extra)
    )
    a = rows[0]
    if len(rows) == 2:
        return _of_two(od, a, rows[1])
    if len(rows) == 1:
        # any fixed direction off the stain works: no stain absorbs red and blue oppositely
        other = torch.tensor([1.0, 0.0, -1.0], device=od.device).reshape(3, *extra)
        b = other - dot(other, a) * a
        b = b * dot(b, b).rsqrt()
        c = cross(a, b)
    else:
        b, c = rows[1], rows[2]
    # a row is (3, 1, ...) if it is the same everywhere, and so are b and c
    bc, ca, ab = cross(b, c), cross(c, a), cross(a, b)
    volume = dot(a, bc)
    # a sum instead of torch.where, which takes a CPU ten times as long
    volume = volume + (volume.abs() < _FLAT) * (_FLAT - volume)
    return torch.stack([dot(od, d) / volume for d in (bc, ca, ab)])


def _of_two(od: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The coordinates for two stains: least squares, and the component along their unit normal."""
    aa, ab, bb = dot(a, a), dot(a, b), dot(b, b)
    along_a, along_b = dot(od, a), dot(od, b)
    # for unit rows this is also the squared length of their normal
    volume = torch.addcmul(aa * bb, ab, ab, value=-1).clamp_min(_FLAT**2)
    first = torch.addcmul(along_a * bb, along_b, ab, value=-1) / volume
    second = torch.addcmul(along_b * aa, along_a, ab, value=-1) / volume
    return torch.stack([first, second, dot(od, cross(a, b)) * volume.rsqrt()])


def _layer(x: Tensor, weights: Weights, name: str) -> Tensor:
    weight = weights[f"{name}.weight"]
    k = weight.shape[-1]
    if k > 1:
        x = F.pad(x, (k // 2,) * 4, mode="reflect")
    return _act(F.conv2d(x, weight, weights[f"{name}.bias"]))


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)


def needs_focus(prior: SlidePrior) -> bool:
    """Return whether a slide is out of focus and has a network that can improve it."""
    found = prior.acquisition
    return bool(prior.network) and found is not None and found.defocus > 0


def in_focus(tile: TileInput, prior: SlidePrior, device: torch.device) -> TileInput:
    """Make the tile with OD' = OD + sum_n (q_n of the network - q_n of the closed form) S0_n.

    The part outside the stains' plane does not change. If the slide is in focus or has no network,
    the tile itself is returned.
    """
    if not needs_focus(prior):
        return tile
    weights = {k: torch.from_numpy(v).to(device) for k, v in prior.network.items()}
    od, rows, glass = (
        torch.from_numpy(a).to(device) for a in (tile.od, prior.stain_matrix, tile.background)
    )
    with torch.no_grad():
        q, closed = estimate(weights, od, rows, glass, float(prior.spectral_correction.mean()))
        sharp = od + torch.einsum("nhw,nc->chw", q - closed, rows)
    return replace(tile, od=np.ascontiguousarray(sharp.cpu().numpy()))
