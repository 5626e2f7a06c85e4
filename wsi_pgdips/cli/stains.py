"""The command ``stains``: the stain library, and stain vectors from a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from wsi_pgdips.cli.options import MppSource
from wsi_pgdips.cli.say import numbers, print_rows, stdout
from wsi_pgdips.geometry import Region

stains_app = typer.Typer(help="The stain library, and stain vectors from a slide.")


@stains_app.callback()
def _stains(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from wsi_pgdips.checks.info import vector_text
    from wsi_pgdips.optics.stain_files import load_stains, stain_names

    table = Table("name", "stain", "OD (r, g, b)", "source", box=None, header_style="bold")
    for name in stain_names():
        stains = load_stains(name)
        heads = Text(name, style="bold"), Text(stains.source, style="dim")
        for label, color, row in zip(stains.labels, stains.colors, stains.matrix, strict=True):
            swatch = Text.assemble(("■ ", f"#{color}"), label)
            table.add_row(heads[0], swatch, vector_text(row), heads[1])
            heads = Text(), Text()
    stdout().print(table)


@stains_app.command("show")
def stains_show(
    name: Annotated[str, typer.Argument(help="Name of a set, or a TOML file.")],
) -> None:
    """Print a stain set as TOML, as a start for your own."""
    from wsi_pgdips.optics.stain_files import load_stains
    from wsi_pgdips.pipeline.references import stains_toml

    typer.echo(stains_toml(load_stains(name)), nl=False)


@stains_app.command("fit")
def stains_fit(
    slide: Annotated[Path, typer.Argument(help="Slide or image.", metavar="SLIDE")],
    region: Annotated[
        str,
        typer.Option(help="A region with one stain only, level-0 pixels.", metavar="X,Y,W,H"),
    ],
    label: Annotated[str, typer.Option(help="Name of the stain.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.toml")],
    color: Annotated[
        str | None,
        typer.Option(help="Six hex digits. [dim]default: the vector's colour[/dim]"),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the stain to an existing file.")] = False,
    mpp_source: MppSource = None,
) -> None:
    """Measure the vector of one stain in a region of a slide, corrected for the slide's glass."""
    from wsi_pgdips.checks.info import vector_text
    from wsi_pgdips.pipeline.references import fit_stain, save_fitted

    x, y, w, h = numbers(region, ",", 4, "--region", "x,y,w,h")
    fitted = fit_stain(slide, Region(y, x, h, w), mpp_source=mpp_source)
    source = f"fitted on {slide.name}, region {x},{y},{w},{h}"
    save_fitted(fitted, output, label=label, color=color, source=source, add=add)
    glass = vector_text(fitted.background) if fitted.has_glass else "none found, not corrected"
    rows = [(label, f"{vector_text(fitted.vector)}, within {fitted.uncertainty_deg:.1f} degrees")]
    print_rows([*rows, ("glass", glass), ("written", str(output))])
