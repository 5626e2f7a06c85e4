"""The options of ``run``, which other commands have too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

_METHOD, _MACHINE, _EXPERT = "What the result depends on", "How it is carried out", "For experts"


class RunOptions:
    """One attribute an option; named as the setting it gives."""

    stains: Annotated[
        str | None,
        typer.Option(
            help="Set of the library, such as he (see [b]wsi-pgdips stains[/b]), or your own. "
            "[dim]default: he[/dim]",
            metavar="NAME|FILE.toml",
            rich_help_panel=_METHOD,
        ),
    ]
    preset: Annotated[
        str | None,
        typer.Option(
            help="Effort per tile. [dim]default: balanced[/dim]",
            metavar="balanced|fast|paper",
            rich_help_panel=_METHOD,
        ),
    ]
    mpp: Annotated[
        str | None,
        typer.Option(
            help="Micrometres per output pixel. [dim]default: 0.5[/dim]",
            metavar="FLOAT|native",
            rich_help_panel=_METHOD,
        ),
    ]
    mpp_source: Annotated[
        float | None,
        typer.Option(
            help="The slide's own micrometres per pixel, where the file is silent or wrong.",
            rich_help_panel=_METHOD,
        ),
    ]
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in output pixels. [dim]default: 512[/dim]",
            metavar="256|512|1024",
            rich_help_panel=_METHOD,
        ),
    ]
    min_tissue: Annotated[
        float | None,
        typer.Option(
            help="Share of tissue below which a tile is not fitted (it is rendered all the same). "
            "[dim]default: 0.05[/dim]",
            rich_help_panel=_METHOD,
        ),
    ]
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of everything random.", rich_help_panel=_METHOD),
    ]
    masker: Annotated[
        str | None,
        typer.Option(
            help="How tissue is found. [dim]default: otsu[/dim]",
            metavar="otsu|morphological",
            rich_help_panel=_METHOD,
        ),
    ]
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Your own tissue mask.", metavar="FILE.png|.geojson", rich_help_panel=_METHOD
        ),
    ]
    roi: Annotated[
        Path | None,
        typer.Option(help="Region to process.", metavar="FILE.geojson", rich_help_panel=_METHOD),
    ]
    icc: Annotated[
        bool | None,
        typer.Option("--icc/--no-icc", help="Apply the ICC profile.", rich_help_panel=_METHOD),
    ]
    store_residual: Annotated[
        bool | None,
        typer.Option(
            "--store-residual/--no-store-residual",
            help="Also store the signed residual.",
            rich_help_panel=_METHOD,
        ),
    ]
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Network steps per tile. [dim]default: the preset's[/dim]",
            rich_help_panel=_METHOD,
        ),
    ]
    block: Annotated[
        int | None,
        typer.Option(
            help="Side of a block, the unit of work and of a shard. [dim]default: 4096[/dim]",
            metavar="1024|2048|4096",
            rich_help_panel=_EXPERT,
        ),
    ]
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the network.", rich_help_panel=_EXPERT)
    ]
    alpha: Annotated[
        float | None,
        typer.Option(help="Weight of the reconstruction loss.", rich_help_panel=_EXPERT),
    ]
    beta: Annotated[
        float | None, typer.Option(help="Weight of the exclusion loss.", rich_help_panel=_EXPERT)
    ]
    calibration_tiles: Annotated[
        int | None,
        typer.Option(help="Tiles sampled for the slide's prior.", rich_help_panel=_EXPERT),
    ]
    calibration_steps: Annotated[
        int | None,
        typer.Option(help="Network steps of the slide's prior.", rich_help_panel=_EXPERT),
    ]
    prior_weight: Annotated[
        str | None,
        typer.Option(
            help="Pull of the render to the network's maps.",
            metavar="auto|FLOAT",
            rich_help_panel=_EXPERT,
        ),
    ]
    device: Annotated[
        str | None,
        typer.Option(
            help="[dim]default: auto[/dim]",
            metavar="auto|cpu|cuda|cuda:N",
            rich_help_panel=_MACHINE,
        ),
    ]
    workers: Annotated[int | None, typer.Option(help="Worker processes.", rich_help_panel=_MACHINE)]
    threads: Annotated[
        int | None, typer.Option(help="Threads of one worker.", rich_help_panel=_MACHINE)
    ]
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Where worker processes live: here, in jobs of Slurm, or with a scheduler of "
            "dask. [dim]default: local[/dim]",
            metavar="local|slurm|tcp://HOST:PORT",
            rich_help_panel=_MACHINE,
        ),
    ]
    batch: Annotated[
        str | None,
        typer.Option(
            help="Tiles in one batch on a GPU.", metavar="auto|N", rich_help_panel=_MACHINE
        ),
    ]
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Copy the slide here, to a local disk, while it is worked on.",
            metavar="DIR",
            rich_help_panel=_MACHINE,
        ),
    ]
    keep_pixels: Annotated[
        bool | None,
        typer.Option(
            "--keep-pixels/--no-keep-pixels",
            help="Keep decoded pixels in the output until the end, to decode the slide once. "
            "[dim]default: where the disk has room[/dim]",
            rich_help_panel=_MACHINE,
        ),
    ]
    overwrite: Annotated[
        bool | None,
        typer.Option(
            "--overwrite/--no-overwrite",
            help="Replace an existing output.",
            rich_help_panel=_MACHINE,
        ),
    ]
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Go on with an unfinished output. [dim]default: resume[/dim]",
            rich_help_panel=_MACHINE,
        ),
    ]


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has these options as well, and gets those that were given as ``**options``."""
    hints = get_type_hints(RunOptions, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(n, keyword, default=None, annotation=h) for n, h in hints.items()]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options = {name: _plain(given.pop(name)) for name in hints}
        command(**given, **{k: v for k, v in options.items() if v is not None})

    with_options.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in [*own, *more]}
    del with_options.__wrapped__
    return with_options


def _plain(value: Any) -> Any:
    """Settings hold text where the command line has paths."""
    return str(value) if isinstance(value, Path) else value
