"""The command ``cohort``: many slides."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wsi_pgdips.cli.options import Config, Json, Quiet, with_run_options
from wsi_pgdips.cli.say import (
    EXIT_INTERRUPTED,
    print_rows,
    progress_of,
    say_error,
    say_note,
    speak_up,
    stdout,
)

if TYPE_CHECKING:
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.cohort.report import Row

cohort_app = typer.Typer(help="Many slides: run, watch, try again, verify.", no_args_is_help=True)

LOOK_S = 2.0
SHOWN = 40  # rows of a table; of more slides only those that need attention are shown

Job = Annotated[Path, typer.Argument(help="Folder of a cohort.", metavar="JOBDIR")]
Manifest = Annotated[
    Path,
    typer.Argument(
        help="CSV with a column slide, and of output, reference, group, tissue and the settings of "
        "[b]run[/b] what is needed; or a folder of slides.",
        metavar="MANIFEST.csv|DIR",
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        help="Also write each slide in this look; [b]group[/b] is that of its own group.",
        metavar="NAME|FILE|group",
    ),
]
LooksOnly = Annotated[
    bool | None,
    typer.Option(
        "--looks-only", help="Make looks, and copies by them with --reference, but no layers."
    ),
]
Retries = Annotated[
    int | None,
    typer.Option(
        help="New attempts at a slide after a passing fault of a disk. [dim]default: 2[/dim]",
        min=0,
    ),
]


@cohort_app.command("run")
@with_run_options
def cohort_run(
    manifest: Manifest,
    job: Annotated[Path, typer.Argument(help="Folder to write.", metavar="JOBDIR")],
    config: Config = None,
    reference: ReferenceOption = None,
    looks_only: LooksOnly = None,
    retries: Retries = None,
    skip_errors: Annotated[
        bool | None,
        typer.Option(
            "--skip-errors/--no-skip-errors",
            help="Go on with the other slides after one has failed. [dim]default: skip[/dim]",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print warnings.")] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Run every slide of a cohort that is not done; a slide that fails does not stop the others."""
    if verbose:
        speak_up()
    from wsi_pgdips.cohort.folder import CohortOptions
    from wsi_pgdips.cohort.runner import plan_cohort

    own: dict[str, Any] = {"reference": reference, "looks_only": looks_only}
    own |= {"retries": retries, "skip_errors": skip_errors}
    asked = CohortOptions.of(config, own, options)
    folder, cohort = plan_cohort(manifest, job, asked)
    from wsi_pgdips.slurm.submission import refuse_while_queued

    refuse_while_queued(folder)
    _run(folder, quiet, planned=cohort, skip_errors=asked.skip_errors)


