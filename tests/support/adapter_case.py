"""A slide with finished layers, under the names that docs/adapters.md uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide

from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.records import ByteArray


@dataclass(frozen=True)
class Case:
    """Files ``slide.svs``, ``slide.ome.zarr`` and ``tile.png`` of a folder."""

    folder: Path

    @property
    def slide(self) -> Path:
        return self.folder / "slide.svs"

    @property
    def layers(self) -> Path:
        return self.folder / "slide.ome.zarr"

    def opened(self) -> Layers:
        return open_layers(self.layers)

    def tile(self, x: int = 512, y: int = 128, side: int = 256) -> ByteArray:
        """(side, side, 3) uint8 of the slide itself."""
        with openslide.OpenSlide(self.slide) as slide:
            return np.array(slide.read_region((x, y), 0, (side, side)).convert("RGB"))
