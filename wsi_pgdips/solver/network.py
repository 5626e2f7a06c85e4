"""The generator of one stain on one tile: a skip network ("deep image prior"), for many tiles at
once.

The architecture is the published one of PGDIPS and Double-DIP: five scales of 8-16-32-64-128
channels, 5x5 kernels, reflection padding, leaky ReLU, bilinear upsampling, skip branches, sigmoid
output. Weights have a leading axis T of problems: on a GPU, grouped convolutions compute T
independent problems in one launch. Each layer is normalised by its own statistics, as published:
batch norm with a batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
_SLOPE = 0.2
_EPS = 1e-5


@dataclass(frozen=True)
class NetworkSpec:
    """The shape of a generator.

    Attributes:
        inputs: input channels. outputs: output maps.
        channels: channels of the scales, finest first.
        skip: channels of each skip branch.
        kernel: odd kernel side.
    """

    inputs: int
    outputs: int
    channels: tuple[int, ...] = (8, 16, 32, 64, 128)
    skip: int = 4
    kernel: int = 5

    @property
    def multiple(self) -> int:
        """The input's sides must be multiples of this number."""
        return 1 << len(self.channels)


def layer_shapes(spec: NetworkSpec) -> dict[str, tuple[int, int, int]]:
    """The convolutions in order of use: name -> (out channels, in channels, kernel)."""
    shapes: dict[str, tuple[int, int, int]] = {}
    source = spec.inputs
    for i, width in enumerate(spec.channels):
        shapes[f"skip{i}"] = (spec.skip, source, 1)
        shapes[f"down{i}"] = (width, source, spec.kernel)
        shapes[f"deep{i}"] = (width, width, spec.kernel)
        source = width
    for i in reversed(range(len(spec.channels))):
        below = spec.channels[min(i + 1, len(spec.channels) - 1)]
        shapes[f"up{i}"] = (spec.channels[i], below + spec.skip, spec.kernel)
        shapes[f"mix{i}"] = (spec.channels[i], spec.channels[i], 1)
    shapes["head"] = (spec.outputs, spec.channels[0], 1)
    return shapes


def init_weights(
    spec: NetworkSpec, generators: list[torch.Generator], head_bias: Tensor | None = None
) -> dict[str, Tensor]:
    """Make initial weights for T problems on the CPU.

    Args:
        spec: the network.
        generators: T generators; a problem's weights depend only on its own generator.
        head_bias: (T, outputs) logits of the mean maps, or None for zero.

    Returns:
        name -> (T, ...) float32: ``X.weight``, ``X.bias``, ``X.gain`` per convolution X.
    """
    weights: dict[str, Tensor] = {}
    for name, (out, inp, k) in layer_shapes(spec).items():
        bound = math.sqrt(6.0 / ((1 + _SLOPE**2) * inp * k * k))
        rows = [(torch.rand(out, inp, k, k, generator=g) * 2 - 1) * bound for g in generators]
        weights[f"{name}.weight"] = torch.stack(rows)
        weights[f"{name}.bias"] = torch.zeros(len(generators), out)
        if name != "head":
            weights[f"{name}.gain"] = torch.ones(len(generators), out)
    weights["head.weight"] = weights["head.weight"] * 0.1
    if head_bias is not None:
        weights["head.bias"] = head_bias.clone().float()
    return weights


def _conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve (T, C, H, W) with (T, out, C, k, k): each problem has its own weights."""
    t, k = len(weight), weight.shape[-1]
    if k > 1:
        x = F.pad(x, (k // 2,) * 4, mode="reflect")
    if t == 1 or x.device.type == "cpu":  # grouped, it takes a CPU three times as long
        return torch.cat([F.conv2d(x[i : i + 1], weight[i], stride=stride) for i in range(t)])
    return grouped(x, weight, stride)


def grouped(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve T problems, each with its own weights, in one launch and without padding.

    Args:
        x: (T, C, H, W). weight: (T, out, C, k, k).
    """
    t, out, inp, k, _ = weight.shape
    y = F.conv2d(
        x.reshape(1, t * inp, *x.shape[2:]),
        weight.reshape(t * out, inp, k, k),
        stride=stride,
        groups=t,
    )
    return y.reshape(t, out, *y.shape[2:])


def _layer(x: Tensor, weights: Weights, name: str, stride: int) -> Tensor:
    y = _conv(x, weights[f"{name}.weight"], stride)
    gain, bias = (weights[f"{name}.{part}"].flatten() for part in ("gain", "bias"))
    # all channels of all problems as one image, so that each has its own statistics
    one = y.reshape(1, -1, *y.shape[2:])
    one = F.batch_norm(one, None, None, gain, bias, training=True, eps=_EPS)
    return F.leaky_relu(one, _SLOPE).reshape(y.shape)


def forward(weights: Weights, x: Tensor, spec: NetworkSpec) -> Tensor:
    """Compute the maps C in (0, 1).

    Args:
        weights: from :func:`init_weights`.
        x: (T, inputs, H, W); H and W multiples of ``spec.multiple``.
        spec: the network.

    Returns:
        (T, outputs, H, W) float32.

    Raises:
        ValueError: the sides are not multiples of ``spec.multiple``, or too small for reflection
            at the coarsest scale.
    """
    least = spec.multiple * (spec.kernel // 2 + 1)
    if any(side % spec.multiple or side < least for side in x.shape[2:]):
        raise ValueError(
            f"input sides must be multiples of {spec.multiple} and at least {least}, "
            f"got {tuple(x.shape[2:])}"
        )
    skips: list[Tensor] = []
    for i in range(len(spec.channels)):
        skips.append(_layer(x, weights, f"skip{i}", 1))
        x = _layer(x, weights, f"down{i}", 2)
        x = _layer(x, weights, f"deep{i}", 1)
    for i in reversed(range(len(spec.channels))):
        x = F.interpolate(x, size=skips[i].shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat([skips[i], x], 1)
        x = _layer(x, weights, f"up{i}", 1)
        x = _layer(x, weights, f"mix{i}", 1)
    logits = _conv(x, weights["head.weight"], 1) + weights["head.bias"][:, :, None, None].to(
        x.dtype
    )
    return torch.sigmoid(logits.float())
