"""``finalize``: coarse levels, fields, tile table, seam QC, provenance, done marker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.disk import remove_partials, sha256
from wsi_pgdips.layers import provenance, store, tables
from wsi_pgdips.layers.schema import OWN_KEY, provenance_block
from wsi_pgdips.looks.slide_look import measure_look
from wsi_pgdips.pipeline.ledger import Block, Ledger, identity, load_arrays
from wsi_pgdips.records import BlockFit, Fields, FloatArray, Pixels, SlidePrior, TileFlag
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.seams import border_step, seam_summary
from wsi_pgdips.stages.strips import SIDES

CHECKSUMS = "provenance/checksums.json"
TileIndex = tuple[int, int]
Arrays = dict[str, npt.NDArray[Any]]


def write_products(
    context: Context,
    prior: SlidePrior,
    fits: Sequence[BlockFit],
    fields: Fields,
    slide_matrix: FloatArray,
    rendered: Sequence[Block],
    ledger: Ledger,
    pixels: Pixels,
) -> dict[str, Any]:
    """Everything that is made from finished blocks; the same bytes however the run went.

    Args:
        pixels: of the slide, kept or read again.

    Returns:
        Figures for the run's record: tiles, inherited, seam steps.
    """
    output = ledger.output
    checksums: dict[str, str] = {}
    unread, alone = set[TileIndex](), set[TileIndex]()
    for block in rendered:
        a = load_arrays(ledger.render(block))
        for lost, name in ((unread, "failed"), (alone, "alone")):
            lost |= {(int(ty), int(tx)) for ty, tx in a[name]}
        checksums |= dict(zip(map(str, a["files"]), map(str, a["sha256"]), strict=True))
    checksums |= store.finalize_levels(output, context.grid)
    tables.write_fields(output, fields, context.grid, context.stains)
    tables.write_tile_table(output, tile_columns(context, fits, fields, unread, alone))
    figures = _seam_figures(context, prior, fits, rendered, ledger)
    tiles = int(sum(len(f.index) for f in fits))
    inherited = int(sum(fields.inherited[ty, tx] for f in fits for ty, tx in f.index))
    figures |= {"tiles": tiles, "tiles_inherited": inherited, "tiles_fitted": tiles - inherited}
    settings = identity(context.source.meta, context.settings, context.stains)["settings"]
    own = provenance_block(
        software=provenance.software_versions(),
        settings=settings,
        slide=asdict(context.source.meta),
        prior=prior,
        extra={
            "identity": context.digest,
            "stain_matrix": slide_matrix,
            "background": context.b0,
            "tissue_flags": context.tissue.flags,
            "shrinkage": fields.shrinkage,
            "look": look_in_run(context, prior, fields, slide_matrix, fits, pixels),
            "tile_flags": {flag.name: int(flag) for flag in TileFlag if flag},
            **figures,
        },
    )
    provenance.write_metadata(output, {OWN_KEY: own})
    remove_partials(output)
    # shards have theirs from when they were written
    checksums |= {n: sha256(output / n) for n in _files(ledger) if n not in checksums}
    provenance.write_json(output / CHECKSUMS, dict(sorted(checksums.items())))
    return figures


def look_in_run(
    context: Context,
    prior: SlidePrior,
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
    return measure_look(
        pixels, context.grid, fields, slide_matrix, context.tissue_of, tiles, prior.presence
    )


def _files(ledger: Ledger) -> Iterator[str]:
    """All but what tells runs apart, and what goes with the run."""
    for path in ledger.output.rglob("*"):
        name = path.relative_to(ledger.output).as_posix()
        passing = name in (CHECKSUMS, provenance.RUN_RECORD) or ledger.work in path.parents
        if path.is_file() and not passing:
            yield name


def tile_columns(
    context: Context,
    fits: Sequence[BlockFit],
    fields: Fields,
    unread: Set[TileIndex],
    alone: Set[TileIndex] = frozenset(),
) -> dict[str, npt.NDArray[Any]]:
    """One row a tile, raster order: place, tissue, its own S, M, B, confidence, loss, flags.

    Args:
        unread: tiles that ``render`` could not read. alone: whose surroundings it could not.
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
        key = label.lower().replace(" ", "_")
        columns[f"confidence_{key}"] = c[:, k]
        columns[f"spectral_correction_{key}"] = m[:, k]
        for j, channel in enumerate("rgb"):
            columns[f"stain_{key}_{channel}"] = s[:, k, j]
    for j, channel in enumerate("rgb"):
        columns[f"background_{channel}"] = b[:, j]
    return columns


