"""The output of a run: claimed, emptied, created, and finished around the blocks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsi_pgdips.config import ExecutionSettings
from wsi_pgdips.disk import (
    PARTIAL,
    check_room,
    layers_bytes,
    load_arrays,
    make_folder,
    remove_partials,
    sha256,
    size_of,
    writing,
)
from wsi_pgdips.errors import AnotherRunError, OutputError
from wsi_pgdips.layers import provenance
from wsi_pgdips.layers.schema import OWN_KEY, provenance_block
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.records import BlockFit, Fields, FloatArray, Pixels, SlidePrior, TileFlag

if TYPE_CHECKING:
    from wsi_pgdips.stages.context import Context

CHECKSUMS = "provenance/checksums.json"
Claim = Literal["replace", "resume", "done"]  # "resume" also where nothing is there


def claim_output(output: Path, own: dict[str, Any], how: ExecutionSettings) -> Claim:
    """Return what is to become of what is there: replaced, resumed, or left as it is finished.

    Args:
        own: ``identity`` and ``settings`` of the run that asks, see ``stages.context.identity``.

    Raises:
        OutputError: it must not be touched: it is not ours, belongs to another run, or exists
            although the settings forbid to resume.
    """
    with writing(output):
        if _is_replaced(output, own, how):
            return "replace"
    if not provenance.is_done(output):
        return "resume"
    Ledger(output).remove()  # of a run that was killed on its last step
    return "done"


def _is_replaced(output: Path, own: dict[str, Any], how: ExecutionSettings) -> bool:
    if not output.exists():
        return False
    attributes = provenance.read_attributes(output) if output.is_dir() else {}
    there = attributes.get(OWN_KEY)
    if there is None:
        # a run that was killed on its very first write has left it unfinished
        if output.is_dir() and all(_is_unfinished(node) for node in output.iterdir()):
            return False
        raise OutputError(
            "something that is not ours is in the way of the output",
            expected="a free path, or layers made by wsi-pgdips",
            found="a folder with other content" if output.is_dir() else "a file",
            where=output,
            hint="give another output path, or move it away",
        )
    if how.overwrite:
        return True
    if not how.resume:
        raise OutputError(
            "the output exists",
            where=output,
            hint="give --overwrite to replace it, or omit --no-resume to resume it",
        )
    if there.get("identity") not in (None, own["identity"]):
        raise AnotherRunError(
            "the output belongs to another run",
            expected="layers of the same slide and scientific settings",
            found=_difference(there.get("settings", {}), own["settings"]),
            where=output,
            hint="give --overwrite to replace it, or another output path",
        )
    return False


def _is_unfinished(node: Path) -> bool:
    """True for a root's ``zarr.json`` that was not written to its end."""
    return node.name.startswith("zarr.") and node.name.endswith(PARTIAL)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, or else the slide."""
    names = [k for k in now if before.get(k) != now[k]]
    shown = [f"{k} = {before.get(k)!r}, now {now[k]!r}" for k in names if k != "stains"]
    shown += ["another stain set"] if "stains" in names else []
    return "; ".join(shown) or "another slide"


def create_output(context: Context, output: Path) -> None:
    """Replace what is there by empty layers of a planned slide, and folders for the work.

    Raises:
        OutputError: there is too little room, or the disk refuses a write.
    """
    from wsi_pgdips.layers import store

    needed = layers_bytes(context.grid, context.n_tiles, context.stains.n)
    check_room(output, needed - size_of(output))
    with writing(output):
        make_folder(output)
        _discard(output)
    store.create_layers(
        output,
        context.grid,
        context.stains,
        name=context.source.meta.name,
        store_residual=context.settings.store_residual,
    )
    provenance.write_metadata(output, {OWN_KEY: context.identity})
    with writing(output):
        Ledger(output).make_folders()


def _discard(output: Path) -> None:
    """Empty a folder of ours; ``zarr.json``, which marks it as ours, goes last.

    The marks that it is finished, or planned, go first: what is left must not look so.
    """
    for name in (output / provenance.RUN_RECORD, Ledger(output).plan):
        name.unlink(missing_ok=True)
    for node in output.iterdir():
        if node.is_dir() and not node.is_symlink():
            shutil.rmtree(node)
        elif node.name != "zarr.json":
            node.unlink()
    (output / "zarr.json").unlink(missing_ok=True)


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
    """Write everything that is made from finished blocks; the same bytes however the run went.

    These are the coarse levels, the fields, the table of tiles, the provenance and the checksums.

    Args:
        pixels: of the slide, kept or read again.

    Returns:
        Figures for the run's record: tiles, inherited tiles, seam steps, lattice indices.
    """
    from wsi_pgdips.layers import store, tables
    from wsi_pgdips.pipeline.block import lost_in_fit
    from wsi_pgdips.stages.evidence import SUMS, slide_verdict, vectors_used
    from wsi_pgdips.stages.finish import look_in_run, slide_figures, tile_columns

    output = ledger.output
    checksums: dict[str, str] = {}
    unread, alone = set[tuple[int, int]](), set[tuple[int, int]]()
    lattice = []
    for block in rendered:
        a = load_arrays(ledger.render(block), ("failed", "alone", "files", "sha256", "lattice"))
        lattice.append(a["lattice"])
        unread |= set(map(tuple, a["failed"].tolist()))
        alone |= set(map(tuple, a["alone"].tolist()))
        checksums |= dict(zip(a["files"].tolist(), a["sha256"].tolist(), strict=True))
    checksums |= store.finalize_levels(output, context.grid)
    tables.write_fields(output, fields, context.grid, context.stains)
    tables.write_tile_table(output, tile_columns(context, fits, fields, unread, alone))
    figures = slide_figures(
        context, fits, fields, rendered, lambda block: load_arrays(ledger.render(block)), lattice
    )
    failed = len(unread | alone | {t for fit in fits for t in lost_in_fit(fit)})
    sums = (load_arrays(ledger.render(block), SUMS) for block in rendered)
    figures["verdict"] = slide_verdict(context, prior, slide_matrix, sums, figures, failed)
    own = provenance_block(
        software=provenance.software_versions(),
        settings=context.identity["settings"],
        slide=asdict(context.source.meta),
        prior=prior,
        extra={
            "identity": context.identity["identity"],
            "stain_matrix": slide_matrix,
            "background": context.b0,
            "stain_vectors": vectors_used(context.stains, prior, slide_matrix),
            "tissue_flags": context.tissue.flags,
            "coverage": context.tissue.coverage,
            "left_out_mm2": context.tissue.left_out,
            "shrinkage": fields.shrinkage,
            "look": look_in_run(context, fields, slide_matrix, fits, pixels),
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


def _files(ledger: Ledger) -> Iterator[str]:
    """Names of all files but those that differ from run to run, and the work files."""
    for path in ledger.output.rglob("*"):
        name = path.relative_to(ledger.output).as_posix()
        passing = name in (CHECKSUMS, provenance.RUN_RECORD) or ledger.work in path.parents
        if path.is_file() and not passing:
            yield name
