"""A slide in another look, behind OpenSlide's interface: for every program that takes a slide.

With ``slide.native`` the only place where (x, y) exists, because OpenSlide speaks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from openslide import AbstractSlide
from PIL import Image

from wsi_pgdips.looks.pixels import write_rgb
from wsi_pgdips.looks.place import Place
from wsi_pgdips.looks.transfer import Transfer
from wsi_pgdips.looks.weight import TissueWeight
from wsi_pgdips.records import ByteArray, FloatArray

# pixels a side that are held as optical densities at once, whatever is asked for
_WINDOW = 1024
_Size = tuple[int, int]


class NativeLevels(Protocol):
    """A slide's own pixels, as OpenSlide has them. Thread-safe."""

    @property
    def level_dimensions(self) -> tuple[_Size, ...]: ...

    @property
    def level_downsamples(self) -> tuple[float, ...]: ...

    def read_rgba(self, location: _Size, level: int, size: _Size) -> ByteArray:
        """(h, w, 4) uint8, straight alpha; ``location`` in level-0 pixels."""
        ...

    def close(self) -> None: ...


class ConcentrationLevels(Protocol):
    """Concentrations alone, level by level."""

    def read(self, y: int, x: int, h: int, w: int, level: int = 0) -> FloatArray:
        """(N, h, w) OD of a level's own pixels, NaN where not measured."""
        ...


class SlidePixels:
    """Pixels of a slide's own levels under a transfer.

    Args:
        levels: the slide. factor: level-0 pixels per output pixel, which fields are given in.
    """

    def __init__(
        self, levels: NativeLevels, transfer: Transfer, weight: TissueWeight, factor: float
    ) -> None:
        self.level_dimensions = levels.level_dimensions
        self.level_downsamples = levels.level_downsamples
        self._levels, self._transfer, self._weight = levels, transfer, weight
        self._factor = factor

    def read_rgba(self, location: _Size, level: int, size: _Size) -> ByteArray:
        """(h, w, 4) uint8; what is transparent on the slide is so here, with its bytes."""
        rgba = self._levels.read_rgba(location, level, size)
        scale = self.level_downsamples[level]
        (x, y), step = (v / scale for v in location), scale / self._factor
        for top, left, part in windows(rgba):
            place = Place((y + top, x + left), (part.shape[0], part.shape[1]), (step, step))
            before = None if part[..., 3].min() == 255 else part.copy()
            self._transfer.slide(part, place, self._weight.at(place))
            if before is not None:
                clear = part[..., 3] == 0
                part[clear] = before[clear]
        return rgba

    def close(self) -> None:
        self._levels.close()


class LayerPixels:
    """Pixels made of concentrations alone, without residual, at the layers' own levels.

    Args:
        shapes: (height, width) of each level.
    """

    def __init__(
        self,
        layers: ConcentrationLevels,
        shapes: tuple[_Size, ...],
        transfer: Transfer,
        weight: TissueWeight,
    ) -> None:
        self.level_dimensions = tuple((w, h) for h, w in shapes)
        self.level_downsamples = tuple(float(1 << k) for k in range(len(shapes)))
        self._layers, self._transfer, self._weight = layers, transfer, weight

    def read_rgba(self, location: _Size, level: int, size: _Size) -> ByteArray:
        """(h, w, 4) uint8; what lies outside the image is transparent."""
        rgba = np.zeros((size[1], size[0], 4), np.uint8)
        step = 1 << level
        x, y = (v // step for v in location)
        width, height = self.level_dimensions[level]
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + size[1], height), min(x + size[0], width)
        if y0 >= y1 or x0 >= x1:
            return rgba
        for top, left, part in windows(rgba[y0 - y : y1 - y, x0 - x : x1 - x]):
            h, w = part.shape[:2]
            q = self._layers.read(y0 + top, x0 + left, h, w, level)
            np.nan_to_num(q, copy=False, nan=0.0)
            place = Place((y0 + top, x0 + left), (h, w), (step, step))
            od = np.broadcast_to(self._transfer.layers(q, place, self._weight.at(place)), (3, h, w))
            write_rgb(np.array(od, np.float32), part)
            part[..., 3] = 255
        return rgba

    def close(self) -> None:
        """Nothing is held open."""


class NormalizedReader(AbstractSlide):
    """OpenSlide's interface over pixels of a new look.

    Args:
        pixels: where they come from. properties: as programs will see them.
    """

    def __init__(self, pixels: SlidePixels | LayerPixels, properties: Mapping[str, str]) -> None:
        super().__init__()
        self._pixels, self._properties = pixels, dict(properties)

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """None: a file alone is no normalised slide."""
        return None

    def close(self) -> None:
        self._pixels.close()

    @property
    def level_count(self) -> int:
        return len(self._pixels.level_dimensions)

    @property
    def level_dimensions(self) -> tuple[_Size, ...]:
        """(width, height) of each level."""
        return self._pixels.level_dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return self._pixels.level_downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        return self._properties

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """None: label and macro image are not normalised, and may name a patient."""
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The coarsest level that is not coarser than ``downsample``."""
        fits = [k for k, own in enumerate(self.level_downsamples) if own <= downsample]
        return max(fits, default=0)

    def read_region(self, location: _Size, level: int, size: _Size) -> Image.Image:
        """RGBA picture of a region, as ``OpenSlide.read_region``.

        Args:
            location: (x, y) of its top left pixel, at level 0. level: to read. size: (width,
                height) in the level's pixels.
        """
        if min(size) < 0:
            raise ValueError(f"a region cannot have a negative size, got {size}")
        if not 0 <= level < self.level_count:  # as OpenSlide, which gives transparent pixels
            return Image.new("RGBA", size)
        return Image.fromarray(self._pixels.read_rgba(location, level, size))


def windows(rgba: ByteArray) -> Iterator[tuple[int, int, ByteArray]]:
    """(top, left, view) of parts that are small enough to be held as optical densities."""
    height, width = rgba.shape[:2]
    for top in range(0, height, _WINDOW):
        for left in range(0, width, _WINDOW):
            yield top, left, rgba[top : top + _WINDOW, left : left + _WINDOW]
