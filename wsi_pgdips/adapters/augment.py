"""Stain augmentation in optical density: other dyes, amounts and glass, not other hues."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.normalized_slide import find_reference
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.physics import I0, OD_MAX
from wsi_pgdips.optics.unmix import unmix


class StainAugment(torch.nn.Module):
    """A random change of S, M, B and C of an image whose look is known.

    With OD = B + q S + r, r the residual, an image becomes

        OD' = B + dB + q' S' + r        q' = g M (q / M)^c

    S' are the vectors S, each turned by N(0, sigma_s_deg) degrees in a random direction (and cut
    off at 0: nothing absorbs less than nothing); g = exp N(0, sigma_m) and c = exp N(0, sigma_c)
    are a gain and a gamma per stain, dB is N(0, sigma_b) per colour channel. All sigmas 0 give the
    image back.

    Takes and gives back a PIL image, or a (3, H, W) or (B, 3, H, W) tensor, uint8 or float in
    [0, 1], each image of a batch with its own draw; so it stands in a ``torchvision`` ``Compose``.

    Args:
        look: of the images: ``NormalizedSlide(...).look`` for a slide's own pixels, the reference
            (object, name or path) for normalised ones.
        sigma_s_deg: degrees. sigma_m, sigma_c: of the logarithm. sigma_b: OD.
        p: probability that an image is changed at all.
        generator: what is drawn from; torch's global one by default. Not used in a worker of a
            ``DataLoader``, where each would draw the same from its copy: there torch's global one
            is, which the loader seeds from its own ``generator``, other in each worker and epoch.

    Raises:
        SettingsError: a negative sigma, or a p beyond [0, 1]. StainError: an unknown reference.
    """

    def __init__(
        self,
        look: str | os.PathLike[str] | Reference,
        *,
        sigma_s_deg: float = 3.0,
        sigma_m: float = 0.15,
        sigma_b: float = 0.01,
        sigma_c: float = 0.1,
        p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sigmas = {"s_deg": sigma_s_deg, "m": sigma_m, "b": sigma_b, "c": sigma_c}
        found = find_reference(look)
        if found is None or not all(s >= 0 for s in sigmas.values()) or not 0 <= p <= 1:
            raise SettingsError(
                "no stain augmentation can be made like this",
                expected="a look other than self, sigmas of at least 0, and p from 0 to 1",
                found=f"look {getattr(found, 'name', look)}, p {p}, "
                + ", ".join(f"sigma_{name} {value}" for name, value in sigmas.items()),
            )
        self.look, self.sigmas, self.p, self.generator = found, sigmas, p, generator

    def forward(self, image: Any) -> Any:
        """The image changed, of the type that came in.

        Raises:
            SettingsError: not an RGB image as said above.
        """
        if isinstance(image, Image.Image):
            rgb = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            return Image.fromarray(self(rgb).permute(1, 2, 0).numpy())
        tensor = isinstance(image, Tensor) and image.ndim in (3, 4) and image.shape[-3] == 3
        if not tensor or not (image.dtype == torch.uint8 or image.dtype.is_floating_point):
            raise SettingsError(
                "not an image that can be augmented",
                expected="a PIL image, or a (3, H, W) or (B, 3, H, W) tensor, uint8 or float",
                found=f"{tuple(getattr(image, 'shape', ()))} {getattr(image, 'dtype', '')}"
                f" {type(image).__name__}",
            )
        with torch.no_grad():
            plain = image.as_subclass(Tensor)  # a tv_tensors.Image is a kind of its own
            images = plain if plain.ndim == 4 else plain[None]
            out = torch.stack([self._one(one) for one in images]) if len(images) else images
            return (out if plain.ndim == 4 else out[0]).as_subclass(type(image))

    def _one(self, image: Tensor) -> Tensor:
        generator = None if get_worker_info() else self.generator
        look, device = self.look, image.device
        s = torch.from_numpy(look.stain_matrix)
        # always drawn in full and on the CPU, so that neither p nor the device changes the next
        drawn = torch.randn(look.n + 1, 5, generator=generator)
        if bool(torch.rand((), generator=generator) >= self.p):
            return image.clone()
        angle, gain, gamma, *_ = drawn[:-1].T
        turned = _turned(s, angle * math.radians(self.sigmas["s_deg"]), drawn[:-1, 3:]).to(device)
        shift = (drawn[-1, :3] * self.sigmas["b"]).to(device)
        power = (gamma * self.sigmas["c"]).exp().to(device)
        full = torch.tensor(look.spectral_correction or (1.0,) * look.n).clamp_min(1e-3).to(device)
        more = (gain * self.sigmas["m"]).exp().to(device) * full
        s, od = s.to(device), _od(image)
        q = unmix(od, s, torch.tensor(look.background or (0.0,) * 3).to(device))
        changed = _each(more) * (q / _each(full)) ** _each(power)
        moved = od + _each(shift) + _composed(changed, turned) - _composed(q, s)
        light: Tensor = torch.pow(10.0, -moved)
        if image.dtype == torch.uint8:
            # less than a half, so that the half count that stands for black is black again
            return (light * I0 + 0.4945).clamp(0, 255).to(torch.uint8)
        return light.clamp(0, 1).to(image.dtype)


def _each(values: Tensor) -> Tensor:
    """(K,) against maps (K, h, w)."""
    return values[:, None, None]


def _composed(q: Tensor, rows: Tensor) -> Tensor:
    """(N, h, w) and (N, 3) -> (3, h, w)."""
    out: Tensor = torch.tensordot(rows.T, q, dims=1)
    return out


def _od(image: Tensor) -> Tensor:
    """(3, H, W) float32 OD; black as half a count, as everywhere."""
    light = image.to(torch.float32) / (I0 if image.dtype == torch.uint8 else 1.0)
    return -light.clamp_min(10.0**-OD_MAX).log10()


def _turned(rows: Tensor, angle: Tensor, direction: Tensor) -> Tensor:
    """(N, 3) unit rows, each turned by an angle (radians) about a direction of (N, 2) normals."""
    # two vectors perpendicular to each row and to each other
    axis = torch.zeros_like(rows).scatter(1, rows.abs().argmin(1, keepdim=True), 1.0)
    first = torch.nn.functional.normalize(torch.linalg.cross(rows, axis), dim=1)
    second = torch.linalg.cross(rows, first)
    across = direction[:, :1] * first + direction[:, 1:] * second
    across = torch.nn.functional.normalize(across, dim=1)
    turned = rows * angle.cos()[:, None] + across * angle.sin()[:, None]
    return torch.nn.functional.normalize(turned.clamp_min(0), dim=1)
