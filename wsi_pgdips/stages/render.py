"""``render``: concentration of one block under the blended fields, written once and whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.layers.schema import residual_level
from wsi_pgdips.machine import in_threads
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.records import BoolArray, ByteArray, Fields, FloatArray, Pixels, SlidePrior
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.fit import READ_THREADS
from wsi_pgdips.stages.render_tile import Maps, TileRenderer
from wsi_pgdips.stages.strips import Strips
from wsi_pgdips.tiles.blocks import BlockPlan, stream_tiles

TileIndex = tuple[int, int]


@dataclass(frozen=True)
class RenderedBlock:
    """What a block writes.

    Attributes:
        codes: (N, h, w) uint16, 0 where not measured. tissue: (h, w) bool.
        residual_rms: uint16 codes at the level of ``qc/residual``, 0 where not measured.
        residual_od: (3, h, w) float32, or None. strips: of each tile. failed: tiles not read.
        alone: tiles whose surroundings could not be read.
    """

    codes: npt.NDArray[np.uint16]
    tissue: BoolArray
    residual_rms: npt.NDArray[np.uint16]
    residual_od: FloatArray | None
    strips: dict[TileIndex, Strips]
    failed: tuple[TileIndex, ...]
    alone: tuple[TileIndex, ...]


def render_block(
    context: Context,
    prior: SlidePrior,
    fields: Fields,
    slide_matrix: FloatArray,
    plan: BlockPlan,
    maps: Maps,
    pixels: Pixels,
    *,
    device: str,
    threads: int,
    on_tile: Callable[[], None] = lambda: None,
    into: npt.NDArray[np.uint16] | None = None,
) -> RenderedBlock:
    """Render every tile of a block; one that cannot be read stays not measured.

    Args:
        pixels: of the slide, or those of them that were kept.
        into: at least as many codes as a block has, which become those of the result.
    """
    block = context.grid.block_region(plan.by, plan.bx)
    n = context.stains.n
    size = n * block.h * block.w
    codes = (np.empty(size, np.uint16) if into is None else into[:size]).reshape(
        n, block.h, block.w
    )
    codes[:] = 0
    side = 1 << residual_level(context.grid)
    rms = np.zeros((-(-block.h // side), -(-block.w // side)), np.uint16)
    keep = context.settings.store_residual
    residual_od = np.zeros((3, block.h, block.w), np.float32) if keep else None
    strips: dict[TileIndex, Strips] = {}
    failed: list[TileIndex] = []
    alone: list[TileIndex] = []
    renderer = TileRenderer(context, prior, fields, slide_matrix, maps, device)

    def work(read: tuple[TileIndex, ByteArray | Exception]) -> None:
        tile, rgb = read
        whole = not isinstance(rgb, Exception)
        if isinstance(rgb, Exception) and renderer.needs_halo:
            rgb = _without_halo(context, tile)
        if isinstance(rgb, Exception):
            failed.append(tile)
            return
        if not whole:
            alone.append(tile)
        done = renderer.render(tile, rgb, halo_read=whole)
        region = context.grid.tile_region(*tile)
        y, x = region.y - block.y, region.x - block.x
        own = (slice(y, y + region.h), slice(x, x + region.w))
        codes[(slice(None), *own)] = done.codes
        coarse_y, coarse_x = y // side, x // side
        h, w = done.residual_rms.shape
        rms[coarse_y : coarse_y + h, coarse_x : coarse_x + w] = done.residual_rms
        if residual_od is not None and done.residual_od is not None:
            residual_od[(slice(None), *own)] = done.residual_od
        strips[tile] = done.strips

    regions = [renderer.region(t) for t in plan.render]
    with contextlib.closing(
        stream_tiles(pixels, regions, threads=READ_THREADS, depth=2 * threads)
    ) as reads:
        tiles = ((t, rgb) for t, (_, rgb) in zip(plan.render, reads, strict=True))
        with contextlib.closing(in_threads(work, tiles, threads)) as working:
            for _ in working:
                on_tile()
    tissue = context.tissue_of(block) & (codes[0] > 0)
    return RenderedBlock(
        codes, tissue, rms, residual_od, strips, tuple(sorted(failed)), tuple(sorted(alone))
    )


def _without_halo(context: Context, tile: TileIndex) -> ByteArray | Exception:
    """A tile's own pixels, where something is wrong with those around it."""
    own = context.grid.tile_region(*tile)
    try:
        return context.source.read(own.y, own.x, own.h, own.w)
    except Exception as error:
        return error


def stain_matrix_at(fields: Fields, grid: OutputGrid, region: Region) -> FloatArray:
    """(N, 3, h, w) S at the pixels of a region, rows renormalised after interpolation."""
    s = interpolate(fields.stain_matrix, grid, region)
    return np.asarray(s / np.maximum(np.sqrt((s * s).sum(1, keepdims=True)), 1e-6), np.float32)
