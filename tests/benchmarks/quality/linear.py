"""Linear baselines: where S and B come from, and how pixels are unmixed under them.

All but ``complement`` end in the same closed form as the product, non-negative least squares per
pixel. Macenko and Vahadane are tiatoolbox's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.quality.methods import CLOSED
from benchmarks.quality.picture import Picture, unmix_od
from benchmarks.quiet import quiet
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.optics.stains import match_rows
from wsi_pgdips.records import ByteArray, FloatArray
from wsi_pgdips.solver.rays import estimate_rays, extreme_rays, pool_od

MACENKO_PIXELS, VAHADANE_PIXELS = 1_500_000, 60_000  # that an extractor is shown, at most
GLASS_SUFFIX = "-glass"
NOTHING = np.zeros(3, np.float32)


@dataclass(frozen=True)
class Result:
    """What a method says.

    Attributes:
        maps: (N, H, W) q. stain_matrix: (N, 3), or (GY, GX, N, 3) at tile centres.
        background: (3,), or (GY, GX, 3).
    """

    maps: FloatArray
    stain_matrix: FloatArray
    background: FloatArray


class LinearMethods:
    """The linear methods on one picture; what two of them share is estimated once.

    Args:
        picture: of any number of stains; Macenko's and Vahadane's know two only.
    """

    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    def result(self, name: str) -> Result:
        """Maps of a linear method of ``bench.methods``."""
        plain = name.removesuffix(GLASS_SUFFIX)
        with_glass = name.endswith(GLASS_SUFFIX) or plain in ("rays-slide", CLOSED)
        background = self.picture.glass if with_glass else NOTHING
        if plain == "macenko-tile":
            rows = self.macenko_tiles
            return Result(self._tiled(rows, background), rows, background)
        if plain == "complement":
            library = self.picture.library
            return Result(complement(self.picture.od, library, background), library, background)
        rows = {
            "fixed": lambda: self.picture.library,
            "macenko-slide": lambda: self.macenko,
            "vahadane": lambda: self.vahadane,
            "rays-slide": lambda: self.rays,
            CLOSED: lambda: self.own,
        }[plain]()
        return Result(unmix_od(self.picture.od, rows, background), rows, background)

    @cached_property
    def rays(self) -> FloatArray:
        """(N, 3): the outermost percent of the angles of all tissue, less one glass."""
        p = self.picture
        y, *_ = pool_od(p.od - p.glass[:, None, None], p.tissue)
        return extreme_rays(y, p.library)

    @cached_property
    def own(self) -> FloatArray:
        """(N, 3): the slide's own vectors as ``calibrate`` estimates them, from all tissue."""
        p = self.picture
        raised = p.tissue_map.raised
        glass = p.glass if raised is None else p.glass - raised
        y, *_ = pool_od(p.od - glass[:, None, None], p.tissue)
        return estimate_rays(y, p.library).stain_matrix

    @cached_property
    def macenko(self) -> FloatArray:
        """(2, 3) in the library's order."""
        return self._matched(_macenko(self._thinned(MACENKO_PIXELS)))

    @cached_property
    def vahadane(self) -> FloatArray:
        """(2, 3) in the library's order."""
        return self._matched(_vahadane(self._thinned(VAHADANE_PIXELS)))

    @cached_property
    def macenko_tiles(self) -> FloatArray:
        """(GY, GX, 2, 3), each tile on its own; the library's where a tile gives nothing."""
        p = self.picture
        rows = np.empty((*p.grid.tile_grid, *p.library.shape), np.float32)
        for tile in np.ndindex(*p.grid.tile_grid):
            r = p.grid.tile_region(*tile)
            own = r.slices
            rows[tile] = p.library
            if p.tissue[own].any():
                try:
                    rows[tile] = self._matched(_macenko(p.rgb[own]))
                except (ValueError, np.linalg.LinAlgError):  # too little of anything
                    continue
        return rows

    def _tiled(self, rows: FloatArray, background: FloatArray) -> FloatArray:
        p = self.picture
        q = np.empty((len(p.library), *p.grid.shape), np.float32)
        for tile in np.ndindex(*p.grid.tile_grid):
            r = p.grid.tile_region(*tile)
            own = (slice(None), slice(r.y, r.stop_y), slice(r.x, r.stop_x))
            q[own] = unmix_od(p.od[own], rows[tile], background)
        return q

    def _thinned(self, pixels: int) -> ByteArray:
        """Every how-manieth pixel in y and x, not averaged, so that about so many are left."""
        height, width = self.picture.grid.shape
        step = max(int(np.ceil(np.sqrt(height * width / pixels))), 1)
        return np.ascontiguousarray(self.picture.rgb[::step, ::step])

    def _matched(self, rows: FloatArray) -> FloatArray:
        rows = np.asarray(rows, np.float64)
        if not np.isfinite(rows).all():
            raise ValueError("no stain vectors")
        return unit_rows(rows[match_rows(rows, self.picture.library)[0]])


def complement(od: FloatArray, stain_matrix: FloatArray, background: FloatArray) -> FloatArray:
    """Colour deconvolution as Ruifrok and Johnston, and HistomicsTK, do it.

    The inverse of a 3 x 3 matrix whose missing rows are made up: with two stains the third row is
    their vector product; with one, two unit vectors normal to it and to each other. What comes out
    negative is cut to 0.

    Args:
        od: (3, H, W). stain_matrix: (N, 3) unit rows, N <= 3. background: (3,).

    Returns:
        (N, H, W) float32.
    """
    n = len(stain_matrix)
    _, _, normal = np.linalg.svd(stain_matrix.astype(np.float64))
    full = np.concatenate([stain_matrix, normal[n:]])
    inverse = np.linalg.inv(full).astype(np.float32)  # y = q full
    y = (od - background[:, None, None]).reshape(3, -1)
    q = inverse.T[:n] @ y
    return np.maximum(q, 0).reshape(n, *od.shape[1:])


@quiet()
def _macenko(rgb: ByteArray) -> FloatArray:
    from tiatoolbox.tools.stainextract import MacenkoExtractor

    return np.asarray(MacenkoExtractor().get_stain_matrix(rgb), np.float32)


@quiet()
def _vahadane(rgb: ByteArray) -> FloatArray:
    from tiatoolbox.tools.stainextract import VahadaneExtractor

    return np.asarray(VahadaneExtractor().get_stain_matrix(rgb), np.float32)
