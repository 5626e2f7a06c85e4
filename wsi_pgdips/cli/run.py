"""``run`` and ``info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pgdips.cli.app import EXIT_INTERRUPTED
from wsi_pgdips.cli.say import print_rows, print_summary, progress_of, say_error, speak_up

_METHOD, _MACHINE, _EXPERT = "What the result depends on", "How it is carried out", "For experts"


def run(
    ctx: typer.Context,
    slide: Annotated[Path, typer.Argument(help="Slide or image to read.", metavar="SLIDE")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT.ome.zarr")],
    stains: Annotated[
        str | None,
        typer.Option(
            help="Set of the library, such as he (see [b]wsi-pgdips stains[/b]), or your own. "
            "[dim]default: he[/dim]",
            metavar="NAME|FILE.toml",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Effort per tile. [dim]default: balanced[/dim]",
            metavar="balanced|fast|paper",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    mpp: Annotated[
        str | None,
        typer.Option(
            help="Micrometres per output pixel. [dim]default: 0.5[/dim]",
            metavar="FLOAT|native",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    mpp_source: Annotated[
        float | None,
        typer.Option(
            help="The slide's own micrometres per pixel, where the file is silent or wrong.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in output pixels. [dim]default: 512[/dim]",
            metavar="256|512|1024",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    min_tissue: Annotated[
        float | None,
        typer.Option(
            help="Share of tissue below which a tile is not fitted (it is rendered all the same). "
            "[dim]default: 0.05[/dim]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of everything random.", rich_help_panel=_METHOD),
    ] = None,
    masker: Annotated[
        str | None,
        typer.Option(
            help="How tissue is found. [dim]default: otsu[/dim]",
            metavar="otsu|morphological",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Your own tissue mask.", metavar="FILE.png|.geojson", rich_help_panel=_METHOD
        ),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="Region to process.", metavar="FILE.geojson", rich_help_panel=_METHOD),
    ] = None,
    icc: Annotated[
        bool | None,
        typer.Option("--icc/--no-icc", help="Apply the ICC profile.", rich_help_panel=_METHOD),
    ] = None,
    store_residual: Annotated[
        bool | None,
        typer.Option(
            "--store-residual/--no-store-residual",
            help="Also store the signed residual.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Network steps per tile. [dim]default: the preset's[/dim]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="Side of a block, the unit of work and of a shard. [dim]default: 4096[/dim]",
            metavar="1024|2048|4096",
            rich_help_panel=_EXPERT,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the network.", rich_help_panel=_EXPERT)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Weight of the reconstruction loss.", rich_help_panel=_EXPERT),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Weight of the exclusion loss.", rich_help_panel=_EXPERT)
    ] = None,
    calibration_tiles: Annotated[
        int | None,
        typer.Option(help="Tiles sampled for the slide's prior.", rich_help_panel=_EXPERT),
    ] = None,
    calibration_steps: Annotated[
        int | None,
        typer.Option(help="Network steps of the slide's prior.", rich_help_panel=_EXPERT),
    ] = None,
    prior_weight: Annotated[
        str | None,
        typer.Option(
            help="Pull of the render to the network's maps.",
            metavar="auto|FLOAT",
            rich_help_panel=_EXPERT,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="[dim]default: auto[/dim]",
            metavar="auto|cpu|cuda|cuda:N",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes.", rich_help_panel=_MACHINE)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one worker.", rich_help_panel=_MACHINE)
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Tiles in one batch on a GPU.", metavar="auto|N", rich_help_panel=_MACHINE
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Copy the slide here, to a local disk, while it is worked on.",
            metavar="DIR",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    keep_pixels: Annotated[
        bool | None,
        typer.Option(
            "--keep-pixels/--no-keep-pixels",
            help="Keep decoded pixels in the output until the end, to decode the slide once. "
            "[dim]default: where the disk has room[/dim]",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option(
            "--overwrite/--no-overwrite",
            help="Replace an existing output.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Go on with an unfinished output. [dim]default: resume[/dim]",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings of this page as a flat TOML; the command line wins.",
            metavar="FILE.toml",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also say how long stages took, and warnings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Turn a slide into layers of stain concentration; goes on where it stopped."""
    shown = {"ctx", "slide", "output", "config", "verbose", "quiet"}
    options = {k: _plain(v) for k, v in ctx.params.items() if k not in shown}
    if verbose:
        speak_up()
    try:
        from wsi_pgdips.run.pipeline import deconvolve_slide

        summary = deconvolve_slide(
            slide, output, config=config, progress=progress_of(quiet), **options
        )
    except KeyboardInterrupt:
        say_error("interrupted; the same command goes on where it stopped", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not quiet:
        print_summary(summary, times=verbose)
    raise typer.Exit(summary.exit_code)


def info(
    path: Annotated[Path, typer.Argument(help="A slide, or layers.", metavar="SLIDE|OUT.ome.zarr")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    mpp_source: Annotated[
        float | None, typer.Option(help="Micrometres per pixel, where the file is silent.")
    ] = None,
) -> None:
    """Say what a slide or the output of a run holds."""
    from wsi_pgdips.run.inspect import describe, inspect

    facts = inspect(path, mpp_source=mpp_source)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_rows(describe(facts))


def _plain(value: Any) -> Any:
    """Settings hold text where the command line has paths."""
    return str(value) if isinstance(value, Path) else value
