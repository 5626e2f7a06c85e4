"""``calibrate`` and ``fit``: a slide's pixels go to the solver, its results into records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from wsi_pgdips.errors import Fault
from wsi_pgdips.geometry import Region, bounding_box
from wsi_pgdips.machine import in_threads, tile_executor
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import BlockFit, ByteArray, SlidePrior, TileFlag
from wsi_pgdips.solver.fit import TileFit, fallback, fit_tiles
from wsi_pgdips.solver.presets import HALO
from wsi_pgdips.solver.prior import calibrate_prior
from wsi_pgdips.solver.slide_network import needs_focus
from wsi_pgdips.solver.tile import TileInput
from wsi_pgdips.solver.training import OnStep
from wsi_pgdips.stages.context import Context
from wsi_pgdips.tiles.blocks import BlockPlan, stream_tiles

READ_THREADS = 2
UNREAD = "calibration_unread"  # flag: the prior lacks tiles that could not be read
NETWORK_BYTES = 10**9  # of one network of a tile with its gradients, as published
MEMORY_SHARE = 0.9
_TOGETHER = ("stain_matrix", "spectral_correction", "background", "confidence")
JPEG_BLOCK = 16  # pixels; of a JPEG with halved chroma
OnTile = Callable[[], None]
TileIndex = tuple[int, int]
Keep = Callable[[TileIndex, ByteArray], None]
OnFault = Callable[[TileIndex, Fault], None]
Map = npt.NDArray[np.float16]
Read = tuple[TileIndex, ByteArray | Exception]
Row = tuple[TileIndex, TileFit, Map | None, Fault | None]


def calibrate(
    context: Context, device: torch.device, threads: int, on_step: OnStep = lambda: None
) -> SlidePrior:
    """Estimate the slide's prior from windows spread evenly over those with the most tissue.

    A window that cannot be read is left out and the prior is flagged ``UNREAD``; with none left the
    library's vectors stand.

    Args:
        on_step: called after each step of a training, where there is one.
    """
    settings = context.settings
    chosen = sample_windows(context, settings.calibration_tiles)
    reads = stream_tiles(
        context.source,
        [context.with_halo(w) for w in chosen],
        threads=READ_THREADS,
        depth=4,
    )
    tiles = [
        context.window_input(window, pixels)
        for window, (_, pixels) in zip(chosen, reads, strict=True)
        if not isinstance(pixels, Exception)
    ]
    weight = None if settings.prior_weight == "auto" else float(settings.prior_weight)
    return calibrate_prior(
        tiles,
        context.stains,
        context.b0,
        context.preset,
        steps=settings.calibration_steps,
        seed=settings.seed,
        prior_weight=weight,
        device=device,
        executor=tile_executor(threads),
        flags=(*context.tissue.flags, *([UNREAD] if len(tiles) < len(chosen) else [])),
        on_step=on_step,
    )


def sample_windows(context: Context, count: int) -> list[Region]:
    """Choose windows of a tile's size to calibrate on: spread over the slide, rich in tissue.

    They lie on a lattice that begins at the tissue's own corner, so that the position of the tile
    grid does not affect the slide's prior. The choice does not depend on the seed either: other
    windows would give other stain vectors.
    """
    side, (height, width) = context.grid.tile, context.grid.shape
    y0, x0 = _tissue_corner(context)
    windows = [
        Region(y, x, side, side) for y in range(y0, height, side) for x in range(x0, width, side)
    ]
    inside = [w.clipped((height, width)) for w in windows]
    # what hangs over the slide's end counts as empty
    share = [context.tissue.fraction(c) * (c.h * c.w) / side**2 for c in inside]
    rich = sorted((i for i, s in enumerate(share) if s > 0), key=lambda i: (-min(share[i], 0.5), i))
    if not rich:
        return []
    half = [i for i in rich if share[i] >= 0.5] or rich
    half.sort()
    if len(half) < count:
        half = sorted(rich[:count])
    order = np.random.default_rng(0).permutation(len(half))
    # one window from each of `count` equal runs of the raster order
    runs = np.array_split(np.arange(len(half)), min(count, len(half)))
    return [windows[half[int(run[np.argmin(order[run])])]] for run in runs]


def _tissue_corner(context: Context) -> tuple[int, int]:
    """(y, x) of the upper left corner of the tissue's bounding box, on the grid of JPEG blocks."""
    box, scale = bounding_box(context.planned), context.tissue.scale
    y, x = (int(at * scale) // JPEG_BLOCK * JPEG_BLOCK for at in (box.y, box.x))
    return y, x


def fit_block(
    context: Context,
    prior: SlidePrior,
    plan: BlockPlan,
    *,
    device: torch.device,
    threads: int,
    batch: int,
    on_tile: OnTile = lambda: None,
    on_fault: OnFault = lambda tile, fault: None,
    keep: Keep | None = None,
) -> BlockFit:
    """Fit the tiles of one block; a tile that fails is flagged and does not end the block.

    Args:
        batch: tiles that a GPU solves at once, 0 for as many as its free memory holds.
        on_tile: called after each tile. keep: called with the pixels of each tile that was read.
        on_fault: called for each tile that could not be read or fitted, with the reason.
    """
    chosen = set(plan.fit)
    with_maps = context.preset.noise_input
    fits: dict[TileIndex, TileFit] = {}
    maps: dict[TileIndex, Map] = {}
    for tile in plan.render:
        if tile not in chosen and not with_maps:
            fits[tile] = _failed(context, prior, tile, TileFlag.LOW_TISSUE)
            on_tile()
    for tile, fit, network_map, fault in _fitted(
        context, prior, plan, device, threads, batch, keep
    ):
        fits[tile] = fit
        if network_map is not None:
            maps[tile] = network_map
        if fault is not None:
            on_fault(tile, fault)
        on_tile()
    return _block_fit(context, plan, fits, maps if with_maps else None)


def _fitted(
    context: Context,
    prior: SlidePrior,
    plan: BlockPlan,
    device: torch.device,
    threads: int,
    batch: int,
    keep: Keep | None,
) -> Iterator[Row]:
    """Yield fits in batches: one tile a batch on the CPU, several batches at once in threads."""
    halo = HALO if context.preset.noise_input or needs_focus(prior) else 0
    solo = _solo(context, device)
    size = 1 if solo else batch or batch_for(*torch.cuda.mem_get_info(device), context.stains.n)
    workers = threads if solo else 1
    chosen = set(plan.fit)
    # where maps are blended, tiles with little tissue need one too, or a border would show
    wanted = plan.render if context.preset.noise_input else plan.fit

    def solve(group: list[Read]) -> list[Row]:
        try:
            tiles = {
                t: context.tile_input(t, p, halo) for t, p in group if not isinstance(p, Exception)
            }
            busy = [t for t in tiles if t in chosen]
            results = fit_tiles([tiles[t] for t in busy], prior, context.preset, device)
            fits = dict(zip(busy, results, strict=True))
            return [
                unread(t, p) if isinstance(p, Exception) else row(t, tiles[t], fits.get(t))
                for t, p in group
            ]
        except Exception as error:  # also of a GPU's memory; one tile must not end the run
            fault = Fault.of(error)
        # only here is the memory free that the exception held on to
        if len(group) > 1:
            middle = len(group) // 2
            return [*solve(group[:middle]), *solve(group[middle:])]
        tile = group[0][0]
        return [(tile, _failed(context, prior, tile, TileFlag.FAILED), None, fault)]

    def unread(tile: TileIndex, error: Exception) -> Row:
        # a tile that can be read without its halo is rendered, with the slide's S, M, B
        lost = isinstance(context.read_tile(tile), Exception)
        flag = TileFlag.READ_FAILED if lost else TileFlag.FAILED
        return tile, _failed(context, prior, tile, flag), None, Fault.of(error)

    def row(tile: TileIndex, pixels: TileInput, fit: TileFit | None) -> Row:
        fit = fit or _failed(context, prior, tile, TileFlag.LOW_TISSUE)
        return tile, fit, _map(fit, pixels, context), None

    regions = [context.with_halo(context.tile_square(t), halo) for t in wanted]
    reads = stream_tiles(context.source, regions, threads=READ_THREADS, depth=2 * workers * size)

    def groups() -> Iterator[list[Read]]:
        group: list[Read] = []
        for tile, (region, pixels) in zip(wanted, reads, strict=True):
            if keep is not None and not isinstance(pixels, Exception):
                keep(tile, pixels[context.grid.tile_region(*tile).within(region).slices])
            group.append((tile, pixels))
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group

    with (
        contextlib.closing(reads),
        contextlib.closing(in_threads(solve, groups(), workers)) as solved,
    ):
        for rows in solved:
            yield from rows


def _solo(context: Context, device: torch.device) -> bool:
    """Return whether tiles are fitted one by one, in threads.

    A CPU gains nothing from batches, and tiles without networks of their own are fitted on the CPU
    in any case.
    """
    return device.type == "cpu" or not context.preset.noise_input


def batch_for(free: int, total: int, stains: int) -> int:
    """Return how many tiles of ``paper`` a GPU can solve at once; too large a batch is halved.

    Args:
        free, total: bytes of its memory. stains: networks a tile.
    """
    usable = min(free, int(MEMORY_SHARE * total))
    return max(usable // (stains * NETWORK_BYTES), 1)


def _failed(context: Context, prior: SlidePrior, tile: TileIndex, flag: TileFlag) -> TileFit:
    return fallback(context.tile_background[tile], prior, flag)


def _map(fit: TileFit, tile: TileInput, context: Context) -> Map | None:
    """(N, h, w) map of a tile's own networks, or the closed form; None for presets without maps."""
    if fit.concentration is not None or not context.preset.noise_input:
        return fit.concentration
    od = torch.from_numpy(tile.od)
    q = unmix(od, torch.from_numpy(fit.stain_matrix), torch.from_numpy(fit.background))
    return q.numpy().astype(np.float16)


def _block_fit(
    context: Context,
    plan: BlockPlan,
    fits: dict[TileIndex, TileFit],
    maps: dict[TileIndex, Map] | None,
) -> BlockFit:
    rows = [fits[t] for t in plan.render]
    concentration = None
    if maps is not None:
        side = context.grid.tile + 2 * HALO
        shape = (len(rows), context.stains.n, side, side)
        concentration = np.full(shape, np.nan, np.float16)
        for i, tile in enumerate(plan.render):
            if tile in maps:
                concentration[i] = maps[tile]
    together = {name: np.stack([getattr(r, name) for r in rows]) for name in _TOGETHER}
    return BlockFit(
        index=np.asarray(plan.render, np.int32),
        tissue=np.asarray(plan.fraction, np.float32),
        loss=np.array([r.loss for r in rows], np.float32),
        steps=np.array([r.steps for r in rows], np.int32),
        flags=np.array([int(r.flags) for r in rows], np.int32),
        statistics={k: np.stack([r.statistics[k] for r in rows]) for k in rows[0].statistics},
        concentration=concentration,
        **together,
    )
