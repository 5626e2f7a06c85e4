"""``render``: concentration of one block under the blended fields, written once and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsi_pgdips.field.windows import crossfade, interpolate
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.layers.pyramid import encode
from wsi_pgdips.layers.render import cross_faded, render_tile
from wsi_pgdips.optics.density import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, Fields, FloatArray, SlidePrior
from wsi_pgdips.run.context import Context
from wsi_pgdips.run.fitting import READ_THREADS
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.presets import HALO
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.tiles.grid import BlockPlan
from wsi_pgdips.tiles.stream import stream_tiles

TileIndex = tuple[int, int]
Maps = Callable[[TileIndex], npt.NDArray[np.float16] | None]
SIDES = ("top", "bottom", "left", "right")
NEUTRAL_PRIOR_WEIGHT = 1e-3  # below, a prior map moves q by less than the stored step
BORDER = 2  # pixel rows or columns kept along each side of a tile for the seam step


@dataclass(frozen=True)
class Strips:
    """Along the four sides of one tile: d = q - q(S0, B0) of the same pixels.

    Attributes:
        blended: side -> (N, L, 2), outermost pixel first. unblended: the same with the tile's own
            parameters instead of the fields. tissue: side -> (L, 2) bool.
    """

    blended: dict[str, FloatArray]
    unblended: dict[str, FloatArray]
    tissue: dict[str, BoolArray]


@dataclass(frozen=True)
class RenderedBlock:
    """What a block writes.

    Attributes:
        codes: (N, h, w) uint16, 0 where not measured. tissue: (h, w) bool.
        residual_sq: (h, w) float32 mean over r, g, b of the squared residual OD.
        residual_od: (3, h, w) float32, or None. strips: of each tile. failed: tiles not read.
    """

    codes: npt.NDArray[np.uint16]
    tissue: BoolArray
    residual_sq: FloatArray
    residual_od: FloatArray | None
    strips: dict[TileIndex, Strips]
    failed: tuple[TileIndex, ...]


def render_block(
    context: Context,
    prior: SlidePrior,
    fields: Fields,
    slide_matrix: FloatArray,
    plan: BlockPlan,
    maps: Maps,
    *,
    device: str,
    threads: int,
    on_tile: Callable[[], None] = lambda: None,
) -> RenderedBlock:
    """Render every tile of a block; one that cannot be read stays not measured."""
    block = context.grid.block_region(plan.by, plan.bx)
    n = context.stains.n
    codes = np.zeros((n, block.h, block.w), np.uint16)
    residual_sq = np.zeros((block.h, block.w), np.float32)
    keep = context.settings.store_residual
    residual_od = np.zeros((3, block.h, block.w), np.float32) if keep else None
    strips: dict[TileIndex, Strips] = {}
    failed: list[TileIndex] = []

    network = _on_device(prior, device)

    def work(tile: TileIndex, rgb: ByteArray, whole: bool) -> None:
        region = context.grid.tile_region(*tile)
        own = np.s_[
            region.y - block.y : region.stop_y - block.y,
            region.x - block.x : region.stop_x - block.x,
        ]
        wide = context.tile_input(tile, rgb, halo_read=whole) if network else None
        od = rgb_to_od(rgb).transpose(2, 0, 1) if wide is None else _own(wide, region, wide.od)
        od = np.ascontiguousarray(od)
        s = stain_matrix_at(fields, context.grid, region)
        b = interpolate(fields.background, context.grid, region)
        anchor, closed = None, None
        if wide is not None:
            pair = slide_map(context, prior, network, fields, tile, wide)
            anchor, closed = (_own(wide, region, q) for q in pair)
        elif context.preset.noise_input:
            anchor = prior_map(context, tile, region, maps)
        weight = None if anchor is None else prior.prior_weight
        rendered = render_tile(od, s, b, weight, anchor, device=device)
        codes[(slice(None), *own)] = encode(
            rendered.concentration, np.ones((region.h, region.w), bool)
        )
        residual_sq[own] = (rendered.residual**2).mean(0)
        if residual_od is not None:
            # against the stored, quantised q, so that recomposition is lossless
            stored = codes[(slice(None), *own)].astype(np.float32) * np.float32(1e-3)
            residual_od[(slice(None), *own)] = od - b - np.einsum("nhw,nchw->chw", stored, s)
        if closed is None:
            strips[tile] = _strips(
                context, fields, slide_matrix, tile, od, rendered.concentration, weight, anchor
            )
        else:
            # the slide's network adds no border of its own (it sees past the tile's); what remains
            # is the fields' part, and the closed form shows it without the noise of the other
            strips[tile] = _strips(context, fields, slide_matrix, tile, od, closed, None, None)

    def read(tile: TileIndex) -> Region:
        square = context.tile_square(tile)
        return context.with_halo(square) if network else context.grid.tile_region(*tile)

    reads = stream_tiles(
        context.source, [read(t) for t in plan.render], threads=READ_THREADS, depth=2 * threads
    )
    with ThreadPoolExecutor(threads, thread_name_prefix="render") as executor:
        pending: list[Future[None]] = []
        for tile, (_, pixels) in zip(plan.render, reads, strict=True):
            whole = not isinstance(pixels, Exception)
            if isinstance(pixels, Exception) and network:
                pixels = _without_halo(context, tile)
            if isinstance(pixels, Exception):
                failed.append(tile)
                on_tile()
                continue
            pending.append(executor.submit(work, tile, pixels, whole))
            while len(pending) > 2 * threads:
                pending.pop(0).result()
                on_tile()
        for future in pending:
            future.result()
            on_tile()
    tissue = context.tissue_of(block) & (codes[0] > 0)
    return RenderedBlock(codes, tissue, residual_sq, residual_od, strips, tuple(failed))


def _on_device(prior: SlidePrior, device: str) -> dict[str, torch.Tensor]:
    """The slide's network; empty where there is none, or where Lambda lets it move nothing."""
    if prior.prior_weight.max() < NEUTRAL_PRIOR_WEIGHT:
        return {}
    return {k: torch.from_numpy(v).to(device) for k, v in prior.network.items()}


