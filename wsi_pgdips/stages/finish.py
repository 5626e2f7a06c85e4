"""``finalize``: the table and the figures of a slide whose blocks are rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.slide_look import measure_look
from wsi_pgdips.records import BlockFit, Fields, FloatArray, Pixels, TileFlag, key_of
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.lattice import Counts, lattice_figures
from wsi_pgdips.stages.seams import Arrays, Block, TileIndex, seam_figures
from wsi_pgdips.tiles.tissue import BACKGROUND_ASSUMED


def slide_figures(
    context: Context,
    fits: Sequence[BlockFit],
    fields: Fields,
    rendered: Sequence[Block],
    strips: Callable[[Block], Arrays],
    lattice: Sequence[Counts],
) -> dict[str, Any]:
    """Return the figures of a run: seam steps, lattice indices, and how many tiles were fitted.

    Args:
        rendered: blocks that are done, in raster order. strips: returns their packed strips.
        lattice: their histograms of lattice indices.
    """
    # where no tile holds a stain, its seam step says nothing
    there = np.concatenate([f.confidence for f in fits]).max(0) > 0
    present = dict(zip(context.stains.labels, there.tolist(), strict=True))
    figures: dict[str, Any] = {
        **seam_figures(context.grid, context.plans, rendered, strips, present),
        **lattice_figures(context.stains.labels, lattice),
    }
    tiles = int(sum(len(f.index) for f in fits))
    inherited = int(sum(fields.inherited[ty, tx] for f in fits for ty, tx in f.index))
    return figures | {
        "tiles": tiles,
        "tiles_inherited": inherited,
        "tiles_fitted": tiles - inherited,
    }


def tile_columns(
    context: Context,
    fits: Sequence[BlockFit],
    fields: Fields,
    unread: Set[TileIndex],
    alone: Set[TileIndex] = frozenset(),
) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the tile table: place, tissue, own S, M, B, confidence, loss, flags.

    Args:
        unread: tiles that ``render`` could not read.
        alone: tiles that it read without their surroundings.

    Returns:
        Name -> (T,) with a row for each tile, in raster order.
    """
    index = np.concatenate([f.index for f in fits])
    order = np.lexsort((index[:, 1], index[:, 0]))

    def gathered(name: str) -> npt.NDArray[Any]:
        return np.asarray(np.concatenate([getattr(f, name) for f in fits])[order])

    index = index[order]
    regions = [context.grid.tile_region(int(ty), int(tx)) for ty, tx in index]
    flags = gathered("flags")
    inherited = fields.inherited[index[:, 0], index[:, 1]]
    flags = np.where(inherited, flags | int(TileFlag.INHERITED), flags)
    for tiles, flag in ((unread, TileFlag.READ_FAILED), (alone, TileFlag.FAILED)):
        among = np.array([(int(ty), int(tx)) in tiles for ty, tx in index], bool)
        flags = np.where(among, flags | int(flag), flags)
    columns: dict[str, npt.NDArray[Any]] = {
        "tile_y": index[:, 0],
        "tile_x": index[:, 1],
        "y": np.array([r.y for r in regions], np.int64),
        "x": np.array([r.x for r in regions], np.int64),
        "height": np.array([r.h for r in regions], np.int64),
        "width": np.array([r.w for r in regions], np.int64),
        "tissue": gathered("tissue"),
        "steps": gathered("steps"),
        "loss": gathered("loss"),
        "flags": flags,
        "inherited": inherited,
    }
    s, m, b, c = (
        gathered(n) for n in ("stain_matrix", "spectral_correction", "background", "confidence")
    )
    for k, label in enumerate(context.stains.labels):
        key = key_of(label)
        columns[f"confidence_{key}"] = c[:, k]
        columns[f"spectral_correction_{key}"] = m[:, k]
        for j, channel in enumerate("rgb"):
            columns[f"stain_{key}_{channel}"] = s[:, k, j]
    for j, channel in enumerate("rgb"):
        columns[f"background_{channel}"] = b[:, j]
    return columns


def look_in_run(
    context: Context,
    fields: Fields,
    slide_matrix: FloatArray,
    fits: Sequence[BlockFit],
    pixels: Pixels,
) -> dict[str, Any]:
    """Measure the look of a slide on its tiles with enough tissue; see ``measure_look``."""
    tiles = sorted(
        (int(ty), int(tx))
        for fit in fits
        for (ty, tx), share in zip(fit.index, fit.tissue, strict=True)
        if share >= context.settings.min_tissue
    )
    tissue = context.tissue
    return measure_look(
        pixels,
        context.grid,
        fields,
        slide_matrix,
        context.tissue_of,
        tiles,
        raised=tissue.raised,
        glass_measured=BACKGROUND_ASSUMED not in tissue.flags,
        saturates=fields.brown.size > 0,
    )
