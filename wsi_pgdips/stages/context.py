"""One slide, opened and planned: what every stage needs to know about it."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.config import ScientificSettings, tile_seed
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, SlideMeta, StainSet, at_tiles
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.solver.presets import HALO, Preset, resolve
from wsi_pgdips.solver.tile import TileInput, tile_input
from wsi_pgdips.stages.seams import BORDER, SIDES
from wsi_pgdips.tiles.blocks import BlockPlan, plan_blocks
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.masks import file_digest, load_roi
from wsi_pgdips.tiles.tissue import find_tissue
from wsi_pgdips.tiles.tissue_map import TissueMap

OVERVIEW_MPP = 8.0
UNREADABLE = "overview_unreadable"  # flag: parts of the slide were not seen when it was planned


def identity(meta: SlideMeta, settings: ScientificSettings, stains: StainSet) -> dict[str, Any]:
    """Return what must agree for two runs to be the same run, free of paths.

    Returns:
        ``settings``: the scientific settings, with the content of files in place of their paths;
        ``identity``: hex SHA-256 of these settings and the slide's checksum.

    Raises:
        SettingsError: a mask or region file that cannot be read.
    """
    science = settings.model_dump()
    for key in ("mask", "roi"):
        if science[key] is not None:
            science[key] = file_digest(Path(science[key]))
    science["stains"] = {
        "name": stains.name,
        "labels": list(stains.labels),
        "matrix": [[round(v, 6) for v in row] for row in stains.matrix],
        "alternatives": [np.round(rows, 6).tolist() for rows in stains.alternatives],
        "saturating": stains.saturating,
        "freedom_deg": [None if np.isinf(f) else float(f) for f in stains.freedom],
    }
    text = json.dumps({"slide_checksum": meta.checksum, "settings": science}, sort_keys=True)
    return {"identity": hashlib.sha256(text.encode()).hexdigest(), "settings": science}


@dataclass(frozen=True)
class Context:
    """A slide with its tissue, glass and plan.

    Attributes:
        background: (CY, CX, 3) B of glass at the centres of cells. b0: (3,) of the slide.
        planned: (H, W) bool like ``tissue.mask``, together with the parts that the overview could
            not read: these are rendered too, since they may hold tissue.
        plans: blocks to work on, raster order. identity: of slide and settings, see ``identity``.
    """

    source: PyramidSource
    stains: StainSet
    settings: ScientificSettings
    preset: Preset
    tissue: TissueMap
    background: FloatArray
    b0: FloatArray
    planned: BoolArray
    plans: tuple[BlockPlan, ...]
    identity: dict[str, Any]

    @property
    def grid(self) -> OutputGrid:
        return self.source.grid

    @property
    def n_tiles(self) -> int:
        return sum(len(p.render) for p in self.plans)

    @functools.cached_property
    def tile_background(self) -> FloatArray:
        """(GY, GX, 3) B of glass at the centres of the tiles."""
        return at_tiles(self.background, self.grid.tile_grid)

    def plan(self, block: tuple[int, int]) -> BlockPlan:
        return next(p for p in self.plans if (p.by, p.bx) == block)

    def tile_square(self, tile: tuple[int, int]) -> Region:
        """Return a tile at its full side, also where it hangs over the slide's end."""
        side = self.grid.tile
        return Region(tile[0] * side, tile[1] * side, side, side)

    def with_halo(self, square: Region, halo: int = HALO) -> Region:
        """Return what is read for a square: its pixels and the halo, cut at the slide's end."""
        return square.grown(halo).clipped(self.grid.shape)

    def tile_input(self, tile: tuple[int, int], rgb: ByteArray, halo: int = HALO) -> TileInput:
        """Return the solver's input for a tile.

        Args:
            rgb: (h, w, 3) of ``with_halo(tile_square(tile), halo)``.
        """
        digest = self.identity["identity"]
        seed = tile_seed(digest, *tile, digest)
        return self._input(self.tile_square(tile), rgb, self.tile_background[tile], seed, halo)

    def window_input(self, square: Region, rgb: ByteArray) -> TileInput:
        """Return the solver's input for any square, whose pixels with halo are given."""
        centre = Region(square.y + square.h // 2, square.x + square.w // 2, 1, 1)
        b = interpolate(self.background, self.grid, centre)[:, 0, 0]
        return self._input(square, rgb, b, 0, HALO)

    def _input(
        self,
        square: Region,
        rgb: ByteArray,
        background: FloatArray,
        seed: int,
        halo: int,
    ) -> TileInput:
        full = square.grown(halo)
        have = full.clipped(self.grid.shape)
        return tile_input(
            rgb,
            self.tissue.window(have.y, have.x, have.h, have.w),
            background,
            margins=_missing(full, have),
            halo=halo,
            seed=seed,
            raised=self.tissue.raised,
        )

    def margins(self, tile: tuple[int, int], *, halo_read: bool) -> tuple[int, int, int, int]:
        """Return how many rows above and below, and columns left and right, were not read.

        Args:
            tile: that is worked on with its halo. halo_read: False where its own pixels alone were
                read.
        """
        square = self.tile_square(tile)
        have = self.with_halo(square) if halo_read else self.grid.tile_region(*tile)
        return _missing(square.grown(HALO), have)

    def tissue_along(self, region: Region) -> BoolArray:
        """Return the tissue along the sides of a tile, as ``seams.Strips`` holds it."""
        y, x, h, w = region.y, region.x, region.h, region.w
        rows, columns = min(BORDER, h), min(BORDER, w)
        out = np.zeros((len(SIDES), self.grid.tile, BORDER), bool)
        out[0, :w, :rows] = self.tissue.window(y, x, rows, w).T
        out[1, :w, :rows] = self.tissue.window(region.stop_y - rows, x, rows, w).T[:, ::-1]
        out[2, :h, :columns] = self.tissue.window(y, x, h, columns)
        out[3, :h, :columns] = self.tissue.window(y, region.stop_x - columns, h, columns)[:, ::-1]
        return out

    def read_tile(self, tile: tuple[int, int]) -> ByteArray | Exception:
        """Return a tile's own pixels, or the exception where they cannot be read."""
        own = self.grid.tile_region(*tile)
        try:
            return self.source.read(own.y, own.x, own.h, own.w)
        except Exception as error:
            return error

    def tissue_of(self, region: Region) -> BoolArray:
        return self.tissue.window(region.y, region.x, region.h, region.w)


def _missing(full: Region, have: Region) -> tuple[int, int, int, int]:
    return (
        have.y - full.y,
        full.stop_y - have.stop_y,
        have.x - full.x,
        full.stop_x - have.stop_x,
    )


def make_context(source: PyramidSource, stains: StainSet, settings: ScientificSettings) -> Context:
    """Find tissue and glass, and plan the blocks.

    Parts of the slide that its overview could not read are planned too, since they may hold tissue.

    Raises:
        SlideError: there is no tissue. SettingsError: a mask or region file that cannot be used.
    """
    tissue = find_tissue(
        source,
        masker=settings.masker,
        specimen=settings.specimen,
        mask_file=None if settings.mask is None else Path(settings.mask),
        roi_file=None if settings.roi is None else Path(settings.roi),
        overview_mpp=OVERVIEW_MPP,
        stains=stains.libraries,
    )
    if source.unreadable:
        tissue = replace(tissue, flags=(*tissue.flags, UNREADABLE))
    background, _, b0 = background_field(tissue, source.grid)
    planned = tissue.mask | _unseen(source, tissue, settings)
    return planned_context(source, stains, settings, tissue, background, b0, planned)


def _unseen(source: PyramidSource, tissue: TissueMap, settings: ScientificSettings) -> BoolArray:
    """(H, W) bool: where the overview could not be read, within the region of interest."""
    unseen = np.zeros_like(tissue.mask)
    if settings.mask is not None:  # the tissue is given, not searched for
        return unseen
    s = tissue.scale
    for r in source.unreadable:
        rows = slice(int(r.y / s), int(np.ceil(r.stop_y / s)))
        unseen[rows, int(r.x / s) : int(np.ceil(r.stop_x / s))] = True
    if settings.roi is not None and unseen.any():
        height, width = tissue.mask.shape
        unseen &= load_roi(Path(settings.roi), source.grid, (height, width), s)
    return unseen


def planned_context(
    source: PyramidSource,
    stains: StainSet,
    settings: ScientificSettings,
    tissue: TissueMap,
    background: FloatArray,
    b0: FloatArray,
    planned: BoolArray,
) -> Context:
    """Plan the blocks of a slide whose tissue and glass are known; arguments as of ``Context``.

    Raises:
        SettingsError: a mask or region file that cannot be read.
    """
    return Context(
        source,
        stains,
        settings,
        resolve(settings),
        tissue,
        np.asarray(background, np.float32),
        np.asarray(b0, np.float32),
        planned,
        plan_blocks(source.grid, replace(tissue, mask=planned), settings.min_tissue),
        identity(source.meta, settings, stains),
    )
