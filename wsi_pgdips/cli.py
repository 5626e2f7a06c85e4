"""The command line: parse, call ``run``, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsi_pgdips import __version__
from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.geometry import Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_pgdips.run.progress import Progress
    from wsi_pgdips.run.summary import RunSummary

EXIT_BUG, EXIT_INTERRUPTED = 1, 130
# libraries whose warnings speak to their callers, not to who runs a slide
_NOISY = ("dask", "distributed", "numcodecs", "numba", "tiatoolbox", "torch", "zarr")

app = typer.Typer(
    name="wsi-pgdips",
    help="Stain concentrations of whole slides, without training and without seams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
stains_app = typer.Typer(help="The stain library, and stain vectors from a slide.")
app.add_typer(stains_app, name="stains", invoke_without_command=True)

_METHOD, _MACHINE, _EXPERT = "What the result depends on", "How it is carried out", "For experts"


def main() -> None:
    """Entry point: run the command, and turn what it raises into a message and an exit code."""
    for name in _NOISY:
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
    try:
        app(prog_name="wsi-pgdips")
    except WsiPgdipsError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        _say_error(
            "this is a bug of wsi-pgdips, not yours\n"
            f"  what to do: please report the lines above, the command, and version {__version__}; "
            "leave out what names a patient"
        )
        sys.exit(EXIT_BUG)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"wsi-pgdips {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...


@app.command()
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
        _speak_up()
    try:
        from wsi_pgdips.run.pipeline import deconvolve_slide

        summary = deconvolve_slide(
            slide, output, config=config, progress=_progress(quiet), **options
        )
    except KeyboardInterrupt:
        _say_error("interrupted; the same command goes on where it stopped", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not quiet:
        _print_summary(summary, times=verbose)
    raise typer.Exit(summary.exit_code)


@app.command()
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
        _print_rows(describe(facts))


@stains_app.callback()
def _stains(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from wsi_pgdips.optics.stains import load_stains, stain_names
    from wsi_pgdips.run.inspect import vector_text

    table = Table("name", "stain", "OD (r, g, b)", "source", box=None, header_style="bold")
    for name in stain_names():
        stains = load_stains(name)
        for k, (label, color, row) in enumerate(
            zip(stains.labels, stains.colors, stains.matrix, strict=True)
        ):
            swatch = Text.assemble(("■ ", f"#{color}"), label)
            first = k == 0
            source = Text(stains.source, style="dim") if first else ""
            table.add_row(
                Text(name if first else "", style="bold"), swatch, vector_text(row), source
            )
    _stdout().print(table)


@stains_app.command("show")
def stains_show(
    name: Annotated[str, typer.Argument(help="Name of a set, or a TOML file.")],
) -> None:
    """Print a stain set as TOML, to start your own from."""
    from wsi_pgdips.optics.stains import load_stains
    from wsi_pgdips.run.stain_fit import stains_toml

    typer.echo(stains_toml(load_stains(name)), nl=False)


@stains_app.command("fit")
def stains_fit(
    slide: Annotated[Path, typer.Argument(help="Slide or image.", metavar="SLIDE")],
    region: Annotated[
        str,
        typer.Option(help="Where one stain is alone, in level-0 pixels.", metavar="X,Y,W,H"),
    ],
    label: Annotated[str, typer.Option(help="Name of the stain.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.toml")],
    color: Annotated[
        str | None, typer.Option(help="Six hex digits. [dim]default: from the vector[/dim]")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to a stain file that exists.")] = False,
    mpp_source: Annotated[
        float | None, typer.Option(help="Micrometres per pixel, where the file is silent.")
    ] = None,
) -> None:
    """Take the vector of one stain from a region of a slide, less the slide's glass."""
    from wsi_pgdips.run.inspect import vector_text
    from wsi_pgdips.run.stain_fit import fit_stain, save_fitted

    x, y, w, h = _numbers(region, ",", 4, "--region", "x,y,w,h")
    fitted = fit_stain(slide, Region(y, x, h, w), mpp_source=mpp_source)
    source = f"fitted on {slide.name}, region {x},{y},{w},{h}"
    save_fitted(fitted, output, label=label, color=color, source=source, add=add)
    glass = vector_text(fitted.background) if fitted.has_glass else "none found, not corrected"
    _print_rows([(label, vector_text(fitted.vector)), ("glass", glass), ("written", str(output))])


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Slide to write.", metavar="OUT.tiff")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="What it holds. [dim]default: the demonstration slide[/dim]", metavar="FILE.toml"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the description's.")] = None,
    size: Annotated[
        str | None, typer.Option(help="In place of the description's.", metavar="N|WIDTHxHEIGHT")
    ] = None,
    texture: Annotated[
        Path | None,
        typer.Option("--from", help="Take the tissue of a real slide.", metavar="SLIDE"),
    ] = None,
    stains: Annotated[
        str | None, typer.Option(help="What the slide of --from is stained with.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Write a synthetic slide with exact truth, and a stain file to run it with."""
    from wsi_pgdips.run.phantoms import make_phantom

    shape = None if size is None else _shape(size)
    progress = _progress(quiet)
    try:
        made = make_phantom(
            output,
            config=config,
            seed=seed,
            shape=shape,
            texture=texture,
            stains=stains,
            progress=progress,
        )
    finally:
        progress.close()
    if not quiet:
        _print_rows([("slide", str(output)), ("stains", str(made.stains))])


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")] = Path("demo"),
    preset: Annotated[
        str | None, typer.Option(metavar="balanced|fast|paper", help="As of [b]run[/b].")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="As of [b]run[/b].")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Another phantom, as of [b]phantom[/b].", metavar="FILE.toml"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Run a synthetic slide through everything, and compare with its truth."""
    from wsi_pgdips.run.demo import run_demo

    progress = _progress(quiet)
    try:
        result = run_demo(folder, config=config, progress=progress, preset=preset, device=device)
    finally:
        progress.close()
    if not quiet:
        _print_summary(result.summary)
        table = Table("stain", "RMSE q, OD", "bias q, OD", "angle of S", "at the start", box=None)
        for e in result.stains:
            angles = f"{e.angle_deg:.1f} deg", f"{e.library_deg:.1f} deg"
            table.add_row(e.label, f"{e.rmse_od:.4f}", f"{e.bias_od:+.4f}", *angles)
        console = _stdout()
        console.print("\nerrors against the truth", style="bold")
        console.print(table)
        _print_rows([("RMSE B", f"{result.background_od:.4f} OD"), ("figure", str(result.figure))])
    raise typer.Exit(result.summary.exit_code)


def _print_summary(summary: RunSummary, *, times: bool = False) -> None:
    from wsi_pgdips.run.inspect import seam_texts, times_text

    done = "finished before, nothing to do" if summary.already_done else "done"
    counts = f"{summary.tiles}, {summary.fitted} fitted on their own, {summary.inherited} inherited"
    rows = [(done if not summary.exit_code else "ended with failures", str(summary.path))]
    rows.append(("tiles", counts))
    if summary.exit_code:
        failed = f"{summary.failed_tiles} tiles, {summary.failed_blocks} blocks"
        if not summary.failed_tiles and not summary.failed_blocks:
            failed = "parts of the slide could not be read, see flags"
        rows.append(("failed", failed + "; the same command tries them again"))
    if summary.flags:
        rows.append(("flags", ", ".join(summary.flags)))
    rows += [(f"seam step, {label}", text) for label, text in seam_texts(summary.seam_step_od)]
    if times:
        rows.append(("seconds", times_text(summary.wall_s)))
    _print_rows(rows)


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line and never wrapped, so that they can be grepped and copied."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        indented = value.replace("\n", "\n" + " " * (width + 2))
        line = Text.assemble((name.ljust(width), "bold"), "  ", indented)
        _stdout().print(line, soft_wrap=True, highlight=False)


def _say_error(message: str, *, kind: str = "error") -> None:
    line = Text.assemble((f"{kind}:", "bold red"), " ", message)
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def _stdout() -> Console:
    return Console()


def _progress(quiet: bool) -> Progress:
    from wsi_pgdips.run.progress import QuietProgress, make_progress

    return QuietProgress() if quiet else make_progress(sys.stderr)


def _speak_up() -> None:
    warnings.resetwarnings()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("wsi_pgdips").setLevel(logging.INFO)


def _plain(value: Any) -> Any:
    """Settings hold text where the command line has paths."""
    return str(value) if isinstance(value, Path) else value


def _shape(size: str) -> tuple[int, int]:
    """(height, width) of ``N`` or ``WIDTHxHEIGHT``."""
    if "x" not in size:
        (side,) = _numbers(size, "x", 1, "--size", "N or WIDTHxHEIGHT")
        return side, side
    width, height = _numbers(size, "x", 2, "--size", "N or WIDTHxHEIGHT")
    return height, width


def _numbers(text: str, separator: str, count: int, option: str, form: str) -> list[int]:
    parts = text.split(separator)
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        _refuse(f"expected whole numbers as {form}, found {text!r}", option)
    return [int(part) for part in parts]


def _refuse(message: str, option: str) -> NoReturn:
    raise typer.BadParameter(message, param_hint=option)
