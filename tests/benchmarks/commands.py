"""The command line of the benchmarks: one command a benchmark, and one that makes a page.

Heavy imports happen inside the commands, so that help comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from wsi_pgdips.errors import WsiPgdipsError

if TYPE_CHECKING:
    from benchmarks.records import Records

EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="How good the result is, and how fast: exact truth, other methods beside it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


Benchmark = Literal["quality", "speed", "looks", "cohort"]
Out = Annotated[Path, Option(help="Records to write.", metavar="FILE.json")]
Data = Annotated[
    Path | None,
    Option(
        help="Folder with truth/, semisynthetic/, slides/, scanners/, multiscanner/. "
        "[dim]default: phantoms alone[/dim]",
        metavar="DIR",
    ),
]
Quick = Annotated[bool, Option("--quick", help="A small, fixed slice: a few minutes.")]
Page = Annotated[
    Path | None, Option(help="Also write the page and its figures.", metavar="FILE.md")
]
Keep = Annotated[
    bool, Option("--keep", help="Keep the records of FILE.json, and measure the rest.")
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Only print errors.")]


NAMES = "NAME,..."


@app.command()
def quality(
    out: Out,
    data: Data = None,
    preset: Annotated[
        str | None, Option(help="Presets. [dim]default: balanced,fast[/dim]", metavar=NAMES)
    ] = None,
    methods: Annotated[
        str | None, Option(help="Methods. [dim]default: all but paper[/dim]", metavar=NAMES)
    ] = None,
    cases: Annotated[
        str | None, Option(help="Cases. [dim]default: all[/dim]", metavar=NAMES)
    ] = None,
    seeds: Annotated[int, Option(help="Phantoms of each case.", min=1)] = 5,
    texture: Annotated[
        Path | None,
        Option("--from", help="One more phantom, of the tissue of a slide.", metavar="SLIDE"),
    ] = None,
    stains: Annotated[str | None, Option(help="Stains of the slide of --from.")] = None,
    quick: Quick = False,
    page: Page = None,
    keep: Keep = False,
    quiet: Quiet = False,
) -> None:
    """Measure the product, linear baselines and ablations, where the truth is known."""
    from benchmarks.quality.run import run

    if (texture is None) != (stains is None):
        raise typer.BadParameter("--from and --stains belong together", param_hint="--from")
    chosen = {"methods": _names(methods), "presets": _names(preset), "cases": _names(cases)}
    extra = None if texture is None or stains is None else (texture, stains)
    rest = {"seeds": seeds, "extra": extra, "quick": quick, "keep": keep}
    _measure(run, "quality", out, page, quiet, data=data, **chosen, **rest)


@app.command()
def speed(
    out: Out,
    data: Data = None,
    device: Annotated[str, Option(metavar="auto|cpu|cuda|cuda:N", help="As of a run.")] = "auto",
    side: Annotated[int | None, Option(help="Side of the larger phantom, pixels.")] = None,
    quick: Quick = False,
    page: Page = None,
    quiet: Quiet = False,
) -> None:
    """Measure how long a tile takes, its parts, and what tiatoolbox takes for it."""
    from benchmarks.speed.run import run

    asked = {"data": data, "device": device, "quick": quick, "side": side}
    _measure(run, "speed", out, page, quiet, **asked)


@app.command()
def looks(
    out: Out,
    data: Data = None,
    quick: Quick = False,
    page: Page = None,
    keep: Keep = False,
    quiet: Quiet = False,
) -> None:
    """Measure how near a normalised slide comes to its reference, and what it costs to read."""
    from benchmarks.looks.run import run

    pictures = None if page is None else page.parent / "images" / "looks.png"
    asked = {"data": data, "quick": quick, "keep": keep, "pictures": pictures}
    _measure(run, "looks", out, page, quiet, **asked)


@app.command()
def cohort(
    out: Out,
    slides: Annotated[int | None, Option(help="Small slides.", min=1, show_default="200")] = None,
    kills: Annotated[int | None, Option(help="Kills of a run.", min=0, show_default="50")] = None,
    quick: Quick = False,
    page: Page = None,
    quiet: Quiet = False,
) -> None:
    """Measure what a small slide costs beyond its work, and whether kills cost a single byte."""
    from benchmarks.cohort.run import run

    asked = {"slides": slides, "kills": kills, "quick": quick}
    _measure(run, "cohort", out, page, quiet, **asked)


@app.command()
def agreement(
    out: Out,
    data: Annotated[Path, Option(help="Folder with multiscanner/.", metavar="DIR")],
    pictures: Annotated[
        Path | None,
        Option(help="Folder of normalised ORGAN_SCANNER.png, of the scans' sizes.", metavar="DIR"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure how far a fixed model sees the same tissue alike on several scanners."""
    from benchmarks.looks.agreement import run
    from benchmarks.records import silent

    run(out, data, pictures, silent if quiet else typer.echo)


@app.command(name="page")
def make_page(
    benchmark: Annotated[Benchmark, Argument(help="Benchmark that made the records.")],
    results: Annotated[Path, Argument(help="Its records.", metavar="FILE.json")],
    output: Annotated[Path, Argument(help="Page to write.", metavar="FILE.md")],
) -> None:
    """Make the page of a benchmark's records, tables and plots; a figure of pictures is kept."""
    from benchmarks.records import write_page

    write_page(benchmark, results, output)


@app.command()
def memory(
    out: Out = Path("docs/results/memory.json"),
    full: Annotated[bool, Option("--full", help="28672 pixels a side.")] = False,
) -> None:
    """Measure the peak memory of a run against the size of its slide."""
    from benchmarks.speed.memory import run

    run(out, full=full)


def main() -> None:
    """Run the command that was asked for; an error becomes a message and an exit code."""
    try:
        app(prog_name="python tests/benchmarks")
    except WsiPgdipsError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _measure(
    run: Callable[..., Records],
    benchmark: Benchmark,
    out: Path,
    page: Path | None,
    quiet: bool,
    **asked: Any,
) -> None:
    """Run a benchmark, write its page where one is asked for, and print what was written."""
    from benchmarks.records import silent, write_page

    try:
        records = run(out, say=silent if quiet else typer.echo, **asked)
    except KeyboardInterrupt:
        again = "; repeat the command with --keep to resume" if "keep" in asked else ""
        typer.echo(f"interrupted: {out} has what was measured before{again}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if page is not None:
        write_page(benchmark, out, page)
    if not quiet:
        typer.echo(f"records  {len(records.rows)} in {out}")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(t.strip() for t in text.split(",") if t.strip())
