"""The place of the output: free, ours to go on with, ours to replace, or not to be touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wsi_pgdips.config import ExecutionSettings
from wsi_pgdips.disk import PARTIAL
from wsi_pgdips.errors import AnotherRunError, OutputError
from wsi_pgdips.layers import provenance
from wsi_pgdips.layers.schema import OWN_KEY
from wsi_pgdips.pipeline.ledger import Ledger, digest


def claim_output(output: Path, record: dict[str, Any], how: ExecutionSettings) -> bool:
    """Whether what is there is to be replaced; False where it is gone on with, or nothing is there.

    Args:
        record: ``ledger.identity`` of the run that asks.

    Raises:
        OutputError: it must not be touched: not ours, of another run, or there at all where the
            settings refuse to go on.
    """
    if not output.exists():
        return False
    attributes = provenance.read_attributes(output) if output.is_dir() else {}
    own = attributes.get(OWN_KEY)
    if own is None:
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
            hint="give --overwrite to replace it, or leave --no-resume out to go on with it",
        )
    if own.get("identity") not in (None, digest(record)):
        raise AnotherRunError(
            "the output belongs to another run",
            expected="layers of the same slide and scientific settings",
            found=_difference(own, record),
            where=output,
            hint="give --overwrite to replace it, or another output path",
        )
    return False


def _is_unfinished(node: Path) -> bool:
    """Whether a file is a root's ``zarr.json`` that was not written to its end."""
    return node.name.startswith("zarr.") and node.name.endswith(PARTIAL)


def _difference(own: dict[str, Any], record: dict[str, Any]) -> str:
    """The settings that differ, or the slide."""
    before, now = own.get("settings", {}), record["settings"]
    names = [k for k in now if before.get(k) != now[k]]
    shown = [f"{k} = {before.get(k)!r}, now {now[k]!r}" for k in names if k != "stains"]
    shown += ["another stain set"] if "stains" in names else []
    return "; ".join(shown) or "another slide"


def discard(output: Path) -> None:
    """Empty a folder of ours; ``zarr.json``, which says that it is ours, goes last.

    What says that it is finished, or planned, goes first: it would be believed of the rest.
    """
    for name in (output / provenance.RUN_RECORD, Ledger(output).plan):
        name.unlink(missing_ok=True)
    for node in output.iterdir():
        if node.is_dir() and not node.is_symlink():
            shutil.rmtree(node)
        elif node.name != "zarr.json":
            node.unlink()
    (output / "zarr.json").unlink(missing_ok=True)
