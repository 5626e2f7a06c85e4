"""Facts on a slide or an output, as plain values that can be printed or given out as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import Verdict

if TYPE_CHECKING:
    from wsi_pgdips.slide.source import PyramidSource

Facts = dict[str, Any]
Row = tuple[str, str | None]  # name and text; None is unknown

_FROM_RECORD = (
    "tiles",
    "tiles_fitted",
    "tiles_inherited",
    "failed_tiles",
    "failed_blocks",
    "flags",
    "seam_step_od",
    "seam_step_unblended_od",
    "lattice_p999",
    "lattice_max",
    "verdict",
    "wall_s",
    "peak_rss_mb",
    "device",
    "workers",
)
_STATUS = {
    "done": "finished",
    "incomplete": "ended with failures; repeat the command to try those parts again",
    "unfinished": "unfinished; to resume, repeat the command",
}
_PLAIN = ("slide", "preset", "seed", "software", "device", "workers")  # shown as they are


def inspect(path: Path, *, mpp_source: float | None = None) -> Facts:
    """Return facts on a slide, or on the output of a run, whichever lies at ``path``.

    They can be written as JSON; ``kind`` is ``slide`` or ``layers``. Shapes are (height, width).

    Raises:
        SlideError, OutputError: nothing is there, or nothing that can be read.
    """
    if (path / "zarr.json").is_file() or path.suffix.lower() == ".zarr":
        return inspect_layers(path)
    return inspect_slide(path, mpp_source=mpp_source)


def inspect_slide(path: Path, *, mpp_source: float | None = None) -> Facts:
    """Return facts on a slide, and on the work of a run with default settings.

    ``mpp_source`` is the slide's own mpp, where the file states none or a wrong one. ``output`` is
    None where the slide has no output grid, and ``problem`` says why. ``tiles_with_tissue`` is
    estimated from brightness alone, without the tissue mask of a run.

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
    """Return facts on the output of a run.

    ``status`` is ``done``, ``incomplete`` (the run ended, but something failed) or ``unfinished``.
    Figures that a run has only at its end (stain matrix, seam step, times) are None before it.
    ``lattice_p999`` and ``lattice_max`` hold OD by stain, None without a network.

    Raises:
        OutputError: these are not layers of this program, or they are damaged.
    """
    from wsi_pgdips.layers.provenance import is_created, read_attributes
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.layers.schema import OWN_KEY
    from wsi_pgdips.pipeline.ledger import Ledger

    if OWN_KEY in read_attributes(path) and not is_created(path):
        # the run was broken off before there was anything to open
        return {"kind": "layers", "name": path.name, "finished": False, "status": "unfinished"}
    layers = open_layers(path, unfinished=True)
    own, record = layers.provenance, layers.run_record
    rendered = None if layers.finished else len(list(Ledger(path).work.glob("render/*.npz")))
    prior, settings = own.get("prior") or {}, own.get("settings") or {}
    return {
        "kind": "layers",
        "name": path.name,
        "finished": layers.finished,
        "status": record.get("status", "unfinished"),
        "blocks": layers.grid.block_grid[0] * layers.grid.block_grid[1],
        "blocks_rendered": rendered,
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
        "stain_vectors": own.get("stain_vectors"),
        "background": own.get("background"),
        "spectral_correction": prior.get("spectral_correction"),
        **{key: record.get(key) for key in _FROM_RECORD},
    }


def _tiles_with_tissue(source: PyramidSource) -> int:
    """Return how many tiles show something denser or rougher than glass on a coarse overview."""
    import numpy as np

    from wsi_pgdips.tiles.whitepoint import find_glass

    grid = source.grid
    rgb, scale = source.overview(max(8.0, grid.mpp))
    glass = find_glass(rgb)
    rows, columns = np.nonzero((glass.excess > glass.tolerance) & ~glass.padding)
    side, across = grid.tile / scale, grid.tile_grid[1]
    tile = (rows / side).astype(int) * across + (columns / side).astype(int)
    dense = np.bincount(tile, minlength=grid.tile_grid[0] * across)
    # a speck does not make a tile of tissue
    return int((dense >= max(0.05 * side**2, 1)).sum())


def describe(facts: Facts) -> list[tuple[str, str]]:
    """Return facts as (name, text) rows for a reader; unknown facts are left out."""
    rows = _layers_rows(facts) if facts["kind"] == "layers" else _slide_rows(facts)
    return [(name, text) for name, text in rows if text is not None]


