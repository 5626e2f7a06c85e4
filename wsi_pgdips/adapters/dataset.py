"""Normalised tiles of a slide for torch: a ``Dataset`` of positions over tissue."""

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

_SAME_LEVEL = 0.002  # downsamples are seldom whole: 4.0006 where 4 is meant
_MASK_PIXELS = 32  # a tile is about as many pixels of the tissue mask a side


class NormalizedTiles(Dataset[dict[str, Any]]):
    """Square tiles of a slide in another look, those with tissue, in raster order.

    Tiles lie side by side on a grid from the slide's top left corner, wholly inside the slide. An
    item is a dict of

    * ``image``: (3, size, size) uint8 RGB tensor, or what ``transform`` makes of it,
    * ``x_l0``, ``y_l0``: int, top left pixel at the slide's level 0, as OpenSlide wants it,
    * ``tissue``: float, share of the tile on the tissue mask.

    Works in a ``DataLoader`` with workers, forked or spawned: nothing is held open across them.

    Args:
        slide, layers, reference, method, keep_amounts: as for ``NormalizedSlide``.
        size: side of a tile in its own pixels.
        mpp: micrometres per pixel of tiles; the layers' own by default. Within 6 % of an integer
            downsample of the slide it is taken as that.
        min_tissue: smallest share of tissue, in [0, 1]; 0 takes every tile.
        transform: called with the image tensor; a ``torchvision`` transform, for example.

    Attributes:
        slide: the ``NormalizedSlide``. mpp: of the tiles. factor: level-0 pixels per tile pixel.
        positions: (T, 2) int64, (x, y) at level 0. tissue: (T,) float32.

    Raises:
        SettingsError: a bad size or share. SlideError: an mpp finer than the slide's own.
        And what ``NormalizedSlide`` raises.
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
        method: Method = "typical",
        keep_amounts: bool = False,
    ) -> None:
        if size < 1 or not 0 <= min_tissue <= 1:
            raise SettingsError(
                "no tiles can be cut like this",
                expected="a size of at least 1 and a min_tissue from 0 to 1",
                found=f"size {size}, min_tissue {min_tissue}",
            )
        self.slide = NormalizedSlide(
            slide, layers, reference, method=method, keep_amounts=keep_amounts
        )
        self.size, self.transform = size, transform
        grid = self.slide.layers.grid
        mpp_l0 = grid.mpp if self.slide.from_layers_alone else grid.mpp / grid.factor
        self.factor = choose_factor(mpp_l0, grid.mpp if mpp is None else mpp)
        self.mpp = mpp_l0 * self.factor
        self.positions, self.tissue = self._tiles(self.factor * mpp_l0 / grid.mpp, min_tissue)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = (int(v) for v in self.positions[index])
        image: Any = torch.from_numpy(self._read((x, y))).permute(2, 0, 1).contiguous()
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, "x_l0": x, "y_l0": y, "tissue": float(self.tissue[index])}

    def _tiles(
        self, step: float, min_tissue: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Positions and shares of tissue; ``step`` in pixels of the layers per tile pixel."""
        width, height = self.slide.dimensions
        side = self.size * self.factor
        tops, lefts = (np.arange(int(n / side + 1e-6)) for n in (height, width))
        shares = _shares(self.slide.layers, len(tops), len(lefts), self.size * step)
        row, column = np.nonzero((shares >= min_tissue) & ((shares > 0) | (min_tissue == 0)))
        positions = np.rint(np.stack([lefts[column], tops[row]], 1) * side).astype(np.int64)
        return positions, shares[row, column]

    def _read(self, location: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """(size, size, 3) uint8; what the slide lacks is white."""
        level = self.slide.get_best_level_for_downsample(self.factor * (1 + _SAME_LEVEL))
        ratio = self.factor / self.slide.level_downsamples[level]
        side = max(round(self.size * ratio), 1)
        region = self.slide.read_region(location, level, (side, side))
        white = Image.new("RGBA", region.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, region).convert("RGB")
        if side % self.size == 0:
            rgb = rgb.reduce(side // self.size)  # a mean, as on the layers' own grid
        elif side != self.size:
            rgb = rgb.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.array(rgb)


def _shares(layers: Layers, down: int, across: int, side: float) -> npt.NDArray[np.float32]:
    """(down, across) share of tissue in squares of ``side`` output pixels from the corner."""
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
