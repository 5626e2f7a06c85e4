"""``render``: concentration of one block under the blended fields, written once and whole."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import Fault
from wsi_pgdips.layers.schema import FILL, residual_level
from wsi_pgdips.machine import in_threads
from wsi_pgdips.records import BoolArray, ByteArray, Fields, FloatArray, Pixels, SlidePrior
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.evidence import evidence_sums
from wsi_pgdips.stages.fit import READ_THREADS, OnFault, OnTile, Read
from wsi_pgdips.stages.lattice import BINS, Counts
from wsi_pgdips.stages.seams import Strips
from wsi_pgdips.stages.tile_renderer import Maps, TileRenderer
from wsi_pgdips.tiles.blocks import BlockPlan, stream_tiles

TileIndex = tuple[int, int]


@dataclass(frozen=True)
class RenderedBlock:
    """The arrays of a block that go into the layers, and what became of its tiles.

    Attributes:
        codes: (N, h, w) uint16, 0 where not measured. tissue: (h, w) bool.
        artifact: (h, w) uint8, ``Artifact``.
        residual_rms: uint16 codes at the level of ``qc/residual``, 0 where not measured.
        residual_od: (3, h, w) float32, or None. strips: of each tile that was rendered.
        sums: name -> array, what the verdict on the slide needs; see ``evidence_sums``.
        lattice: (N, BINS) histogram of the lattice indices, zeros without a network.
        failed: tiles that could not be read. alone: tiles that were read without their
            surroundings, since these could not be read.
    """

    codes: npt.NDArray[np.uint16]
    tissue: BoolArray
    artifact: ByteArray
    residual_rms: npt.NDArray[np.uint16]
    residual_od: FloatArray | None
    strips: dict[TileIndex, Strips]
    sums: dict[str, npt.NDArray[np.float64]]
    lattice: Counts
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
    on_tile: OnTile = lambda: None,
    on_fault: OnFault = lambda tile, fault: None,
    into: npt.NDArray[np.uint16] | None = None,
) -> RenderedBlock:
    """Render every tile of a block; a tile that cannot be read stays "not measured".

    Args:
        pixels: of the slide; kept ones where there are some.
        on_tile: called after each tile. on_fault: called at the end for each tile that could not
            be read, or only without its surroundings, with the reason.
        into: memory for at least as many codes as the block has, which the result then uses.
    """
    block = context.grid.block_region(plan.by, plan.bx)
    n = context.stains.n
    size = n * block.h * block.w
    codes = (np.empty(size, np.uint16) if into is None else into[:size]).reshape(
        n, block.h, block.w
    )
    codes[:] = FILL
    artifact = np.zeros((block.h, block.w), np.uint8)
    side = 1 << residual_level(context.grid)
    rms = np.zeros((-(-block.h // side), -(-block.w // side)), np.uint16)
    keep = context.settings.store_residual
    residual_od = np.zeros((3, block.h, block.w), np.float32) if keep else None
    strips: dict[TileIndex, Strips] = {}
    counts: list[Counts] = []
    faults: dict[TileIndex, Fault] = {}
    renderer = TileRenderer(context, prior, fields, slide_matrix, maps, device)

    def work(read: Read) -> None:
        tile, rgb = read
        whole = not isinstance(rgb, Exception)
        if isinstance(rgb, Exception):
            faults[tile] = Fault.of(rgb)
            if renderer.needs_halo:
                rgb = context.read_tile(tile)
        if isinstance(rgb, Exception):
            return
        done = renderer.render(tile, rgb, halo_read=whole)
        region = context.grid.tile_region(*tile)
        y, x = region.y - block.y, region.x - block.x
        own = (slice(y, y + region.h), slice(x, x + region.w))
        codes[(slice(None), *own)] = done.codes
        artifact[own] = done.artifact
        coarse_y, coarse_x = y // side, x // side
        h, w = done.residual_rms.shape
        rms[coarse_y : coarse_y + h, coarse_x : coarse_x + w] = done.residual_rms
        if residual_od is not None and done.residual_od is not None:
            residual_od[(slice(None), *own)] = done.residual_od
        strips[tile] = done.strips
        if done.lattice is not None:
            counts.append(done.lattice)

    regions = [renderer.region(t) for t in plan.render]
    with contextlib.closing(
        stream_tiles(pixels, regions, threads=READ_THREADS, depth=2 * threads)
    ) as reads:
        tiles = ((t, rgb) for t, (_, rgb) in zip(plan.render, reads, strict=True))
        with contextlib.closing(in_threads(work, tiles, threads)) as working:
            for _ in working:
                on_tile()
    tissue = context.tissue_of(block) & (codes[0] > 0)
    known = context.tissue.artifacts(block)
    np.copyto(artifact, known, where=known > 0)
    codes[:, known > 0] = FILL
    rms[~_any_in_cells(codes[0] != FILL, side)] = FILL
    for tile, fault in sorted(faults.items()):
        on_fault(tile, fault)
    return RenderedBlock(
        codes,
        tissue,
        artifact,
        rms,
        residual_od,
        strips,
        evidence_sums(codes, artifact, context.tissue_of(block), rms),
        sum(counts, np.zeros((n, BINS), np.int64)),
        failed=tuple(sorted(faults.keys() - strips.keys())),
        alone=tuple(sorted(faults.keys() & strips.keys())),
    )


def _any_in_cells(mask: BoolArray, side: int) -> BoolArray:
    """Find the cells of ``side`` pixels, cut at the end, with a True pixel."""
    rows = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], side), 0)
    return np.asarray(np.logical_or.reduceat(rows, np.arange(0, mask.shape[1], side), 1))
