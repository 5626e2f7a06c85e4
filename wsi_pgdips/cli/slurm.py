"""The command ``slurm``: a cohort as jobs."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pgdips.cli.cohort import Job, LooksOnly, Manifest, ReferenceOption, Retries
from wsi_pgdips.cli.options import Config, Quiet, with_run_options
from wsi_pgdips.cli.say import print_rows, refuse, say_note

slurm_app = typer.Typer(help="A cohort as jobs of Slurm.", no_args_is_help=True)

_job = partial(typer.Option, rich_help_panel="What each job asks for")
_split = partial(typer.Option, rich_help_panel="How slides become jobs")


@slurm_app.command("submit")
@with_run_options
def slurm_submit(
    manifest: Manifest,
    job: Annotated[Path, typer.Argument(help="Folder to write, seen by all.", metavar="JOBDIR")],
    config: Config = None,
    reference: ReferenceOption = None,
    looks_only: LooksOnly = None,
    retries: Retries = None,
    partition: Annotated[str | None, _job()] = None,
    gpus_per_task: Annotated[int, _job(min=0)] = 0,
    cpus_per_task: Annotated[int, _job(min=1)] = 4,
    time: Annotated[str, _job()] = "04:00:00",
    mem: Annotated[str, _job()] = "16G",
    account: Annotated[str | None, _job()] = None,
    qos: Annotated[str | None, _job()] = None,
    array_limit: Annotated[int | None, _job(help="Tasks of an array at once.", min=1)] = None,
    extra: Annotated[
        list[str] | None,
        _job(help="Any other option of sbatch, as --extra=--constraint=a100; can be repeated."),
    ] = None,
    signal_s: Annotated[
        int,
        _job(
            "--signal-before",
            help="Seconds before the time limit when a job stops and asks to be restarted.",
            min=30,
        ),
    ] = 120,
    setup: Annotated[
        list[str] | None,
        _job(help="Line of shell before the program starts, such as 'module load cuda'."),
    ] = None,
    program: Annotated[
        str | None,
        _job(
            help="Command that starts the program, such as 'apptainer exec FILE.sif wsi-pgdips'. "
            "[dim]default: as this one was started[/dim]"
        ),
    ] = None,
    template: Annotated[
        Path | None,
        _job(
            help="Batch script as jinja2, in place of pipelines/slurm/job.sbatch.j2.",
            metavar="FILE.j2",
        ),
    ] = None,
    split_slide: Annotated[
        bool,
        _split(
            "--split-slide",
            help="Run each stage of every slide as a job of its own, which shares the blocks.",
        ),
    ] = False,
    split_above: Annotated[int, _split(help="Split slides of more blocks than this.")] = 200,
    split_tasks: Annotated[int, _split(help="Tasks that share the blocks.", min=1)] = 4,
    slides_per_task: Annotated[
        int, _split(help="Small slides that one process serves, one by one.", min=1)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the scripts; submit and write nothing.")
    ] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Submit what is not done of a cohort: small slides as arrays, large ones stage by stage."""
    from wsi_pgdips.cohort.folder import CohortOptions
    from wsi_pgdips.cohort.runner import left_of, plan_cohort
    from wsi_pgdips.slurm.script import Resources
    from wsi_pgdips.slurm.submission import Splitting, plan_submission, scripts_of, submit

    own: dict[str, Any] = {"reference": reference, "looks_only": looks_only, "retries": retries}
    asked = CohortOptions.of(config, own, options)
    if asked.settings.get("cluster", "local") != "local":
        refuse("jobs have no workers elsewhere; leave it out, or use cohort run", "--cluster")
    folder, cohort = plan_cohort(manifest, job, asked)
    resources = Resources(
        partition,
        gpus_per_task,
        cpus_per_task,
        time,
        mem,
        account,
        qos,
        array_limit,
        tuple(extra or ()),
        tuple(setup or ()),
        program or f"{shlex.quote(sys.executable)} -m wsi_pgdips",
        signal_s,
        None if template is None else str(template.absolute()),
    )
    splitting = Splitting(split_slide, split_above, split_tasks, slides_per_task)
    if dry_run:
        todo = left_of(folder, cohort, failed_too=False)
        planned = plan_submission(folder, cohort, todo, resources, splitting)
        scripts = scripts_of(folder, planned)
        for one in planned.jobs:
            after = f", after {', '.join(one.after)}" if one.after else ""
            typer.echo(f"### {one.name}.sbatch{after}\n{scripts[one.name]}")
        return
    ids = submit(folder, cohort, resources, splitting, note=say_note)
    if not quiet:
        print_rows(
            [
                ("submitted", ", ".join(ids) or "nothing: every slide is done, or has failed"),
                ("status", f"wsi-pgdips cohort status {shlex.quote(str(job))}"),
            ]
        )


@slurm_app.command("cancel")
def slurm_cancel(job: Job, quiet: Quiet = False) -> None:
    """End the jobs of a cohort; what is done is kept, and `cohort retry` resumes."""
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.slurm.submission import cancel

    folder, _ = JobFolder.opened(job)
    ids = cancel(folder)
    if not quiet:
        print_rows([("cancelled", ", ".join(ids) or "nothing: all jobs have ended")])


@slurm_app.command("task", hidden=True)
def slurm_task(
    job_folder: Job,
    submission: Annotated[str, typer.Option()],
    job: Annotated[str, typer.Option()],
    task: Annotated[int, typer.Option()] = 0,
) -> None:
    """Do the work of a job of `slurm submit`."""
    from wsi_pgdips.cohort.folder import JobFolder
    from wsi_pgdips.progress import make_progress
    from wsi_pgdips.slurm.task import run_task

    folder, _ = JobFolder.opened(job_folder.absolute())
    progress = make_progress(sys.stderr)
    try:
        code = run_task(folder, submission, job, task, progress)
    finally:
        progress.close()
    raise typer.Exit(code)
