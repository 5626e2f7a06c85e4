"""What a slide or an output holds, as plain values that can be printed or given out as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_pgdips.errors import SlideError

Facts = dict[str, Any]

_FROM_RECORD = (
    "tiles",
    "tiles_fitted",
    "tiles_inherited",
    "failed_tiles",
    "failed_blocks",
    "flags",
    "seam_step_od",
    "seam_step_unblended_od",
    "wall_s",
    "peak_rss_mb",
    "device",
    "workers",
)


def inspect(path: Path, *, mpp_source: float | None = None) -> Facts:
    """Facts on a slide, or on the output of a run, told apart by what lies at ``path``.

    JSON-ready; ``kind`` is ``slide`` or ``layers``. Shapes are (height, width).

    Raises:
        SlideError, OutputError: nothing there, or nothing that can be read.
    """
    if (path / "zarr.json").is_file() or path.suffix.lower() == ".zarr":
        return inspect_layers(path)
    return inspect_slide(path, mpp_source=mpp_source)


def inspect_slide(path: Path, *, mpp_source: float | None = None) -> Facts:
    """Facts on a slide, and what a run with default settings would have to do.

    ``mpp_source`` is the slide's own mpp, where the file is silent or wrong.
    ``output`` is None where no output grid follows from the slide, with the reason in ``problem``.
    ``tiles_with_tissue`` is an estimate: from brightness alone, without a run's tissue mask.

    Raises:
        SlideError: missing, unreadable, or not RGB brightfield.
    """
    from wsi_pgdips.slide.reader import open_source, read_meta

    meta = read_meta(path)
    facts: Facts = {
        "kind": "slide",
        "name": meta.name,
        "vendor": meta.vendor,
        "shape": list(meta.shape_l0),
        "mpp": meta.mpp_l0,
        "objective_power": meta.objective_power,
        "levels": [list(shape) for shape in meta.level_shapes],
        "bounds_yxhw": None if meta.bounds_l0 is None else list(meta.bounds_l0),
        "icc_profile": meta.has_icc,
        "checksum": meta.checksum,
        "output": None,
        "problem": None,
    }
    try:
        source = open_source(path, mpp_source=mpp_source)
    except SlideError as error:
        return facts | {"problem": str(error)}
    with contextlib.closing(source):
        grid = source.grid
        facts["output"] = {
            "mpp": grid.mpp,
            "shape": list(grid.shape),
            "tiles": grid.tile_grid[0] * grid.tile_grid[1],
            "tiles_with_tissue": _tiles_with_tissue(source),
            "blocks": grid.block_grid[0] * grid.block_grid[1],
        }
    return facts


def inspect_layers(path: Path) -> Facts:
    """Facts on the output of a run.

    ``status`` is ``done``, ``incomplete`` (the run ended, but something failed) or ``unfinished``.
    What only the end of a run knows (stain matrix, seam step, times) is None before it.

    Raises:
        OutputError: not layers of ours, or damaged.
    """
    from wsi_pgdips.layers.provenance import is_created, read_attributes
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.layers.schema import OWN_KEY

    if OWN_KEY in read_attributes(path) and not is_created(path):
        # broken off before there is anything to open
        return {"kind": "layers", "name": path.name, "finished": False, "status": "unfinished"}
    layers = open_layers(path, unfinished=True)
    own, record = layers.provenance, layers.run_record
    prior, settings = own.get("prior") or {}, own.get("settings") or {}
    return {
        "kind": "layers",
        "name": path.name,
        "finished": layers.finished,
        "status": record.get("status", "unfinished"),
        "blocks": layers.grid.block_grid[0] * layers.grid.block_grid[1],
        "blocks_rendered": _rendered_blocks(path) if not layers.finished else None,
        "stains": list(layers.stains.labels),
        "colors": list(layers.stains.colors),
        "shape": list(layers.grid.shape),
        "levels": layers.grid.n_levels,
        "mpp": layers.grid.mpp,
        "tile": layers.grid.tile,
        "block": layers.grid.block,
        "preset": settings.get("preset"),
        "seed": settings.get("seed"),
        "slide": (own.get("slide") or {}).get("name"),
        "software": (own.get("software") or {}).get("wsi-pgdips"),
        "stain_matrix": own.get("stain_matrix"),
        "background": own.get("background"),
        "spectral_correction": prior.get("spectral_correction"),
        **{key: record.get(key) for key in _FROM_RECORD},
    }


def _tiles_with_tissue(source: Any) -> int:
    """How many tiles show something denser or rougher than glass on a coarse overview."""
    import numpy as np

    from wsi_pgdips.tiles.whitepoint import find_glass

    grid = source.grid
    rgb, scale = source.overview(max(8.0, grid.mpp))
    glass = find_glass(rgb)
    dense = (glass.excess > glass.tolerance) & ~glass.padding
    rows, columns = np.nonzero(dense)
    side = grid.tile / scale
    n_across = grid.tile_grid[1]
    tile = (rows / side).astype(int) * n_across + (columns / side).astype(int)
    # a tile with a speck is none with tissue
    held = np.bincount(tile, minlength=grid.tile_grid[0] * n_across)
    return int((held >= max(0.05 * side**2, 1)).sum())


def _rendered_blocks(path: Path) -> int:
    from wsi_pgdips.pipeline.ledger import Ledger

    return sum(1 for _ in Ledger(path).work.glob("render/*.npz"))


def describe(facts: Facts) -> list[tuple[str, str]]:
    """Facts as (name, text) rows for a reader; what is not known is left out."""
    return _describe_layers(facts) if facts["kind"] == "layers" else _describe_slide(facts)


def _describe_slide(facts: Facts) -> list[tuple[str, str]]:
    mpp, bounds, output = facts["mpp"], facts["bounds_yxhw"], facts["output"]
    rows = [
        ("slide", facts["name"]),
        ("vendor", facts["vendor"]),
        ("size", _size(facts["shape"])),
        ("mpp", "not stated" if mpp is None else f"{mpp:.4g} um/px"),
        ("objective power", _or_unknown(facts["objective_power"], "{:g}x")),
        ("levels", ", ".join(_size(shape) for shape in facts["levels"])),
        ("ICC profile", "yes" if facts["icc_profile"] else "no"),
        ("checksum", facts["checksum"]),
    ]
    if bounds is not None:
        y, x, h, w = bounds
        rows.append(("scanned part", f"{_size((h, w))} at x {x}, y {y}"))
    if output is not None:
        rows += [
            ("output", f"{_size(output['shape'])} at {output['mpp']:.4g} um/px"),
            ("tiles", f"{output['tiles']}, about {output['tiles_with_tissue']} with tissue"),
            ("blocks", str(output["blocks"])),
        ]
    if facts["problem"] is not None:
        rows.append(("problem", facts["problem"]))
    return rows


def _describe_layers(facts: Facts) -> list[tuple[str, str]]:
    status = {
        "done": "finished",
        "incomplete": "ended with failures; the same command tries those parts again",
        "unfinished": "unfinished; the same command goes on where the run stopped",
    }[facts["status"]]
    rows = [("layers", facts["name"]), ("status", status)]
    if "stains" not in facts:
        return rows
    if facts["blocks_rendered"] is not None:
        rows.append(
            ("rendered", f"{facts['blocks_rendered']} blocks, of at most {facts['blocks']}")
        )
    rows += [
        ("stains", ", ".join(facts["stains"])),
        ("size", f"{_size(facts['shape'])}, {facts['levels']} levels"),
        ("mpp", f"{facts['mpp']:.4g} um/px"),
        ("tile, block", f"{facts['tile']}, {facts['block']} px"),
    ]
    for name in ("slide", "preset", "seed", "software", "device", "workers"):
        if facts[name] is not None:
            rows.append((name, str(facts[name])))
    if facts["tiles"] is not None:
        counts = f"{facts['tiles']}, {facts['tiles_fitted']} fitted on their own"
        rows.append(("tiles", f"{counts}, {facts['tiles_inherited']} inherited"))
    if facts["failed_tiles"] or facts["failed_blocks"]:
        failed = f"{facts['failed_tiles'] or 0} tiles, {facts['failed_blocks'] or 0} blocks"
        rows.append(("failed", failed))
    if facts["flags"]:
        rows.append(("flags", ", ".join(facts["flags"])))
    for label, row in zip(facts["stains"], facts["stain_matrix"] or (), strict=False):
        rows.append((f"{label} vector", vector_text(row)))
    if facts["background"] is not None:
        rows.append(("background", f"{vector_text(facts['background'])} OD"))
    rows += [(f"seam step, {label}", text) for label, text in seam_texts(facts["seam_step_od"])]
    if facts["wall_s"]:
        rows.append(("seconds", times_text(facts["wall_s"])))
    if facts["peak_rss_mb"] is not None:
        rows.append(("peak memory", f"{facts['peak_rss_mb']:.0f} MB"))
    return rows


def seam_texts(steps: Mapping[str, float | None] | None) -> list[tuple[str, str]]:
    """(label, text) of seam steps in OD; None is a stain that is hardly there."""
    return [
        (label, "not judged, hardly any of it" if step is None else f"{step:.4f} OD")
        for label, step in (steps or {}).items()
    ]


def times_text(wall_s: Mapping[str, float]) -> str:
    """``fit 12.3, render 4.0, in all 16.3``."""
    parts = [f"{stage} {seconds:.1f}" for stage, seconds in wall_s.items()]
    return ", ".join([*parts, f"in all {sum(wall_s.values()):.1f}"])


def vector_text(vector: Iterable[float]) -> str:
    """Three numbers with three decimals."""
    return ", ".join(f"{v:.3f}" for v in vector)


def _size(shape: Sequence[int]) -> str:
    """Width x height, as viewers write it."""
    return f"{shape[1]} x {shape[0]}"


def _or_unknown(value: float | None, form: str) -> str:
    return "not stated" if value is None else form.format(value)
