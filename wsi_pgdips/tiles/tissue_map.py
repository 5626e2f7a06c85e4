"""The tissue and the glass of a slide, on the grid of its overview."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import Region
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray


@dataclass(frozen=True, eq=False)
class TissueMap:
    """Tissue and glass of a slide, on the grid of its overview.

    Attributes:
        mask: (H, W) bool, tissue dilated by 32 um, or as drawn, less fill and ink; this area is
            rendered.
        core: (H, W) bool, the tissue itself; this area counts for fitting.
        glass: (H, W) bool, certain glass, at least 40 um from tissue.
        glass_od: (H, W, 3) float32, OD of the overview; valid on glass only.
        scale: output pixels per overview pixel; pixel (i, j) covers [i*scale, (i+1)*scale).
        shape: (height, width) in output pixels.
        flags: ``no_glass``, ``glass_in_lumens`` (only there), ``glass_saturated``,
            ``background_from_palest`` (there is no glass, or it is saturated), ``mask_from_file``,
            ``roi``, ``unwritten_tiles`` (fill lies in the tissue), ``tissue_left_out`` (see
            ``coverage``), ``perhaps_cytology`` (much of what is stained is in pieces that count as
            dust).
        assumed: (3,) OD assumed for glass if the slide has no usable glass, else None.
        raised: (3,) the part of ``assumed`` that only lifts it to a floor, else None. Stain vectors
            are estimated without it (decision 30).
        coverage: share of the stained pixels of the overview that lie in ``mask``, before a region
            of interest cuts it; fill is not stained.
        left_out: why -> mm2 that are not in ``mask``: ``dust`` (stained pieces that are too small),
            ``pale`` (other stained pixels), ``fill`` (never scanned, inside the scanned area),
            ``ink``.
        artifact: (H, W) uint8, ``records.Artifact`` of fill and ink; (0, 0) without any.
    """

    mask: BoolArray
    core: BoolArray
    glass: BoolArray
    glass_od: FloatArray
    scale: float
    shape: tuple[int, int]
    flags: tuple[str, ...] = ()
    assumed: FloatArray | None = None
    raised: FloatArray | None = None
    coverage: float = 1.0
    left_out: dict[str, float] = field(default_factory=dict)
    artifact: ByteArray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))

    def window(self, y: int, x: int, h: int, w: int) -> BoolArray:
        """The mask at output pixels (nearest neighbour), (h, w) bool; False outside the slide."""
        return np.asarray(self._at(self.mask, y, x, h, w), bool)

    def artifacts(self, region: Region) -> ByteArray:
        """The classes of fill and ink at a region of output pixels, (h, w) uint8."""
        if not self.artifact.any():
            return np.zeros((region.h, region.w), np.uint8)
        return np.asarray(self._at(self.artifact, region.y, region.x, region.h, region.w), np.uint8)

    def _at(self, overview: npt.NDArray[Any], y: int, x: int, h: int, w: int) -> npt.NDArray[Any]:
        rows, inside_y = self._index(y, h, 0)
        columns, inside_x = self._index(x, w, 1)
        # rows first, then columns: several times as fast as both at once
        out = overview[:, columns[0] : columns[-1] + 1].take(rows, 0).take(columns - columns[0], 1)
        if not inside_y.all() or not inside_x.all():
            out *= inside_y[:, None] & inside_x[None, :]
        return np.asarray(out)

    def fraction(self, region: Region) -> float:
        """The share of tissue (undilated) in a region of output pixels; 0 if it is empty."""
        return self._share(self.core, region)

    def touches(self, region: Region) -> bool:
        """Return whether any output pixel of a region lies in the dilated mask."""
        return self._share(self.mask, region) > 0

    def _share(self, mask: BoolArray, region: Region) -> float:
        if region.h <= 0 or region.w <= 0:
            return 0.0
        (y0, in_rows), (x0, in_columns) = (
            self._runs(region.y, region.h, 0),
            self._runs(region.x, region.w, 1),
        )
        part = mask[y0 : y0 + len(in_rows), x0 : x0 + len(in_columns)]
        return float(in_rows @ part @ in_columns) / (region.h * region.w)

    def _runs(self, start: int, length: int, axis: int) -> tuple[int, npt.NDArray[np.int64]]:
        """The first overview index of a run of output pixels, and their number on each index."""
        index, inside = self._index(start, length, axis)
        first = int(index[0])
        return first, np.bincount(index - first, weights=inside).astype(np.int64)

    def _index(self, start: int, length: int, axis: int) -> tuple[npt.NDArray[np.intp], BoolArray]:
        position = start + np.arange(length)
        index = np.floor((position + 0.5) / self.scale).astype(np.intp)
        inside = (position >= 0) & (position < self.shape[axis])
        return np.clip(index, 0, self.mask.shape[axis] - 1), inside
