"""A torch ``Dataset`` of a slide's normalised tiles on tissue."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import choose_factor
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide, SlideLike
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import Method
from wsi_pgdips.slide.colour import on_white

_SAME_LEVEL = 0.002  # files give downsamples such as 4.0006 in place of 4
_MASK_PIXELS = 32  # about how many pixels of the tissue mask a tile has on each side


class NormalizedTiles(Dataset[dict[str, Any]]):
    """Square tiles of a slide in another look, in raster order; tiles without tissue are left out.

    Tiles lie side by side on a grid from the slide's top left corner, entirely inside the slide. An
    item is a dict of

    * ``image``: (3, size, size) uint8 RGB tensor, or the result of ``transform``,
    * ``x_l0``, ``y_l0``: int, the top left pixel at the slide's level 0, as for OpenSlide,
    * ``tissue``: float, the share of the tile on the tissue mask.

    It works in a ``DataLoader`` with forked or spawned workers: no open file is shared with them.

    Args:
        slide, layers, reference, method, keep_amounts: see ``NormalizedSlide``.
        size: side of a tile in its own pixels.
        mpp: micrometres per pixel of tiles; by default that of the layers. It snaps to an integer
            downsample of the slide within 6 %.
        min_tissue: smallest share of tissue, in [0, 1]; 0 takes every tile.
        transform: called with the image tensor, for example a ``torchvision`` transform.

    Attributes:
        slide: the ``NormalizedSlide``. mpp: of the tiles. factor: level-0 pixels per tile pixel.
        positions: (T, 2) int64, (x, y) at level 0. tissue: (T,) float32.

    Raises:
        SettingsError: a bad size or share. SlideError: an mpp finer than the slide's own.
        Others: see ``NormalizedSlide``.
    """

    def __init__(
        self,
        slide: SlideLike | None,
        layers: str | os.PathLike[str] | Layers,
        reference: str | os.PathLike[str] | Reference = "he",
        *,
        size: int = 512,
        mpp: float | None = None,
        min_tissue: float = 0.1,
        transform: Callable[[torch.Tensor], Any] | None = None,
        method: Method = "matched",
        keep_amounts: bool = False,
    ) -> None:
        if size < 1 or not 0 <= min_tissue <= 1:
            raise SettingsError(
                "tiles cannot be cut with these values",
                expected="a size of at least 1 and a min_tissue from 0 to 1",
                found=f"size {size}, min_tissue {min_tissue}",
            )
        self.slide = NormalizedSlide(
            slide, layers, reference, method=method, keep_amounts=keep_amounts
        )
        self.size, self.transform = size, transform
        opened = self.slide.layers
        assert opened is not None  # they were given
        grid = opened.grid
        mpp_l0 = grid.mpp if self.slide.from_layers_alone else grid.mpp / grid.factor
        self.factor = choose_factor(mpp_l0, grid.mpp if mpp is None else mpp)
        self.mpp = mpp_l0 * self.factor
        self.positions, self.tissue = self._tiles(
            opened, self.factor * mpp_l0 / grid.mpp, min_tissue
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = (int(v) for v in self.positions[index])
        image: Any = torch.from_numpy(self._read((x, y))).permute(2, 0, 1).contiguous()
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, "x_l0": x, "y_l0": y, "tissue": float(self.tissue[index])}

    def _tiles(
        self, layers: Layers, step: float, min_tissue: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return positions and shares of tissue; ``step`` is layers' pixels per tile pixel."""
        width, height = self.slide.dimensions
        side = self.size * self.factor
        tops, lefts = (np.arange(int(n / side + 1e-6)) for n in (height, width))
        shares = _shares(layers, len(tops), len(lefts), self.size * step)
        row, column = np.nonzero((shares >= min_tissue) & ((shares > 0) | (min_tissue == 0)))
        positions = np.rint(np.stack([lefts[column], tops[row]], 1) * side).astype(np.int64)
        return positions, shares[row, column]

    def _read(self, location: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a tile: (size, size, 3) uint8, white where the slide is transparent."""
        level = self.slide.get_best_level_for_downsample(self.factor * (1 + _SAME_LEVEL))
        ratio = self.factor / self.slide.level_downsamples[level]
        side = max(round(self.size * ratio), 1)
        region = self.slide.read_region(location, level, (side, side))
        rgb = Image.fromarray(on_white(np.asarray(region)))
        if side % self.size == 0:
            rgb = rgb.reduce(side // self.size)  # a mean, as for the layers
        elif side != self.size:
            rgb = rgb.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.array(rgb)


def _shares(layers: Layers, down: int, across: int, side: float) -> npt.NDArray[np.float32]:
    """Return the (down, across) shares of tissue in squares of ``side`` output pixels."""
    level = int(np.clip(np.log2(max(side / _MASK_PIXELS, 1)), 0, layers.grid.n_levels - 1))
    mask = np.asarray(layers.tissue(level).compute(scheduler="synchronous"), np.int64)
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    edges = [
        np.minimum(np.rint(np.arange(n + 1) * side / 2**level).astype(int), limit)
        for n, limit in ((down, mask.shape[0]), (across, mask.shape[1]))
    ]
    corners = total[np.ix_(*edges)]
    found = corners[1:, 1:] - corners[1:, :-1] - corners[:-1, 1:] + corners[:-1, :-1]
    area = np.outer(*(np.diff(edge) for edge in edges))
    return np.asarray(found / np.maximum(area, 1), np.float32)
