"""The coordinate frames of the project, and the output grid with its tiles and blocks.

Suffixes of names give their frame:

* ``_l0``: pixels of the slide's own level 0.
* no suffix or ``_out``: pixels of the output grid, which is level 0 of the layers.
* ``_lvl``: pixels of a coarser level of the layers; level k has ``ceil(shape / 2**k)`` pixels.
* ``_tile``: pixels inside one tile.

The centre of output pixel x lies at ``x_l0 = (x + 0.5) * factor - 0.5``. All pairs are (y, x) and
all shapes (height, width).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError, SlideError

TILE_SIZES = (256, 512, 1024)
CHUNK = 512
BLOCK_SIZES = (1024, 2048, 4096)
CELLS_PER_TILE = 2  # along each axis; fields have a value at the centre of each cell (decision 29)
MPP_LIMITS = (0.05, 10.0)
SNAP_TOLERANCE = 0.06


@dataclass(frozen=True, order=True)
class Region:
    """A rectangle of the output grid: its top-left pixel and extent, in output pixels."""

    y: int
    x: int
    h: int
    w: int

    @property
    def stop_y(self) -> int:
        return self.y + self.h

    @property
    def stop_x(self) -> int:
        return self.x + self.w

    @property
    def slices(self) -> tuple[slice, slice]:
        """The index of the region in an array whose last two axes are (y, x)."""
        return slice(self.y, self.stop_y), slice(self.x, self.stop_x)

    def clipped(self, shape: tuple[int, int]) -> Region:
        """The part inside an image of ``shape``; it may be empty (h or w of 0)."""
        y, x = max(self.y, 0), max(self.x, 0)
        return Region(
            y, x, max(min(self.stop_y, shape[0]) - y, 0), max(min(self.stop_x, shape[1]) - x, 0)
        )

    def grown(self, halo: int) -> Region:
        """The rectangle with ``halo`` more pixels on each side; it may leave the image."""
        return Region(self.y - halo, self.x - halo, self.h + 2 * halo, self.w + 2 * halo)

    def within(self, other: Region) -> Region:
        """The rectangle relative to the top-left pixel of another one, which contains it."""
        return Region(self.y - other.y, self.x - other.x, self.h, self.w)


def bounding_box(mask: npt.NDArray[np.bool_]) -> Region:
    """The smallest rectangle around the True pixels of (H, W); empty if there are none."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Region(0, 0, 0, 0)
    y, x = int(rows[0]), int(columns[0])
    return Region(y, x, int(rows[-1]) + 1 - y, int(columns[-1]) + 1 - x)


def choose_factor(mpp_l0: float, wanted: float) -> float:
    """Choose the level-0 pixels per output pixel for a wanted mpp, an integer if within 6 %.

    Raises:
        SlideError: the wanted mpp is finer than the slide's own (slides are never upsampled).
    """
    ratio = wanted / mpp_l0
    nearest = max(round(ratio), 1)
    if abs(ratio / nearest - 1) <= SNAP_TOLERANCE:
        return float(nearest)
    if ratio < 1:
        raise SlideError(
            "the requested mpp is finer than the slide's own; upsampling is not supported",
            expected=f"an mpp of at least {mpp_l0:.4g} um/px",
            found=f"{wanted:.4g} um/px",
            hint="give a larger --mpp, or --mpp native for the slide's own resolution",
        )
    return ratio


@dataclass(frozen=True)
class OutputGrid:
    """The pixel grid of the layers over a slide, cut into tiles and blocks.

    Attributes:
        shape_l0: (height, width) of the slide's level 0.
        factor: level-0 pixels per output pixel, >= 1.
        mpp: micrometres per output pixel (the true value after snapping).
        tile: side of a tile in output pixels, one of 256, 512, 1024.
        block: side of a block (one shard, one unit of work) in output pixels.
    """

    shape_l0: tuple[int, int]
    factor: float
    mpp: float
    tile: int = 512
    block: int = 4096

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("tile", self.tile, TILE_SIZES),
            ("block", self.block, BLOCK_SIZES),
        ):
            if value not in allowed:
                raise SettingsError(
                    f"this {name} size is not allowed",
                    expected=f"one of {', '.join(map(str, allowed))}",
                    found=value,
                    where=f"--{name}",
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in output pixels; level-0 pixels cover every output pixel completely."""
        return (
            max(int(self.shape_l0[0] / self.factor + 1e-6), 1),
            max(int(self.shape_l0[1] / self.factor + 1e-6), 1),
        )

    @property
    def tile_grid(self) -> tuple[int, int]:
        """The number of tiles (down, across)."""
        return -(-self.shape[0] // self.tile), -(-self.shape[1] // self.tile)

    @property
    def cell(self) -> int:
        """The side of a cell of the fields, in output pixels."""
        return self.tile // CELLS_PER_TILE

    @property
    def cell_grid(self) -> tuple[int, int]:
        """The number of cells (down, across); it covers whole tiles."""
        gy, gx = self.tile_grid
        return gy * CELLS_PER_TILE, gx * CELLS_PER_TILE

    @property
    def block_grid(self) -> tuple[int, int]:
        """The number of blocks (down, across)."""
        return -(-self.shape[0] // self.block), -(-self.shape[1] // self.block)

    @property
    def tiles_per_block(self) -> int:
        return self.block // self.tile

    @property
    def n_levels(self) -> int:
        """The number of pyramid levels; the coarsest fits into one chunk."""
        n = 1
        while max(self.level_shape(n - 1)) > CHUNK:
            n += 1
        return n

    @property
    def owned_levels(self) -> int:
        """The number of finest levels that a block writes by itself (4 for a block of 4096)."""
        return min((self.block // CHUNK).bit_length(), self.n_levels)

    def level_shape(self, level: int) -> tuple[int, int]:
        """(height, width) of level k, ``ceil(shape / 2**k)``."""
        return -(-self.shape[0] // (1 << level)), -(-self.shape[1] // (1 << level))

    def shard(self, level: int) -> int:
        """The side of a shard of a level, in that level's pixels."""
        return max(CHUNK, self.block >> level)

    def tile_region(self, ty: int, tx: int) -> Region:
        """The part of tile (ty, tx) inside the image."""
        side = self.tile
        return Region(ty * side, tx * side, side, side).clipped(self.shape)

    def block_region(self, by: int, bx: int) -> Region:
        """The part of block (by, bx) inside the image."""
        side = self.block
        return Region(by * side, bx * side, side, side).clipped(self.shape)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """All block indices (by, bx) in raster order."""
        for by in range(self.block_grid[0]):
            for bx in range(self.block_grid[1]):
                yield by, bx

    def tiles_of_block(self, by: int, bx: int) -> Iterator[tuple[int, int]]:
        """The indices (ty, tx) of a block's tiles in raster order; no tile is in two blocks."""
        n, (gy, gx) = self.tiles_per_block, self.tile_grid
        for ty in range(by * n, min((by + 1) * n, gy)):
            for tx in range(bx * n, min((bx + 1) * n, gx)):
                yield ty, tx
