"""The commands ``reference`` and ``compare``: looks of slides, and distances between slides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from wsi_pgdips.cli.options import Json, MppSource, Overwrite, Quiet
from wsi_pgdips.cli.say import print_rows, progress_of, refuse, stdout

reference_app = typer.Typer(help="References: the looks that slides are normalised to.")
_Source = Annotated[
    str, typer.Argument(help="Name of a reference, or a file.", metavar="NAME|FILE")
]


@reference_app.callback(invoke_without_command=True)
def _references(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from wsi_pgdips.looks.files import load_reference, reference_names

    rows = [(name, ", ".join(load_reference(name).labels)) for name in reference_names()]
    print_rows([*rows, ("self", "the slide's own look")])


@reference_app.command("show")
def reference_show(
    reference: _Source,
) -> None:
    """Print a reference as JSON."""
    from wsi_pgdips.looks.files import load_reference, reference_text

    typer.echo(reference_text(load_reference(reference)), nl=False)


@reference_app.command("fit")
def reference_fit(
    slides: Annotated[
        list[Path],
        typer.Argument(
            help="Slides, outputs of [b]run[/b], or looks.", metavar="SLIDE|LAYERS|LOOK..."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", metavar="REF.json")],
    name: Annotated[
        str | None, typer.Option(help="Name of the reference. [dim]default: the file's[/dim]")
    ] = None,
    stains: Annotated[str, typer.Option(help="Stain set of slides that were not run yet.")] = "he",
    tissue: Annotated[
        list[str] | None,
        typer.Option(
            help="What a slide shows, e.g. liver; once for each slide, in their order.",
            metavar="NAME",
        ),
    ] = None,
    mpp_source: MppSource = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure the look of a group of slides: its stain vectors, glass and colours of tissue."""
    _check_new_json(out, overwrite, "reference")
    from wsi_pgdips.looks.files import save_reference
    from wsi_pgdips.pipeline.references import fit_reference

    fitted = fit_reference(
        slides,
        name or out.stem,
        tissue=tissue or None,
        progress=progress_of(quiet),
        stains=stains,
        mpp_source=mpp_source,
    )
    save_reference(fitted, out)
    if not quiet:
        print_rows([("reference", str(out)), ("sha256", fitted.digest)])


