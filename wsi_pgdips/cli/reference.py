"""``reference`` and ``compare``: looks of slides, and how far they are apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from wsi_pgdips.cli.say import print_rows, progress_of, refuse, stdout

reference_app = typer.Typer(help="References: the looks that slides are normalised to.")


@reference_app.callback(invoke_without_command=True)
def _references(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from wsi_pgdips.looks.files import load_reference, reference_names

    rows = [(name, ", ".join(load_reference(name).labels)) for name in reference_names()]
    print_rows([*rows, ("self", "the slide itself")])


@reference_app.command("show")
def reference_show(
    reference: Annotated[str, typer.Argument(help="Name, or a file.", metavar="NAME|FILE")],
) -> None:
    """Print a reference as JSON."""
    from wsi_pgdips.looks.files import load_reference, reference_text

    typer.echo(reference_text(load_reference(reference)), nl=False)


@reference_app.command("fit")
def reference_fit(
    slides: Annotated[
        list[Path],
        typer.Argument(help="Slides, or layers of `run`.", metavar="SLIDE|LAYERS..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", metavar="REF.json")],
    name: Annotated[
        str | None, typer.Option(help="Of the reference. [dim]default: the file's[/dim]")
    ] = None,
    stains: Annotated[str, typer.Option(help="Of slides that were not run yet.")] = "he",
    mpp_source: Annotated[
        float | None, typer.Option(help="Micrometres per pixel, where the file is silent.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Measure the common look of slides: stain vectors, M, glass, typical colours, percentiles."""
    _check_new(out, overwrite)
    if out.suffix.lower() != ".json":
        refuse(f"a reference is a .json file, found {out.name}", "--out")
    from wsi_pgdips.looks.files import save_reference
    from wsi_pgdips.pipeline.fit_reference import fit_reference

    fitted = fit_reference(
        slides,
        name or out.stem,
        progress=progress_of(quiet),
        stains=stains,
        mpp_source=mpp_source,
    )
    save_reference(fitted, out)
    if not quiet:
        print_rows([("reference", str(out)), ("sha256", fitted.digest)])


@reference_app.command("convert")
def reference_convert(
    source: Annotated[str, typer.Argument(help="Name, or a file.", metavar="NAME|FILE")],
    out: Annotated[Path, typer.Argument(metavar="OUT.(json|groovy|toml)")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """From and to others: QuPath's setColorDeconvolutionStains (.groovy), stain sets (.toml)."""
    _check_new(out, overwrite)
    from wsi_pgdips.looks.files import load_reference, save_reference

    save_reference(load_reference(source), out)


def compare(
    a: Annotated[Path, typer.Argument(help="A slide or image, e.g. normalised.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="What it is to look like.", metavar="B")],
    before: Annotated[
        Path | None, typer.Option(help="What A was made of.", metavar="SLIDE")
    ] = None,
    stains: Annotated[str, typer.Option(help="Library set that finds the structures.")] = "he",
    mpp: Annotated[float, typer.Option(help="Micrometres per pixel of the comparison.")] = 0.5,
    mpp_source: Annotated[
        float | None, typer.Option(help="Of files that do not say theirs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Colour distance of two slides, as a whole and between structures of the same kind."""
    from wsi_pgdips.looks.distance import compare_slides

    found = compare_slides(a, b, before=before, stains=stains, mpp=mpp, mpp_source=mpp_source)
    if as_json:
        typer.echo(json.dumps({"after": found.after, "before": found.before}, indent=2))
        return
    tables = (
        {"": found.after}
        if found.before is None
        else {" before": found.before, " after": found.after}
    )
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


def _check_new(out: Path, overwrite: bool) -> None:
    from wsi_pgdips.errors import OutputError

    if out.exists() and not overwrite:
        raise OutputError("the file exists", where=out, hint="give --overwrite, or another name")
