"""A picture in memory, and the linear methods on it: where S and B come from, and the unmixing.

All methods but ``complement`` end in the same closed form as the product, non-negative least
squares per pixel. Macenko and Vahadane are tiatoolbox's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.methods import CLOSED
from benchmarks.quiet import quiet
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.optics.physics import rgb_to_od, unit_rows
from wsi_pgdips.optics.stains import match_rows
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, TileSource
from wsi_pgdips.solver.rays import estimate_rays, extreme_rays, pool_od
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import find_tissue
from wsi_pgdips.tiles.tissue_map import TissueMap

# pixels that an extractor is shown, at most
MOST_PIXELS = {"MacenkoExtractor": 1_500_000, "VahadaneExtractor": 60_000}
GLASS_SUFFIX = "-glass"
# methods of one closed form under constants -> where a picture has their vectors
VECTORS = {
    "fixed": "library",
    "macenko-slide": "macenko",
    "vahadane": "vahadane",
    "rays-slide": "rays",
    CLOSED: "own",
}
NOTHING = np.zeros(3, np.float32)


@dataclass(frozen=True)
class Result:
    """The result of a method.

    Attributes:
        maps: (N, H, W) q. stain_matrix: (N, 3), or (GY, GX, N, 3) at tile centres.
        background: (3,), or (GY, GX, 3). tissue: (H, W), as the product sees it, in memory only.
    """

    maps: FloatArray
    stain_matrix: FloatArray
    background: FloatArray
    tissue: BoolArray | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """All pixels of a source; what two linear methods share is estimated once.

    Attributes:
        rgb: (H, W, 3). library: (N, 3) unit rows a method may start from; Macenko's and Vahadane's
            methods know N = 2 only.
        tissue_map: what the product itself takes for tissue and glass.
        glass: (3,) OD of glass, one for the whole picture, as the product measures it.
    """

    rgb: ByteArray
    library: FloatArray
    grid: OutputGrid
    tissue_map: TissueMap
    glass: FloatArray

    def result(self, name: str) -> Result:
        """Maps of a linear method, or of ``closed-constant``, by the name it has in ``METHODS``."""
        plain = name.removesuffix(GLASS_SUFFIX)
        with_glass = name.endswith(GLASS_SUFFIX) or plain in ("rays-slide", CLOSED)
        background = self.glass if with_glass else NOTHING
        if plain == "macenko-tile":
            rows = self.macenko_tiles
            return Result(self._tiled(rows, background), rows, background)
        if plain == "complement":
            return Result(complement(self.od, self.library, background), self.library, background)
        return self.unmixed(getattr(self, VECTORS[plain]), background)

    def unmixed(self, stain_matrix: FloatArray, background: FloatArray) -> Result:
        """The closed form under constant (N, 3) S and (3,) B."""
        return Result(unmix_od(self.od, stain_matrix, background), stain_matrix, background)

    @cached_property
    def od(self) -> FloatArray:
        """(3, H, W)."""
        return np.ascontiguousarray(rgb_to_od(self.rgb).transpose(2, 0, 1))

    @cached_property
    def tissue(self) -> BoolArray:
        """(H, W) bool, as the product sees it; dilated."""
        return self.tissue_map.window(0, 0, *self.grid.shape)

    @cached_property
    def rays(self) -> FloatArray:
        """(N, 3): the outermost percent of the angles of all tissue, less one glass."""
        y, *_ = pool_od(self.od - self.glass[:, None, None], self.tissue)
        return extreme_rays(y, self.library)

    @cached_property
    def own(self) -> FloatArray:
        """(N, 3): the slide's own vectors as ``calibrate`` estimates them, from all tissue."""
        raised = self.tissue_map.raised
        glass = self.glass if raised is None else self.glass - raised
        y, *_ = pool_od(self.od - glass[:, None, None], self.tissue)
        return estimate_rays(y, self.library).stain_matrix

    @cached_property
    def macenko(self) -> FloatArray:
        """(2, 3) in the library's order."""
        return self._extracted("MacenkoExtractor", self.rgb)

    @cached_property
    def vahadane(self) -> FloatArray:
        """(2, 3) in the library's order."""
        return self._extracted("VahadaneExtractor", self.rgb)

    @cached_property
    def macenko_tiles(self) -> FloatArray:
        """(GY, GX, 2, 3), each tile on its own; the library's where a tile gives nothing."""
        rows = np.empty((*self.grid.tile_grid, *self.library.shape), np.float32)
        for tile in np.ndindex(*self.grid.tile_grid):
            own = self.grid.tile_region(*tile).slices
            rows[tile] = self.library
            if self.tissue[own].any():
                try:
                    rows[tile] = self._extracted("MacenkoExtractor", self.rgb[own])
                except (ValueError, np.linalg.LinAlgError):  # too little of anything
                    continue
        return rows

    def _tiled(self, rows: FloatArray, background: FloatArray) -> FloatArray:
        q = np.empty((len(self.library), *self.grid.shape), np.float32)
        for tile in np.ndindex(*self.grid.tile_grid):
            own = (slice(None), *self.grid.tile_region(*tile).slices)
            q[own] = unmix_od(self.od[own], rows[tile], background)
        return q

    def _extracted(self, extractor: str, rgb: ByteArray) -> FloatArray:
        """Vectors by tiatoolbox, from every n-th pixel in y and x, without averaging."""
        step = max(int(np.ceil(np.sqrt(rgb.shape[0] * rgb.shape[1] / MOST_PIXELS[extractor]))), 1)
        rows = extract(extractor, np.ascontiguousarray(rgb[::step, ::step]))
        if not np.isfinite(rows).all():
            raise ValueError("no stain vectors")
        return unit_rows(rows[match_rows(rows, self.library)[0]])


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
def extract(extractor: str, rgb: ByteArray) -> npt.NDArray[np.float64]:
    """(2, 3) stain vectors by an extractor of tiatoolbox."""
    from tiatoolbox.tools import stainextract

    found = getattr(stainextract, extractor)().get_stain_matrix(rgb)
    return np.asarray(np.asarray(found, np.float32), np.float64)
