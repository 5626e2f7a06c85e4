"""Stain augmentation in optical density: it changes dyes, amounts and glass."""

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
    """Randomly changes S, M, B and C of images whose look is known.

    With OD = B + q S + r, where r is the residual, an image becomes

        OD' = B + dB + q' S' + r        q' = g M (q / M)^c

    S' are the vectors S, each turned by N(0, sigma_s_deg) degrees in a random direction and cut off
    at 0, because nothing absorbs negative light. g = exp N(0, sigma_m) and c = exp N(0, sigma_c)
    are a gain and a gamma for each stain, dB is N(0, sigma_b) for each colour channel. If all
    sigmas are 0 the image is unchanged.

    It takes a PIL image, or a (3, H, W) or (B, 3, H, W) tensor, uint8 or float in [0, 1], and
    returns the same type. Each image of a batch gets its own draw. It can be part of a
    ``torchvision`` ``Compose``.

    Args:
        look: of the images: ``NormalizedSlide(...).look`` for a slide's own pixels; the reference
            (object, name or path) for normalised pixels.
        sigma_s_deg: degrees. sigma_m, sigma_c: of the logarithm. sigma_b: OD.
        p: probability that an image is changed.
        generator: source of random numbers; by default torch's global one. It is not used in a
            worker of a ``DataLoader``, where each worker would draw the same numbers from its copy.
            Workers use torch's global one, which the loader seeds from its own ``generator``,
            differently in each worker and epoch.

    Raises:
        SettingsError: a negative sigma, a ``p`` outside [0, 1], or the look ``self``.
        StainError: an unknown reference.
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
                "the stain augmentation cannot use these values",
                expected="a look other than self, sigmas of at least 0, and p from 0 to 1",
                found=f"look {getattr(found, 'name', look)}, p {p}, "
                + ", ".join(f"sigma_{name} {value}" for name, value in sigmas.items()),
            )
        self.look, self.sigmas, self.p, self.generator = found, sigmas, p, generator

    def forward(self, image: Any) -> Any:
        """Return the changed image, of the same type.

        Raises:
            SettingsError: not an RGB image of a type above.
        """
        if isinstance(image, Image.Image):
            rgb = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            return Image.fromarray(self(rgb).permute(1, 2, 0).numpy())
        tensor = isinstance(image, Tensor) and image.ndim in (3, 4) and image.shape[-3] == 3
        if not tensor or not (image.dtype == torch.uint8 or image.dtype.is_floating_point):
            raise SettingsError(
                "this image cannot be augmented",
                expected="a PIL image, or a (3, H, W) or (B, 3, H, W) tensor, uint8 or float",
                found=f"{tuple(getattr(image, 'shape', ()))} {getattr(image, 'dtype', '')}"
                f" {type(image).__name__}",
            )
        with torch.no_grad():
            plain = image.as_subclass(Tensor)  # a tv_tensors.Image is a subclass
            images = plain if plain.ndim == 4 else plain[None]
            out = torch.stack([self._changed(one) for one in images]) if len(images) else images
            return (out if plain.ndim == 4 else out[0]).as_subclass(type(image))

    def _changed(self, image: Tensor) -> Tensor:
        """Change one (3, H, W) image."""
        generator = None if get_worker_info() else self.generator
        look, device = self.look, image.device
        s = torch.from_numpy(look.stain_matrix)
        # always drawn, and on the CPU, so that neither p nor the device changes the next draw
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
            # below a half, so that black, which counts as half a count, becomes black again
            return (light * I0 + 0.4945).clamp(0, 255).to(torch.uint8)
        return light.clamp(0, 1).to(image.dtype)


def _each(values: Tensor) -> Tensor:
    """Reshape (K,) to (K, 1, 1), to be combined with (K, h, w) maps."""
    return values[:, None, None]


def _composed(q: Tensor, rows: Tensor) -> Tensor:
    """Compute q S: (N, h, w) and (N, 3) to (3, h, w)."""
    out: Tensor = torch.tensordot(rows.T, q, dims=1)
    return out


def _od(image: Tensor) -> Tensor:
    """Return (3, H, W) float32 OD; black counts as half a count."""
    light = image.to(torch.float32) / (I0 if image.dtype == torch.uint8 else 1.0)
    return -light.clamp_min(10.0**-OD_MAX).log10()


def _turned(rows: Tensor, angle: Tensor, direction: Tensor) -> Tensor:
    """Turn each of (N, 3) unit rows by an angle (radians), towards (N, 2) weighted normals."""
    # two vectors perpendicular to each row and to each other
    axis = torch.zeros_like(rows).scatter(1, rows.abs().argmin(1, keepdim=True), 1.0)
    first = torch.nn.functional.normalize(torch.linalg.cross(rows, axis), dim=1)
    second = torch.linalg.cross(rows, first)
    across = direction[:, :1] * first + direction[:, 1:] * second
    across = torch.nn.functional.normalize(across, dim=1)
    turned = rows * angle.cos()[:, None] + across * angle.sin()[:, None]
    return torch.nn.functional.normalize(turned.clamp_min(0), dim=1)
