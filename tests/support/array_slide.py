"""An array behind OpenSlide's interface, which remembers what was asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from openslide import AbstractSlide
from PIL import Image

MPP = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}


class ArraySlide(AbstractSlide):
    """One level of (H, W, 4) uint8.

    Args:
        asked: is told the (width, height) of each region; may raise.
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
