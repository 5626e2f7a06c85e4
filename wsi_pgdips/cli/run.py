"""``run`` and ``info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_pgdips.cli.app import EXIT_INTERRUPTED
from wsi_pgdips.cli.run_options import with_run_options
from wsi_pgdips.cli.say import print_rows, print_summary, progress_of, say_error, speak_up

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.signals import Stopped

_JOBS = "As one job of several"


@with_run_options
def run(
    slide: Annotated[Path, typer.Argument(help="Slide or image to read.", metavar="SLIDE")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT.ome.zarr")],
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
    stage: Annotated[
        str | None,
        typer.Option(
            help="Do this stage alone, as one job of several.",
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
    """Turn a slide into layers of stain concentration; goes on where it stopped."""
    if verbose:
        speak_up()
    from wsi_pgdips.pipeline import slide as pipeline
    from wsi_pgdips.pipeline.ledger import Ledger
    from wsi_pgdips.pipeline.signals import Stopped, stoppable
    from wsi_pgdips.progress import Together

    # only a start after another can be in vain: no other has the files counted
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
        raise typer.Exit(_say_stopped(stopped, in_vain)) from None
    except KeyboardInterrupt:
        say_error("interrupted; the same command goes on where it stopped", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if summary is None:  # a stage before the last
        return
    if not quiet:
        print_summary(summary, times=verbose)
    raise typer.Exit(summary.exit_code)


def _say_stopped(stopped: Stopped, in_vain: bool) -> int:
    """Exit code after a signal; that of a time limit asks Slurm for a new start."""
    from wsi_pgdips.errors import IncompleteRunError
    from wsi_pgdips.pipeline.signals import LONGER, TOO_SHORT
    from wsi_pgdips.slurm.queue import requeue_this

    if stopped.asks_for_more and in_vain:
        error = IncompleteRunError(f"{TOO_SHORT}; it is not started anew", hint=LONGER)
        say_error(str(error))
        return error.exit_code
    if stopped.asks_for_more and requeue_this():
        say_error("out of time: goes on in a new start", kind="stopped")
    else:
        say_error(f"{stopped}; the same command goes on where it stopped", kind="stopped")
    return stopped.exit_code


def info(
    path: Annotated[Path, typer.Argument(help="A slide, or layers.", metavar="SLIDE|OUT.ome.zarr")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    mpp_source: Annotated[
        float | None, typer.Option(help="Micrometres per pixel, where the file is silent.")
    ] = None,
) -> None:
    """Say what a slide or the output of a run holds."""
    from wsi_pgdips.checks.info import describe, inspect

    facts = inspect(path, mpp_source=mpp_source)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_rows(describe(facts))