def _seam_figures(
    context: Context,
    prior: SlidePrior,
    fits: Sequence[BlockFit],
    rendered: Sequence[Block],
    ledger: Ledger,
) -> dict[str, Any]:
    """Seam step per stain, blended and unblended, and apart for borders between blocks."""
    steps: dict[str, list[npt.NDArray[np.float64]]] = {"blended": [], "unblended": []}
    between: list[npt.NDArray[np.bool_]] = []
    rows: dict[Block, _Strips] = {}
    done = set(rendered)
    plans = {(p.by, p.bx): p for p in context.plans}
    per = context.grid.tiles_per_block
    for block in rendered:
        rows = {k: v for k, v in rows.items() if k[0] >= block[0] - 1}
        here = _strips(ledger, block, rows)
        for (dy, dx), side, other in (((0, 1), "right", "left"), ((1, 0), "bottom", "top")):
            pairs: list[tuple[_Strips, int, int]] = []  # the next tile's block, rows of both
            for ty, tx in plans[block].render:
                tile, next_tile = (ty, tx), (ty + dy, tx + dx)
                next_block = (next_tile[0] // per, next_tile[1] // per)
                if next_block not in done:
                    continue
                there = _strips(ledger, next_block, rows)
                if tile in here.rows and next_tile in there.rows:
                    pairs.append((there, here.rows[tile], there.rows[next_tile]))
            if not pairs:
                continue
            a = here.side(side, [row for _, row, _ in pairs])
            b = _joined([there.side(other, [row]) for there, _, row in pairs])
            tissue = _across(a["tissue"], b["tissue"])
            for kind, found in steps.items():
                found.append(border_step(_across(a[kind], b[kind]), tissue))
            between.append(np.array([there is not here for there, _, _ in pairs]))
    absent = _absent(context, prior, fits)
    figures: dict[str, Any] = {}
    for name, kind, only_blocks in (
        ("seam_step_od", "blended", False),
        ("seam_step_unblended_od", "unblended", False),
        ("seam_step_blocks_od", "blended", True),
    ):
        worst = np.full(context.stains.n, np.nan)
        if between:
            chosen = np.concatenate(between) | (not only_blocks)
            worst = seam_summary(np.concatenate(steps[kind])[chosen])
        figures[name] = {
            label: None if absent[k] or not np.isfinite(worst[k]) else float(worst[k])
            for k, label in enumerate(context.stains.labels)
        }
    return figures


@dataclass(frozen=True)
class _Strips:
    """The strips of one block, as ``strips.pack`` keeps them, and the row of each tile."""

    arrays: Arrays
    rows: dict[TileIndex, int]

    def side(self, side: str, rows: list[int]) -> Arrays:
        """Those of one side of some tiles."""
        own = (rows, SIDES.index(side))
        return {kind: self.arrays[kind][own] for kind in ("blended", "unblended", "tissue")}


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


def _strips(ledger: Ledger, block: Block, cache: dict[Block, _Strips]) -> _Strips:
    if block not in cache:
        arrays = load_arrays(ledger.render(block))
        rows = {(int(ty), int(tx)): row for row, (ty, tx) in enumerate(arrays["tiles"])}
        cache[block] = _Strips(arrays, rows)
    return cache[block]


def _across(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Two strips, outermost pixel first, joined to (..., L, 4) across their border."""
    return np.concatenate([before[..., ::-1], after], -1)


def _absent(context: Context, prior: SlidePrior, fits: Sequence[BlockFit]) -> npt.NDArray[np.bool_]:
    """(N,) stains that no tile holds: their seam step says nothing."""
    confidence = np.concatenate([f.confidence for f in fits])
    return np.asarray(confidence.max(0) <= 0)
