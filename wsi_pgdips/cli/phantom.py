"""The commands ``phantom`` and ``demo``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from wsi_pgdips.cli.options import Quiet
from wsi_pgdips.cli.say import numbers, print_rows, print_summary, progress_of, stdout

_Description = Annotated[
    Path | None,
    typer.Option(
        help="Description of the phantom. [dim]default: the demonstration slide[/dim]",
        metavar="FILE.toml",
    ),
]


def phantom(
    output: Annotated[Path, typer.Argument(help="Slide to write.", metavar="OUT.tiff")],
    config: _Description = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the description's seed.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Replaces the description's shape.", metavar="N|WIDTHxHEIGHT"),
    ] = None,
    texture: Annotated[
        Path | None,
        typer.Option("--from", help="Use the tissue of a real slide.", metavar="SLIDE"),
    ] = None,
    stains: Annotated[str | None, typer.Option(help="Stain set of the slide of --from.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a synthetic slide with exact truth, and a stain file to run it with."""
    from wsi_pgdips.phantom.make import make_phantom

    shape = None if size is None else _shape(size)
    with contextlib.closing(progress_of(quiet)) as progress:
        made = make_phantom(
            output,
            config=config,
            seed=seed,
            shape=shape,
            texture=texture,
            stains=stains,
            progress=progress,
        )
    if not quiet:
        print_rows([("slide", str(output)), ("stains", str(made.stains))])


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")] = Path("demo"),
    preset: Annotated[
        str | None, typer.Option(metavar="balanced|fast|paper", help="See [b]run[/b].")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="See [b]run[/b].")
    ] = None,
    config: _Description = None,
    quiet: Quiet = False,
) -> None:
    """Write a synthetic slide, run it, and compare the result with its truth."""
    from wsi_pgdips.phantom.make import run_demo

    with contextlib.closing(progress_of(quiet)) as progress:
        result = run_demo(folder, config=config, progress=progress, preset=preset, device=device)
    if not quiet:
        print_summary(result.summary)
        table = Table("stain", "RMSE q, OD", "bias q, OD", "angle of S", "at the start", box=None)
        for e in result.stains:
            angles = f"{e.angle_deg:.1f} deg", f"{e.library_deg:.1f} deg"
            table.add_row(e.label, f"{e.rmse_od:.4f}", f"{e.bias_od:+.4f}", *angles)
        console = stdout()
        console.print("\nerrors against the truth", style="bold")
        console.print(table)
        print_rows([("RMSE B", f"{result.background_od:.4f} OD"), ("figure", str(result.figure))])
    raise typer.Exit(result.summary.exit_code)


def _shape(size: str) -> tuple[int, int]:
    """Parse ``N`` or ``WIDTHxHEIGHT`` to (height, width)."""
    if "x" not in size:
        (side,) = numbers(size, "x", 1, "--size", "N or WIDTHxHEIGHT")
        return side, side
    width, height = numbers(size, "x", 2, "--size", "N or WIDTHxHEIGHT")
    return height, width
