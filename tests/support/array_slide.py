"""An array with OpenSlide's interface, and what tests do with the pixels of slides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from openslide import AbstractSlide
from PIL import Image

from wsi_pgdips.export.source import read_rgb
from wsi_pgdips.geometry import Region

MPP = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}


class ArraySlide(AbstractSlide):
    """One level of (H, W, 4) uint8.

    Args:
        asked: called with the (width, height) of each region that is read; may raise.
    """

    def __init__(
        self,
        rgba: np.ndarray,
        properties: Mapping[str, str] = MPP,
        asked: Callable[[tuple[int, int]], None] = lambda size: None,
    ) -> None:
        super().__init__()
        self._rgba, self._properties, self._asked = rgba, dict(properties), asked

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        return None

    def close(self) -> None: ...

    @property
    def level_count(self) -> int:
        return 1

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return ((self._rgba.shape[1], self._rgba.shape[0]),)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return (1.0,)

    @property
    def properties(self) -> Mapping[str, str]:
        return self._properties

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        return 0

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        self._asked(size)
        (x, y), (w, h) = location, size
        out = np.zeros((h, w, 4), np.uint8)
        part = self._rgba[y : y + h, x : x + w]
        out[: part.shape[0], : part.shape[1]] = part
        return Image.fromarray(out)


def waves(height: int, width: int) -> np.ndarray:
    """(H, W, 4) uint8, smooth and opaque."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [150 + 80 * np.sin(y / a + x / b) for a, b in ((41, 67), (53, 37), (97, 61))]
    return np.dstack([*planes, np.full_like(y, 255)]).astype(np.uint8)


def dies_after(regions: int) -> Callable[[tuple[int, int]], None]:
    """Make an ``asked`` that raises when more regions than these are read."""
    count = itertools.count(1)

    def asked(size: tuple[int, int]) -> None:
        if next(count) > regions:
            raise RuntimeError("killed")

    return asked


def pixels_of(slide: AbstractSlide) -> np.ndarray:
    """(H, W, 3) uint8 of level 0, on white."""
    width, height = slide.dimensions
    return read_rgb(slide, Region(0, 0, height, width))


def psnr(a: Any, b: Any, where: np.ndarray | None = None) -> float:
    """PSNR of two pictures in dB, over the pixels of a mask if one is given."""
    difference = np.asarray(a, float)[..., :3] - np.asarray(b, float)[..., :3]
    if where is not None:
        difference = difference[where]
    return float(10 * np.log10(255**2 / max(np.mean(difference**2), 1e-12)))