def look(
    slide: Annotated[Path, typer.Argument(help="A slide or image.", metavar="SLIDE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", metavar="LOOK.json")],
    stains: Annotated[str, typer.Option(help="Stain set: a name or a TOML file.")] = "he",
    tissue: Annotated[
        str | None, typer.Option(help="What the slide shows, e.g. liver.", metavar="NAME")
    ] = None,
    icc: Annotated[bool, typer.Option("--icc", help="Apply the slide's ICC profile.")] = False,
    mpp_source: MppSource = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure the look of a slide in seconds, without layers, for [b]normalize --look[/b]."""
    _check_new_json(out, overwrite, "look")
    from wsi_pgdips.looks.files import save_reference
    from wsi_pgdips.pipeline.looks import measure_slide_look

    options = {"stains": stains, "icc": icc, "mpp_source": mpp_source}
    measured = measure_slide_look(slide, tissue=tissue, **options)
    save_reference(replace(measured, name=out.stem), out)
    if not quiet:
        glass = "measured" if measured.glass_measured else "not found: the white point is a guess"
        flags = ", ".join(measured.sources[0]["flags"]) or "none"
        print_rows([("look", str(out)), ("glass", glass), ("flags", flags)])


@reference_app.command("convert")
def reference_convert(
    source: _Source,
    out: Annotated[Path, typer.Argument(metavar="OUT.(json|groovy|toml)")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a reference from or to QuPath's vectors (.groovy) or a stain set (.toml)."""
    _check_new(out, overwrite)
    from wsi_pgdips.looks.files import load_reference, save_reference

    save_reference(load_reference(source), out)


@reference_app.command("pair")
def reference_pair(
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="The same glass on scanner A and on scanner B; several pairs are combined.",
            metavar="SCAN_A SCAN_B...",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", metavar="MAP.json")],
    name: Annotated[
        str | None, typer.Option(help="Name of the map. [dim]default: the file's[/dim]")
    ] = None,
    mpp_source: MppSource = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure the map from scanner A's colours to scanner B's on scans of the same glass."""
    _check_new_json(out, overwrite, "map")
    from wsi_pgdips.looks.colour_map import save_map
    from wsi_pgdips.looks.map_fit import fit_pairs

    fitted = fit_pairs(scans, name or out.stem, mpp_source=mpp_source, progress=progress_of(quiet))
    save_map(fitted, out)
    if quiet:
        return
    found = [
        f"{s['inliers']} features agree, rms {s['rms_px']:.2f} px, "
        f"correlation {s['correlation']:.3f}, {'glass' if s['glass'] else 'no glass'}"
        for s in fitted.sources
    ]
    form = fitted.freedom if not fitted.ridge else f"{fitted.freedom}, ridge {fitted.ridge:g}"
    held_out = "pairs" if fitted.pairs > 1 else "regions"
    rows = [("map", str(out)), ("registration", "\n".join(found)), ("form", form)]
    rows += [
        (
            "CIELAB dE",
            f"{fitted.before_lab:.2f} -> {fitted.error_lab:.2f}, worst region "
            f"{fitted.worst_before_lab:.2f} -> {fitted.worst_lab:.2f}, on held-out {held_out}",
        ),
        ("OD error", f"{fitted.error_od:.4f}"),
        ("fitted on", f"{fitted.pixels} pixels of {fitted.regions} regions"),
        ("sha256", fitted.digest),
    ]
    print_rows(rows)


def compare(
    a: Annotated[Path, typer.Argument(help="A slide or image, e.g. normalised.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="The slide that A should look like.", metavar="B")],
    before: Annotated[
        Path | None, typer.Option(help="The slide that A was made from.", metavar="SLIDE")
    ] = None,
    stains: Annotated[str, typer.Option(help="Stain set that finds the structures.")] = "he",
    mpp: Annotated[float, typer.Option(help="Micrometres per pixel of the comparison.")] = 0.5,
    mpp_source: MppSource = None,
    as_json: Json = False,
) -> None:
    """Print colour distances of two slides, over all tissue and over nuclei, stroma and DAB."""
    from wsi_pgdips.looks.distance import compare_slides

    found = compare_slides(a, b, before=before, stains=stains, mpp=mpp, mpp_source=mpp_source)
    if as_json:
        typer.echo(json.dumps({"after": found.after, "before": found.before}, indent=2))
        return
    tables = {"": found.after}
    if found.before is not None:
        tables = {" before": found.before, " after": found.after}
    heads = [f"{kind}{when}" for kind in ("OD", "CIELAB") for when in tables]
    table = Table("tissue", *heads, box=None, header_style="bold")
    for name in found.after:
        cells = [
            f"{t[name][kind]:.{digits}f}" if name in t else "-"
            for kind, digits in (("od", 4), ("lab", 2))
            for t in tables.values()
        ]
        table.add_row(name, *cells)
    stdout().print(table)


def _check_new_json(out: Path, overwrite: bool, what: str) -> None:
    """Refuse a file that exists, unless it may be replaced, and a name that is not JSON's."""
    _check_new(out, overwrite)
    if out.suffix.lower() != ".json":
        refuse(f"a {what} is a .json file, found {out.name}", "--out")


def _check_new(out: Path, overwrite: bool) -> None:
    """Refuse a file that exists, unless it may be replaced."""
    from wsi_pgdips.errors import OutputError

    if out.exists() and not overwrite:
        raise OutputError("the file exists", where=out, hint="give --overwrite, or another name")
