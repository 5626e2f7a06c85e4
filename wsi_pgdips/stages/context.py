"""One slide, opened and planned: what every stage needs to know of it."""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_pgdips.config import ScientificSettings, tile_seed
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.optics.stains import load_stains
from wsi_pgdips.pipeline.ledger import Ledger, digest, identity, load_arrays, save_arrays
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, StainSet, at_tiles
from wsi_pgdips.slide.reader import open_slide
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.solver.presets import HALO, Preset, resolve
from wsi_pgdips.solver.tile import TileInput, tile_input
from wsi_pgdips.stages.strips import BORDER
from wsi_pgdips.tiles.blocks import BlockPlan, plan_blocks
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.masks import load_roi
from wsi_pgdips.tiles.tissue import TissueMap, find_tissue

OVERVIEW_MPP = 8.0
UNREADABLE = "overview_unreadable"  # flag: parts of the slide were not seen when it was planned


@dataclass(frozen=True)
class Context:
    """A slide with its tissue, glass and plan.

    Attributes:
        background: (CY, CX, 3) B of glass at the centres of cells. b0: (3,) of the slide.
        planned: (H, W) bool like ``tissue.mask``, with the parts that the overview could not read:
            whoever renders them finds out whether they are lost.
        plans: blocks to work on, raster order. digest: identity of slide and settings.
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
    digest: str

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
        """A tile at its full side, also where it hangs over the slide's end."""
        side = self.grid.tile
        return Region(tile[0] * side, tile[1] * side, side, side)

    def with_halo(self, square: Region, halo: int = HALO) -> Region:
        """What is read for a square: its pixels and the halo, as far as the slide goes."""
        return square.grown(halo).clipped(self.grid.shape)

    def tile_input(self, tile: tuple[int, int], rgb: ByteArray, halo: int = HALO) -> TileInput:
        """The solver's view of a tile whose pixels were read, with so much around them."""
        seed = tile_seed(self.digest, *tile, self.digest)
        return self._input(self.tile_square(tile), rgb, self.tile_background[tile], seed, halo)

    def window_input(self, square: Region, rgb: ByteArray) -> TileInput:
        """The solver's view of any square whose pixels with halo were read."""
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
        """Rows above and below, columns left and right, that a tile with its halo lacks."""
        square = self.tile_square(tile)
        have = self.with_halo(square) if halo_read else self.grid.tile_region(*tile)
        return _missing(square.grown(HALO), have)

    def tissue_along(self, region: Region) -> dict[str, BoolArray]:
        """Tissue along the sides of a region, as in ``strips.Strips``."""
        y, x, h, w = region.y, region.x, region.h, region.w
        rows, columns = min(BORDER, h), min(BORDER, w)
        return {
            "top": self.tissue.window(y, x, rows, w).T,
            "bottom": self.tissue.window(region.stop_y - rows, x, rows, w).T[:, ::-1],
            "left": self.tissue.window(y, x, h, columns),
            "right": self.tissue.window(y, region.stop_x - columns, h, columns)[:, ::-1],
        }

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

    Parts of the slide that its overview could not read are planned too, lest they pass for glass.

    Raises:
        SlideError: there is no tissue. SettingsError: a mask or region file that cannot be used.
    """
    tissue = find_tissue(
        source,
        masker=settings.masker,
        mask_file=None if settings.mask is None else Path(settings.mask),
        roi_file=None if settings.roi is None else Path(settings.roi),
        overview_mpp=OVERVIEW_MPP,
    )
    if source.unreadable:
        tissue = replace(tissue, flags=(*tissue.flags, UNREADABLE))
    background, _, b0 = background_field(tissue, source.grid)
    planned = tissue.mask | _unseen(source, tissue, settings)
    return _context(source, stains, settings, tissue, background, b0, planned)


def _unseen(source: PyramidSource, tissue: TissueMap, settings: ScientificSettings) -> BoolArray:
    """(H, W) bool: where tissue was asked for, but the overview could not be read."""
    unseen = np.zeros_like(tissue.mask)
    if settings.mask is not None:  # the tissue was drawn, not looked for
        return unseen
    s = tissue.scale
    for r in source.unreadable:
        rows = slice(int(r.y / s), int(np.ceil(r.stop_y / s)))
        unseen[rows, int(r.x / s) : int(np.ceil(r.stop_x / s))] = True
    if settings.roi is not None and unseen.any():
        height, width = tissue.mask.shape
        unseen &= load_roi(Path(settings.roi), source.grid, (height, width), s)
    return unseen


def _context(
    source: PyramidSource,
    stains: StainSet,
    settings: ScientificSettings,
    tissue: TissueMap,
    background: FloatArray,
    b0: FloatArray,
    planned: BoolArray,
) -> Context:
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
        digest(identity(source.meta, settings, stains)),
    )


def save_plan(context: Context, path: Path) -> None:
    """Keep what was found of tissue and glass, so that workers need not look again."""
    t = context.tissue
    save_arrays(
        path,
        mask=t.mask,
        core=t.core,
        planned=context.planned,
        unreadable=_rows(context.source.unreadable),
        scale=np.float64(t.scale),
        flags=np.array(t.flags, dtype=np.str_),
        raised=np.zeros(0, np.float32) if t.raised is None else t.raised,
        background=context.background,
        b0=context.b0,
    )


def load_context(
    source: PyramidSource, stains: StainSet, settings: ScientificSettings, path: Path
) -> Context:
    """The context of a saved plan."""
    a = load_arrays(path)
    nothing = np.zeros(a["mask"].shape, bool)
    tissue = TissueMap(
        mask=a["mask"],
        core=a["core"],
        glass=nothing,
        glass_od=np.zeros((*nothing.shape, 3), np.float32),
        scale=float(a["scale"]),
        shape=source.grid.shape,
        flags=tuple(str(f) for f in a["flags"]),
        raised=a["raised"] if len(a["raised"]) else None,
    )
    return _context(source, stains, settings, tissue, a["background"], a["b0"], a["planned"])


def sees_more(source: PyramidSource, path: Path) -> bool:
    """Whether a plan was made while parts of the slide could not be read that can be read now."""
    unreadable = load_arrays(path)["unreadable"]
    if len(unreadable) == 0:
        return False
    source.overview(OVERVIEW_MPP)
    return not np.array_equal(unreadable, _rows(source.unreadable))


def _rows(regions: tuple[Region, ...]) -> npt.NDArray[np.int64]:
    return np.array([astuple(r) for r in regions], np.int64).reshape(-1, 4)


AUTO_BATCH = 0


@dataclass(frozen=True)
class SlideJob:
    """What a worker process is handed: small, picklable, hashable.

    Attributes:
        batch: tiles that a GPU solves at once, ``AUTO_BATCH`` for what its free memory holds.
    """

    slide: str
    output: str
    settings: ScientificSettings
    device: str
    threads: int
    batch: int
    keep_pixels: bool = False

    @property
    def name(self) -> str:
        """Of the slide's file."""
        return Path(self.slide).name

    def open_source(self) -> PyramidSource:
        return open_slide(Path(self.slide), self.settings)

    def context(self) -> Context:
        """The planned slide; kept in the process, so that imports and opening are paid once."""
        return _opened(self, self.ledger.plan.stat().st_mtime_ns)

    @property
    def ledger(self) -> Ledger:
        return Ledger(Path(self.output))


def forget_contexts() -> None:
    """Let go of the slides that this process has open."""
    _opened.cache_clear()


@functools.lru_cache(maxsize=2)
def _opened(job: SlideJob, _stamp: int) -> Context:
    return load_context(
        job.open_source(), load_stains(job.settings.stains), job.settings, job.ledger.plan
    )