def _slide_rows(facts: Facts) -> list[Row]:
    bounds, output = facts["bounds_yxhw"], facts["output"]
    rows: list[Row] = [
        ("slide", facts["name"]),
        ("vendor", facts["vendor"]),
        ("size", _size_text(facts["shape"])),
        ("mpp", _text("{:.4g} um/px", facts["mpp"]) or "not stated"),
        ("objective power", _text("{:g}x", facts["objective_power"]) or "not stated"),
        ("levels", ", ".join(map(_size_text, facts["levels"]))),
        ("ICC profile", "yes" if facts["icc_profile"] else "no"),
        ("checksum", facts["checksum"]),
    ]
    if bounds is not None:
        y, x, *shape = bounds
        rows.append(("scanned part", f"{_size_text(shape)} at x {x}, y {y}"))
    if output is not None:
        rows += [
            ("output", f"{_size_text(output['shape'])} at {output['mpp']:.4g} um/px"),
            ("tiles", "{tiles}, about {tiles_with_tissue} with tissue".format(**output)),
            ("blocks", str(output["blocks"])),
        ]
    return [*rows, ("problem", facts["problem"])]


def _layers_rows(facts: Facts) -> list[Row]:
    rows: list[Row] = [("layers", facts["name"]), ("status", _STATUS[facts["status"]])]
    if "stains" not in facts:
        return rows
    failed = (facts["failed_tiles"] or 0, facts["failed_blocks"] or 0)
    counts = "{tiles}, {tiles_fitted} fitted on their own, {tiles_inherited} inherited"
    vectors = zip(facts["stains"], facts["stain_matrix"] or (), strict=False)
    background = facts["background"]
    return [
        *rows,
        ("rendered", _text(f"{{}} blocks, of at most {facts['blocks']}", facts["blocks_rendered"])),
        ("stains", ", ".join(facts["stains"])),
        ("size", f"{_size_text(facts['shape'])}, {facts['levels']} levels"),
        ("mpp", f"{facts['mpp']:.4g} um/px"),
        ("tile, block", f"{facts['tile']}, {facts['block']} px"),
        *((name, _text("{}", facts[name])) for name in _PLAIN),
        ("tiles", None if facts["tiles"] is None else counts.format(**facts)),
        *verdict_rows(Verdict.of_json(facts["verdict"])),
        ("failed", f"{failed[0]} tiles, {failed[1]} blocks" if any(failed) else None),
        ("flags", ", ".join(facts["flags"] or ()) or None),
        *((f"{label} vector", vector_text(row)) for label, row in vectors),
        *((f"{v['stain']} vector asked", v["asked"]) for v in facts["stain_vectors"] or ()),
        ("background", None if background is None else f"{vector_text(background)} OD"),
        *((f"seam step, {label}", text) for label, text in seam_texts(facts["seam_step_od"])),
        *lattice_rows(facts["lattice_p999"], facts["lattice_max"]),
        ("seconds", times_text(facts["wall_s"]) if facts["wall_s"] else None),
        ("peak memory", _text("{:.0f} MB", facts["peak_rss_mb"])),
    ]


def verdict_rows(verdict: Verdict) -> list[Row]:
    """Return the verdict and each of its reasons as (name, text)."""
    if verdict.status == "unknown":
        return []
    return [("verdict", verdict.status), *(("because", reason) for reason in verdict.reasons)]


def seam_texts(steps: Mapping[str, float | None] | None) -> list[tuple[str, str]]:
    """Return (label, text) of seam steps in OD; None is a stain that is hardly there."""
    return [
        (label, _text("{:.4f} OD", step) or "not judged, hardly any of it")
        for label, step in (steps or {}).items()
    ]


def lattice_rows(
    p999: Mapping[str, float | None] | None, most: Mapping[str, float | None] | None
) -> list[Row]:
    """Return (name, text) of the lattice indices by stain; none without a network."""
    return [
        (
            f"lattice, {label}",
            f"{index:.3f} OD at the 99.9th percentile, {(most or {}).get(label) or 0:.3f} at most",
        )
        for label, index in (p999 or {}).items()
        if index is not None
    ]


def times_text(wall_s: Mapping[str, float]) -> str:
    """Return seconds such as ``fit 12.3, render 4.0, in all 16.3``."""
    parts = [f"{stage} {seconds:.1f}" for stage, seconds in wall_s.items()]
    return ", ".join([*parts, f"in all {sum(wall_s.values()):.1f}"])


def vector_text(vector: Iterable[float]) -> str:
    """Return the numbers of a vector with three decimals."""
    return ", ".join(f"{v:.3f}" for v in vector)


def _size_text(shape: Sequence[int]) -> str:
    """Return width x height, as viewers write it, of (height, width)."""
    return f"{shape[1]} x {shape[0]}"


def _text(form: str, value: Any) -> str | None:
    return None if value is None else form.format(value)
