"""``bench``: the benchmark of quality, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_pgdips.cli.say import EXIT_INTERRUPTED, print_rows, refuse, say_error

bench_app = typer.Typer(
    help="How good the result is, and how fast: exact truth, other methods beside it.",
    no_args_is_help=True,
)


@bench_app.command()
def quality(
    out: Annotated[Path, typer.Option(help="Records to write.", metavar="FILE.json")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with truth/, semisynthetic/ and slides/. "
            "[dim]default: phantoms alone[/dim]",
            metavar="DIR",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Presets to measure. [dim]default: balanced,fast[/dim]", metavar="NAME,..."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods to measure. [dim]default: all but paper[/dim]",
            metavar="NAME,...",
        ),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(help="Cases to measure. [dim]default: all[/dim]", metavar="NAME,..."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Phantoms of each case.", min=1)] = 5,
    texture: Annotated[
        Path | None,
        typer.Option("--from", help="One more phantom, of the tissue of a slide.", metavar="SLIDE"),
    ] = None,
    stains: Annotated[
        str | None, typer.Option(help="What the slide of --from is stained with.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small, fixed slice: a few minutes.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Also write the page.", metavar="FILE.md")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the records of FILE.json, and measure the rest.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Measure the product, linear baselines and ablations, where the truth is known."""
    from benchmarks.quality.page import write_page
    from benchmarks.quality.run import Request, run

    if (texture is None) != (stains is None):
        refuse("--from and --stains belong together", "--from")
    request = Request(
        out,
        data=data,
        methods=_names(methods),
        presets=_names(preset),
        cases=_names(cases),
        seeds=seeds,
        extra=None if texture is None or stains is None else (texture, stains),
        quick=quick,
        keep=keep,
    )
    try:
        results = run(request, lambda line: None if quiet else typer.echo(line))
    except KeyboardInterrupt:
        say_error("interrupted; the same command with --keep goes on from there", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if page is not None:
        write_page(out, page)
    if not quiet:
        written = [("records", f"{len(results.records)} in {out}")]
        print_rows(written + ([] if page is None else [("page", str(page))]))


@bench_app.command()
def speed(
    out: Annotated[Path, typer.Option(help="Records to write.", metavar="FILE.json")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with slides/. [dim]default: phantoms alone[/dim]", metavar="DIR"),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="As of [b]run[/b].")
    ] = "auto",
    side: Annotated[
        int | None, typer.Option(help="Of the larger phantom, pixels.", metavar="N")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small, fixed slice: a few minutes.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Also write the page and its plots.", metavar="FILE.md")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Measure how long a tile takes, its parts, and what tiatoolbox takes for it."""
    from benchmarks.speed.page import write_speed_page
    from benchmarks.speed.run import SpeedRequest, run_speed

    request = SpeedRequest(out, data=data, device=device, quick=quick, side=side)
    speeds = run_speed(request, lambda line: None if quiet else typer.echo(line))
    if page is not None:
        write_speed_page(out, page)
    if not quiet:
        print_rows([("records", f"{len(speeds.records)} in {out}")])


@bench_app.command(name="speed-page")
def speed_page(
    results: Annotated[Path, typer.Argument(help="Records of bench speed.", metavar="FILE.json")],
    output: Annotated[Path, typer.Argument(help="Page to write.", metavar="FILE.md")],
) -> None:
    """Render the records of the benchmark of speed as a page of tables and plots."""
    from benchmarks.speed.page import write_speed_page

    write_speed_page(results, output)


@bench_app.command()
def looks(
    out: Annotated[Path, typer.Option(help="Records to write.", metavar="FILE.json")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with slides/ and scanners/. [dim]default: a phantom alone[/dim]",
            metavar="DIR",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small, fixed slice: some two minutes.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Also write the page and its figure.", metavar="FILE.md")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the records of FILE.json, and measure the rest.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Measure how near a normalised slide comes to its reference, and what it costs to read."""
    from benchmarks.looks.page import write_looks_page
    from benchmarks.looks.run import LooksRequest, run_looks

    request = LooksRequest(out, data=data, quick=quick, keep=keep)
    found, panels = run_looks(request, lambda line: None if quiet else typer.echo(line))
    if page is not None:
        write_looks_page(out, page, panels)
    if not quiet:
        print_rows([("records", f"{len(found.records)} in {out}")])


@bench_app.command(name="looks-page")
def looks_page(
    results: Annotated[Path, typer.Argument(help="Records of bench looks.", metavar="FILE.json")],
    output: Annotated[Path, typer.Argument(help="Page to write.", metavar="FILE.md")],
) -> None:
    """Render the records of the benchmark of looks as a page; its figure stays as it is."""
    from benchmarks.looks.page import write_looks_page

    write_looks_page(results, output)


@bench_app.command()
def cohort(
    out: Annotated[Path, typer.Option(help="Records to write.", metavar="FILE.json")],
    slides: Annotated[
        int | None,
        typer.Option(help="Small slides of the cohort. [dim]default: 200[/dim]", min=1),
    ] = None,
    kills: Annotated[
        int | None, typer.Option(help="Kills of a run. [dim]default: 50[/dim]", min=0)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small, fixed slice: some two minutes.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Also write the page.", metavar="FILE.md")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Measure what a small slide costs beyond its work, and whether kills cost a single byte."""
    from benchmarks.cohort.page import write_cohort_page
    from benchmarks.cohort.run import CohortRequest, run_cohort_bench

    request = CohortRequest(out, slides=slides, kills=kills, quick=quick)
    found = run_cohort_bench(request, lambda line: None if quiet else typer.echo(line))
    if page is not None:
        write_cohort_page(out, page)
    if not quiet:
        print_rows([("records", f"{len(found.records)} in {out}")])


@bench_app.command(name="cohort-page")
def cohort_page(
    results: Annotated[Path, typer.Argument(help="Records of bench cohort.", metavar="FILE.json")],
    output: Annotated[Path, typer.Argument(help="Page to write.", metavar="FILE.md")],
) -> None:
    """Render the records of the benchmark of cohorts as a page of tables."""
    from benchmarks.cohort.page import write_cohort_page

    write_cohort_page(results, output)


@bench_app.command()
def page(
    results: Annotated[Path, typer.Argument(help="Records of bench quality.", metavar="FILE.json")],
    output: Annotated[Path, typer.Argument(help="Page to write.", metavar="FILE.md")],
) -> None:
    """Render the records of a benchmark as a page of tables."""
    from benchmarks.quality.page import write_page

    write_page(results, output)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(t.strip() for t in text.split(",") if t.strip())
