"""``estimate``: what a run would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wsi_pgdips.cli.say import print_rows


def estimate(
    slide: Annotated[Path, typer.Argument(help="Slide or image to read.", metavar="SLIDE")],
    stains: Annotated[
        str | None, typer.Option(help="Set of stains.", metavar="NAME|FILE.toml")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Effort per tile.", metavar="balanced|fast|paper")
    ] = None,
    mpp: Annotated[
        str | None,
        typer.Option(help="Micrometres per output pixel.", metavar="FLOAT|native"),
    ] = None,
    mpp_source: Annotated[
        float | None,
        typer.Option(help="The slide's own micrometres per pixel."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile.", metavar="256|512|1024")
    ] = None,
    masker: Annotated[
        str | None, typer.Option(help="How tissue is found.", metavar="otsu|morphological")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Your own tissue mask.", metavar="FILE.png|.geojson")
    ] = None,
    roi: Annotated[
        Path | None, typer.Option(help="Region to process.", metavar="FILE.geojson")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one worker.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings as a flat TOML, as of [b]run[/b]; the command line wins.",
            metavar="FILE.toml",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say how long a run would take, and how much memory and disk; options are those of run."""
    from wsi_pgdips.run.estimate import describe_estimate, estimate_slide

    found = estimate_slide(
        slide,
        config=config,
        stains=stains,
        preset=preset,
        mpp=mpp,
        mpp_source=mpp_source,
        tile=tile,
        masker=masker,
        mask=None if mask is None else str(mask),
        roi=None if roi is None else str(roi),
        device=device,
        workers=workers,
        threads=threads,
    )
    if as_json:
        typer.echo(json.dumps(found.facts(), indent=2))
    else:
        print_rows(describe_estimate(found))
