"""``run``, ``info`` and ``estimate``: commands about one slide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_pgdips.cli.options import Config, Json, MppSource, Quiet, with_run_options, with_settings
from wsi_pgdips.cli.say import (
    EXIT_INTERRUPTED,
    print_rows,
    print_summary,
    progress_of,
    say_error,
    size_text,
    speak_up,
    time_text,
)

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.estimate import Estimate
    from wsi_pgdips.pipeline.signals import Stopped

_JOBS = "As one job of several"

Slide = Annotated[Path, typer.Argument(help="Slide or image to read.", metavar="SLIDE")]


@with_run_options
def run(
    slide: Slide,
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT.ome.zarr")],
    config: Config = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print warnings, and seconds of stages.")
    ] = False,
    quiet: Quiet = False,
    stage: Annotated[
        str | None,
        typer.Option(
            help="Do only this stage, as one job of several.",
            metavar="calibrate|fit|blend|render|finalize",
            rich_help_panel=_JOBS,
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Do the N-th share of the blocks of [b]fit[/b] or [b]render[/b].",
            metavar="N/COUNT",
            rich_help_panel=_JOBS,
        ),
    ] = None,
    **options: Any,
) -> None:
    """Turn a slide into layers of stain concentration; resumes an unfinished output."""
    if verbose:
        speak_up()
    from wsi_pgdips.pipeline import slide as pipeline
    from wsi_pgdips.pipeline.ledger import Ledger
    from wsi_pgdips.pipeline.signals import Stopped, stoppable
    from wsi_pgdips.progress import Together

    # only a restarted job can be too short for a single piece, so only then are pieces counted
    before = Ledger(output).pieces() if pipeline.is_restarted() else None
    try:
        with stoppable() as stop:
            shown = Together([progress_of(quiet)], stop.check)
            given = {"config": config, "progress": shown, **options}
            summary = (
                pipeline.deconvolve_slide(slide, output, **given)
                if stage is None and part is None
                else pipeline.run_stage(slide, output, stage, part, **given)
            )
    except Stopped as stopped:
        in_vain = before is not None and Ledger(output).pieces() == before
        raise typer.Exit(_report_stop(stopped, in_vain)) from None
    except KeyboardInterrupt:
        say_error("interrupted; to resume, repeat the command", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if summary is None:  # a stage before the last
        return
    if not quiet:
        print_summary(summary, times=verbose)
    raise typer.Exit(summary.exit_code)


def _report_stop(stopped: Stopped, in_vain: bool) -> int:
    """Report a run that a signal ended, and return the exit code.

    At a time limit Slurm is asked to start the job again, unless this start was in vain.
    """
    from wsi_pgdips.errors import IncompleteRunError
    from wsi_pgdips.pipeline.signals import LONGER, TOO_SHORT
    from wsi_pgdips.slurm.queue import requeue_this

    if stopped.asks_for_more and in_vain:
        error = IncompleteRunError(f"{TOO_SHORT}; it is not started again", hint=LONGER)
        say_error(str(error))
        return error.exit_code
    if stopped.asks_for_more and requeue_this():
        say_error("out of time; the job starts again and resumes", kind="stopped")
    else:
        say_error(f"{stopped}; to resume, repeat the command", kind="stopped")
    return stopped.exit_code


def info(
    path: Annotated[Path, typer.Argument(help="A slide, or layers.", metavar="SLIDE|OUT.ome.zarr")],
    as_json: Json = False,
    mpp_source: MppSource = None,
) -> None:
    """Print what a slide or the output of a run holds."""
    from wsi_pgdips.checks.info import describe, inspect

    facts = inspect(path, mpp_source=mpp_source)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_rows(describe(facts))


@with_settings("cluster", "cache", "overwrite", "resume")
def estimate(slide: Slide, config: Config = None, as_json: Json = False, **options: Any) -> None:
    """Predict how long a run would take, and how much memory and disk."""
    from dataclasses import asdict

    from wsi_pgdips.pipeline.estimate import estimate_slide

    found = estimate_slide(slide, config=config, **options)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "total_s": round(found.total_s, 3)}, indent=2))
    else:
        print_rows(_estimate_rows(found))


def _estimate_rows(found: Estimate) -> list[tuple[str, str]]:
    from wsi_pgdips.checks.info import times_text

    threads = f"{found.threads} threads" if found.threads > 1 else "one thread"
    several = found.workers > 1
    processes = f"{found.workers} processes of " if several else ""
    rows = [
        ("slide", found.slide),
        ("run", f"{found.preset} on {found.device}, {processes}{threads}"),
        ("tiles", f"{found.tiles}, {found.tiles_to_fit} to be fitted on their own"),
        ("blocks", str(found.blocks)),
        ("time", f"about {time_text(found.total_s)}"),
        ("seconds", times_text(found.wall_s)),
        ("memory", size_text(found.peak_rss_mb * 2**20) + (" a process" if several else "")),
    ]
    if found.peak_vram_mb:
        rows.append(("GPU memory", size_text(found.peak_vram_mb * 2**20)))
    rows += [
        ("disk", size_text(found.disk_bytes)),
        ("disk, at most", f"{size_text(found.peak_disk_bytes)} until the run is done"),
    ]
    return rows