def _run(folder: JobFolder, quiet: bool, **asked: Any) -> None:
    """Run a cohort, and print how it ends.

    Args:
        asked: further arguments of ``run_planned``.
    """
    from wsi_pgdips.cohort.report import exit_code
    from wsi_pgdips.cohort.runner import run_planned
    from wsi_pgdips.pipeline.signals import stoppable

    progress = progress_of(quiet)
    try:
        with stoppable():
            rows = run_planned(folder, progress=progress, **asked)
    except KeyboardInterrupt:
        progress.close()
        say_error("interrupted; to resume, repeat the command", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        progress.close()
    if not quiet:
        _print_end(folder, rows)
    raise typer.Exit(exit_code(rows))


@cohort_app.command("status")
def cohort_status(
    job: Job,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update until nobody works on a slide.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show how every slide stands: stage, tiles, rate, time left, failures, verdicts."""
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.cohort.report import REST, exit_code, rows_of, summary_of
    from wsi_pgdips.slurm.submission import queue_of

    folder, cohort = JobFolder.opened(job)

    def read_rows() -> list[Row]:
        return rows_of(folder, cohort, queue_of(folder))

    begun = time.monotonic()
    rows = read_rows()
    pause_s = max(LOOK_S, REST * (time.monotonic() - begun))
    if as_json:
        typer.echo(json.dumps(summary_of(folder, rows), indent=1))
    elif not watch:
        stdout().print(_table(rows))
    else:  # what is no terminal gets the last table alone
        with Live(_table(rows), console=stdout(), refresh_per_second=2) as live:
            while _in_hand(rows):
                time.sleep(pause_s)
                rows = read_rows()
                live.update(_table(rows))
    raise typer.Exit(exit_code(rows))


@cohort_app.command("retry")
def cohort_retry(
    job: Job,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="Also slides that failed, not only interrupted ones."),
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run here, even if the cohort was submitted to Slurm.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Work again on slides that are not done: here, or in Slurm if they were submitted."""
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.slurm.submission import refuse_while_queued, submit_again, was_submitted

    folder, _ = JobFolder.opened(job)
    if was_submitted(folder) and not local:
        jobs = submit_again(folder, failed_too=failed, note=say_note)
        if not quiet:
            left = "" if failed else ", or has failed (--failed tries those again)"
            print_rows([("submitted", ", ".join(jobs) or f"nothing: every slide is done{left}")])
        return
    refuse_while_queued(folder)
    _run(folder, quiet, failed_too=failed)


@cohort_app.command("report")
def cohort_report(job: Job, quiet: Quiet = False) -> None:
    """Write summary.json and failures.csv as the slides stand now."""
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.cohort.report import exit_code, write_report
    from wsi_pgdips.slurm.submission import queue_of

    folder, cohort = JobFolder.opened(job)
    rows = write_report(folder, cohort, queue_of(folder))
    if not quiet:
        _print_end(folder, rows)
    raise typer.Exit(exit_code(rows))


@cohort_app.command("verify")
def cohort_verify(job: Job, quiet: Quiet = False) -> None:
    """Check every finished slide: checksums of its files, missing blocks, the format."""
    from wsi_pgdips.checks.verify import missing_validators
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.cohort.verify import verify_cohort

    folder, cohort = JobFolder.opened(job)
    found = verify_cohort(folder, cohort, progress_of(quiet))
    for name, wrong in found.items():
        for line in wrong:
            say_error(line, kind=name)
    bad = sum(1 for wrong in found.values() if wrong)
    unchecked = missing_validators()
    for name in unchecked:
        say_error(f"not checked by {name}: pip install 'wsi-pgdips[validate]'", kind="format")
    if not quiet:
        print_rows([("verified", f"{len(found)} slides, {bad} with faults")])
    raise typer.Exit(3 if bad or unchecked else 0)


def _in_hand(rows: list[Row]) -> bool:
    """Return whether a process works on slides or will: those that wait may wait in vain."""
    return any(r.standing == "running" or r.queue for r in rows)


def _table(rows: list[Row]) -> RenderableType:
    from wsi_pgdips.cohort.report import count_text, time_left_text, verdict_text

    shown = rows if len(rows) <= SHOWN else [r for r in rows if not _is_plain(r)][:SHOWN]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("slide", "status", "verdict", "stage"):
        table.add_column(name, overflow="fold")
    for row in shown:
        what = row.stage_text or row.reason or _done_text(row)
        style = _STYLES.get(row.standing, "")
        verdict = Text(row.verdict, style=_STYLES.get(row.verdict, ""))
        standing = Text(row.standing, style=style)
        table.add_row(Text(row.entry.name), standing, verdict, Text(what))
    more = [] if len(shown) == len(rows) else [f"{len(rows) - len(shown)} more not shown"]
    words = [count_text(rows), time_left_text(rows), *more]
    lines = [", ".join(w for w in words if w), verdict_text(rows)]
    return Group(table, *(Text(line) for line in lines if line))


_STYLES = {"done": "green", "failed": "red", "incomplete": "red", "interrupted": "yellow"}
_STYLES |= {"pass": "green", "review": "yellow", "fail": "red"}


def _is_plain(row: Row) -> bool:
    return row.standing in ("done", "waiting") and row.verdict not in ("review", "fail")


def _done_text(row: Row) -> str:
    if row.state is None or row.standing != "done":
        return ""
    return "; ".join([f"{row.state.tiles} tiles", *row.state.verdict_reasons[:1]])


def _print_end(folder: JobFolder, rows: list[Row]) -> None:
    from wsi_pgdips.cohort.report import exit_code

    stdout().print(_table(rows))
    print_rows([("summary", str(folder.summary))])
    if exit_code(rows):
        print_rows([("failures", str(folder.failures))])
