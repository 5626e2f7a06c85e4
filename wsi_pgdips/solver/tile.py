"""A tile as input of the solver: optical density with a halo, tissue, and the glass beneath."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray


@dataclass(frozen=True)
class TileInput:
    """One tile.

    Attributes:
        od: (3, H, W) float32 with the halo, reflected beyond the ends of the slide.
        tissue: (H, W) bool, False beyond the ends of the slide.
        background: (3,) OD of glass at this tile.
        halo: pixels on each side that belong to the neighbours.
        seed: of all random numbers for this tile.
        raised: (3,) part of the background that is not subtracted to estimate stain vectors
            (``TissueMap.raised`` in ``tiles.tissue``).
    """

    od: FloatArray
    tissue: BoolArray
    background: FloatArray
    halo: int
    seed: int
    raised: FloatArray | None = None

    @functools.cached_property
    def corrected(self) -> FloatArray:
        """The glass-corrected OD of the tile's own pixels, (3, h, w)."""
        return np.asarray(self._inner(self.od) - self.background[:, None, None])

    @property
    def stain_od(self) -> FloatArray:
        """The OD for the estimation of stain vectors, (3, h, w): ``corrected`` plus ``raised``."""
        if self.raised is None:
            return self.corrected
        return self.corrected + self.raised[:, None, None]

    @property
    def own_tissue(self) -> BoolArray:
        """The tissue of the tile's own pixels, (h, w) bool."""
        return np.asarray(self._inner(self.tissue))

    def _inner(self, a: npt.NDArray[Any]) -> npt.NDArray[Any]:
        h, w = a.shape[-2:]
        return a[..., self.halo : h - self.halo, self.halo : w - self.halo]


def tile_input(
    rgb: ByteArray,
    tissue: BoolArray,
    background: FloatArray,
    *,
    margins: tuple[int, int, int, int],
    halo: int,
    seed: int,
    raised: FloatArray | None = None,
) -> TileInput:
    """Make a tile from the existing pixels, reflected to full size at the ends of the slide.

    Args:
        rgb: (h, w, 3) uint8 inside the slide. tissue: (h, w) bool.
        background: (3,). margins: missing rows above and below, columns left and right.
        halo, seed, raised: see :class:`TileInput`.
    """
    top, bottom, left, right = margins
    inside = np.pad(tissue, ((top, bottom), (left, right)), constant_values=False)
    return TileInput(planar_od(rgb, margins), inside, background, halo, seed, raised)


def planar_od(rgb: ByteArray, margins: tuple[int, ...]) -> FloatArray:
    """Convert pixels to OD, (3, H, W), reflected into the missing margins of :func:`tile_input`."""
    return rgb_to_od(np.ascontiguousarray(reflected(rgb, margins).transpose(2, 0, 1)))


def reflected(rgb: ByteArray, margins: tuple[int, ...]) -> ByteArray:
    """Reflect (h, w, 3) into the missing margins of :func:`tile_input`: (H, W, 3)."""
    top, bottom, left, right = margins
    if not any(margins):
        return rgb
    # a narrow part of a tile is reflected as often as necessary
    return np.pad(rgb, ((top, bottom), (left, right), (0, 0)), mode="symmetric")


def batch(tiles: list[TileInput], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Stack T tiles into tensors.

    All pixels count, glass too: maps must be zero there, and it shows B.

    Returns:
        od (T, 3, H, W), valid (T, 1, H, W) ones, background (T, 3).
    """
    od = torch.from_numpy(np.stack([t.od for t in tiles]))
    valid = torch.ones_like(od[:, :1])
    background = torch.from_numpy(np.stack([t.background for t in tiles]).astype(np.float32))
    return tuple(  # type: ignore[return-value]
        t.to(device, non_blocking=True) for t in (od, valid, background)
    )