def _without_halo(context: Context, tile: TileIndex) -> ByteArray | Exception:
    """A tile's own pixels, where something is wrong with those around it."""
    own = context.grid.tile_region(*tile)
    try:
        return context.source.read(own.y, own.x, own.h, own.w)
    except Exception as error:
        return error


def _own(tile: TileInput, region: Region, a: FloatArray) -> FloatArray:
    """A tile's own pixels of an array with its halo, as far as the slide goes."""
    first = tile.halo
    return np.ascontiguousarray(a[:, first : first + region.h, first : first + region.w])


def slide_map(
    context: Context,
    prior: SlidePrior,
    network: dict[str, torch.Tensor],
    fields: Fields,
    tile: TileIndex,
    pixels: TileInput,
) -> tuple[FloatArray, FloatArray]:
    """(N, H, W) q of a tile with its halo under the fields: of the slide's network, closed form."""
    region = context.tile_square(tile).grown(pixels.halo)
    s = stain_matrix_at(fields, context.grid, region)
    b = interpolate(fields.background, context.grid, region)
    device = next(iter(network.values())).device
    od, s_t, b_t = (torch.from_numpy(a).to(device) for a in (pixels.od, s, b))
    with torch.no_grad():
        q, closed = slide_network.estimate(
            network, od, s_t, b_t, float(prior.spectral_correction.mean())
        )
    return q.clamp_min(0).cpu().numpy(), closed.cpu().numpy()


def stain_matrix_at(fields: Fields, grid: OutputGrid, region: Region) -> FloatArray:
    """(N, 3, h, w) S at the pixels of a region, rows renormalised after interpolation."""
    s = interpolate(fields.stain_matrix, grid, region)
    return np.asarray(s / np.maximum(np.sqrt((s * s).sum(1, keepdims=True)), 1e-6), np.float32)


def prior_map(context: Context, tile: TileIndex, region: Region, maps: Maps) -> FloatArray | None:
    """(N, h, w) the network's q at the pixels of a tile, neighbours faded in at the borders.

    None for a tile without a map, as one that could not be fitted.
    """
    side = context.grid.tile
    found = {}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            q = maps((tile[0] + dy, tile[1] + dx))
            if q is not None and np.isfinite(q).all():
                found[dy, dx] = q
    if (0, 0) not in found:
        return None
    faded = cross_faded(found, crossfade(side, HALO), side)
    return np.ascontiguousarray(faded[:, : region.h, : region.w])


def _strips(
    context: Context,
    fields: Fields,
    slide_matrix: FloatArray,
    tile: TileIndex,
    od: FloatArray,
    q: FloatArray,
    weight: FloatArray | None,
    anchor: FloatArray | None,
) -> Strips:
    """d along the sides; the reference is rendered in the same way, prior map included."""
    mask = context.tissue_of(context.grid.tile_region(*tile))
    own_s = fields.raw_stain_matrix[tile]
    own_b = fields.raw_background[tile]
    own_s = np.where(np.isfinite(own_s), own_s, slide_matrix)
    own_b = np.where(np.isfinite(own_b), own_b, context.b0)
    blended, unblended, tissue = {}, {}, {}
    for name, cut in _sides():
        y = np.ascontiguousarray(_oriented(od[cut], name))
        pull = None if anchor is None else _oriented(anchor[cut], name)
        reference = _closed(y, slide_matrix, context.b0, weight, pull)
        blended[name] = (_oriented(q[cut], name) - reference).astype(np.float32)
        unblended[name] = _closed(y, own_s, own_b, weight, pull) - reference
        tissue[name] = np.ascontiguousarray(_oriented(mask[None][cut], name)[0])
    return Strips(blended, unblended, tissue)


def _sides() -> Iterator[tuple[str, tuple[slice, slice, slice]]]:
    every = slice(None)
    yield "top", (every, slice(0, BORDER), every)
    yield "bottom", (every, slice(-BORDER, None), every)
    yield "left", (every, every, slice(0, BORDER))
    yield "right", (every, every, slice(-BORDER, None))


def _oriented(strip: npt.NDArray[Any], side: str) -> npt.NDArray[Any]:
    """(C, L, 2) with the outermost pixel first."""
    along = strip.swapaxes(1, 2) if side in ("top", "bottom") else strip
    return along[..., ::-1] if side in ("bottom", "right") else along


def _closed(
    y: npt.NDArray[Any],
    stain_matrix: FloatArray,
    background: FloatArray,
    weight: FloatArray | None,
    anchor: npt.NDArray[Any] | None,
) -> FloatArray:
    return render_tile(
        np.asarray(y, np.float32),
        np.asarray(stain_matrix, np.float32),
        np.asarray(background, np.float32),
        None if anchor is None else weight,
        None if anchor is None else np.asarray(anchor, np.float32),
    ).concentration
