"""A picture in memory as the linear methods see it, and the closed form they end in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, TileSource
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import TissueMap, find_tissue


@dataclass(frozen=True, eq=False)
class Picture:
    """All pixels of a source.

    Attributes:
        rgb: (H, W, 3). library: (N, 3) unit rows a method may start from.
        tissue_map: what the product itself takes for tissue and glass.
        glass: (3,) OD of glass, one for the whole picture, as the product measures it.
    """

    rgb: ByteArray
    library: FloatArray
    grid: OutputGrid
    tissue_map: TissueMap
    glass: FloatArray

    @cached_property
    def od(self) -> FloatArray:
        """(3, H, W)."""
        return np.ascontiguousarray(rgb_to_od(self.rgb).transpose(2, 0, 1))

    @cached_property
    def tissue(self) -> BoolArray:
        """(H, W) bool, as the product sees it; dilated."""
        return self.tissue_map.window(0, 0, *self.grid.shape)


def read_picture(source: TileSource, library: FloatArray) -> Picture:
    """The picture of a source that fits in memory.

    Raises:
        SlideError: not readable, or without tissue.
    """
    tissue = find_tissue(source)
    glass = background_field(tissue, source.grid)[2]
    rgb = source.read(0, 0, *source.grid.shape)
    return Picture(rgb, library, source.grid, tissue, np.asarray(glass, np.float32))


def unmix_od(od: FloatArray, stain_matrix: FloatArray, background: FloatArray) -> FloatArray:
    """``optics.unmix.unmix`` over numpy arrays."""
    tensors = (
        torch.from_numpy(np.ascontiguousarray(a, np.float32))
        for a in (od, stain_matrix, background)
    )
    return np.asarray(unmix(*tensors).numpy())
