"""RGBA pixels of a slide in another look, level by level: from the slide, or from layers alone.

Here and in ``slide.native`` coordinates are (x, y), because OpenSlide's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.foreign_pixels import ForeignPixels
from wsi_pgdips.looks.pixels import PixelGrid, write_rgb
from wsi_pgdips.looks.transfer import Transfer
from wsi_pgdips.records import ByteArray

_WINDOW = 1024  # side of the windows that are held as optical densities at once
_Size = tuple[int, int]


class NativeLevels(Protocol):
    """A slide's own levels, as in ``slide.native``. Thread-safe."""

    @property
    def level_dimensions(self) -> tuple[_Size, ...]:
        """(width, height) of each level."""
        ...

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""
        ...

    def read_rgba(self, location: _Size, level: int, size: _Size) -> ByteArray:
        """Read (h, w, 4) uint8, straight alpha; ``location`` is (x, y) in level-0 pixels."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class SlidePixels:
    """Pixels of a slide's own levels in another look.

    Args:
        levels: the slide. transfer: to the new look. foreign: the slide's foreign pixels, if any.
        factor: level-0 pixels per output pixel of the fields that the transfer uses.
    """

    def __init__(
        self,
        levels: NativeLevels,
        transfer: Transfer,
        foreign: ForeignPixels | None,
        factor: float,
    ) -> None:
        self.level_dimensions = levels.level_dimensions
        self.level_downsamples = levels.level_downsamples
        self._levels, self._transfer, self._foreign = levels, transfer, foreign
        self._factor = factor

    def read_rgba(self, location: _Size, level: int, size: _Size) -> ByteArray:
        """Read a region; see :meth:`NativeLevels.read_rgba`.

        Pixels that are transparent on the slide keep their bytes.
        """
        rgba = self._levels.read_rgba(location, level, size)
        scale = self.level_downsamples[level]
        (x, y), step = (v / scale for v in location), scale / self._factor
        for top, left, part in windows(rgba):
            grid = PixelGrid((y + top, x + left), (part.shape[0], part.shape[1]), (step, step))
            before = None if part[..., 3].min() == 255 else part.copy()
            foreign = None if self._foreign is None else self._foreign.share(grid)
            self._transfer.recolour(part, grid, foreign)
            if before is not None:
                clear = part[..., 3] == 0
                part[clear] = before[clear]
        return rgba

    def close(self) -> None:
        """Close the slide."""
        self._levels.close()


class LayerPixels:
    """Pixels made of concentrations alone, without residual, at the layers' own levels.

    Args:
        layers: finished layers. transfer: to the new look.
    """

    def __init__(self, layers: Layers, transfer: Transfer) -> None:
        shapes = [layers.grid.level_shape(k) for k in range(layers.grid.n_levels)]
        self.level_dimensions = tuple((w, h) for h, w in shapes)
        self.level_downsamples = tuple(float(1 << k) for k in range(len(shapes)))
        self._layers, self._transfer = layers, transfer

    def read_rgba(self, location: _Size, level: int, size: _Size) -> ByteArray:
        """Read a region; see :meth:`NativeLevels.read_rgba`. It is transparent off the image."""
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
            grid = PixelGrid((y0 + top, x0 + left), (h, w), (step, step))
            od = np.broadcast_to(self._transfer.render(q, grid), (3, h, w))
            write_rgb(np.array(od, np.float32), part)
            part[..., 3] = 255
        return rgba

    def close(self) -> None:
        """Do nothing: no file is held open."""


def windows(rgba: ByteArray) -> Iterator[tuple[int, int, ByteArray]]:
    """Yield (top, left, view) of parts that are small enough to be held as optical densities."""
    height, width = rgba.shape[:2]
    for top in range(0, height, _WINDOW):
        for left in range(0, width, _WINDOW):
            yield top, left, rgba[top : top + _WINDOW, left : left + _WINDOW]
