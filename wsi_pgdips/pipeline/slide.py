"""The main job: a slide goes in, finished concentration layers come out.

    calibrate -> fit (blocks) -> blend -> render (blocks) -> finalize

Each stage reads and writes files of the ledger. To resume a run that was killed at any instant,
repeat the command; the result is the same bytes. One process may do all stages, or several
processes may do a stage or some of its blocks each.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.errors import AnotherRunError, OutputError, SettingsError
from wsi_pgdips.layers import provenance
from wsi_pgdips.machine import device_for, quiet_machine
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.lock import lock_output, remove_dead_locks
from wsi_pgdips.pipeline.output import claim_output, create_output
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.pipeline.record import RunSummary, UsageLog
from wsi_pgdips.progress import Progress, QuietProgress


def deconvolve_slide(
    slide: str | Path,
    output: str | Path,
    *,
    config: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunSummary:
    """Turn a whole slide into OME-Zarr layers of stain concentration.

    While it runs, the process is as ``machine.quiet_machine`` makes it; afterwards it is as before.

    Args:
        slide: anything OpenSlide opens, or a TIFF, PNG or JPEG image.
        output: folder to make, usually ``*.ome.zarr``; finished or unfinished layers of the same
            slide and scientific settings are resumed.
        config: TOML of settings, overridden by ``options``.
        progress: where to show progress; quiet by default.
        options: the fields of ``config.ScientificSettings`` and ``config.ExecutionSettings``.

    Returns:
        Summary; ``exit_code`` 3 where some tiles or blocks failed and were left out, or, with
        ``strict``, where the verdict is not ``pass``.

    Raises:
        WsiPgdipsError: bad input or an output that cannot be used; a second run finishes whatever
            was left half-written.
    """
    summary = run_stage(slide, output, None, config=config, progress=progress, **options)
    if summary is None:
        raise RuntimeError("a whole run has a summary")
    return summary


def run_stage(
    slide: str | Path,
    output: str | Path,
    stage: str | None,
    share: str | None = None,
    *,
    config: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunSummary | None:
    """Do one stage of ``deconvolve_slide``, as one of several processes that share the slide.

    Args:
        stage: of ``part.STAGES``, in whose order they follow one another; None for all.
        share: ``2/4`` for the second of four processes that share the blocks of a stage.

    Returns:
        Summary of ``finalize``, or of layers that were finished before; None after other stages.

    Raises:
        NotReadyError: the stages before are not done.
        WsiPgdipsError: as ``deconvolve_slide``.
    """
    part, settings = Part.of(stage, share), make_settings(options, config)
    begun = _has_begun(Path(output))
    return run_part(Path(slide), Path(output), settings, part, progress, begun=begun)


def _has_begun(output: Path) -> bool:
    """True if an earlier start of this Slurm job has replaced what was there, or finished it."""
    if not is_restarted():
        return False
    try:
        record = provenance.read_run_record(output)
    except OutputError:
        return False
    job = os.environ.get("SLURM_JOB_ID")
    return record.get("status") != provenance.DONE or record.get("job") == job


def is_restarted() -> bool:
    """Return whether Slurm has started this job again, with the same command."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def run_part(
    slide: Path,
    output: Path,
    settings: Settings,
    part: Part,
    progress: Progress | None = None,
    *,
    begun: bool = False,
) -> RunSummary | None:
    """Do a part of what ``deconvolve_slide`` does, or the whole.

    Args:
        begun: these settings may have been begun before. Then ``overwrite`` does not replace the
            output a second time: it is resumed, unless it belongs to another run.

    Returns:
        Summary where the slide came to its end, or had been finished before.

    Raises:
        NotReadyError: the stages before are not done.
        WsiPgdipsError: as ``deconvolve_slide``.
    """
    # imported before the process is quiet, so that the garbage collector skips what stays
    from wsi_pgdips.pipeline import pool, slide_run  # noqa: F401

    with quiet_machine(), closing(progress or QuietProgress()) as shown:
        if begun or not part.does("calibrate"):  # what the first stage has made is resumed
            resume = {"overwrite": False, "resume": True}
            execution = settings.execution.model_copy(update=resume)
            resumed = settings.model_copy(update={"execution": execution})
            try:
                return _strict(_run(slide, output, resumed, part, shown), settings)
            except AnotherRunError:
                if not (part.does("calibrate") and settings.execution.overwrite):
                    raise
        return _strict(_run(slide, output, settings, part, shown), settings)


def _strict(summary: RunSummary | None, settings: Settings) -> RunSummary | None:
    return summary and replace(summary, strict=settings.execution.strict)


def _run(
    slide: Path, output: Path, settings: Settings, part: Part, progress: Progress
) -> RunSummary | None:
    """Claim the output, plan the slide unless that is done, and do the stages of the part."""
    # they bring torch and zarr
    from wsi_pgdips.optics.stain_files import load_stains
    from wsi_pgdips.pipeline.block import AUTO_BATCH, SlideJob, forget
    from wsi_pgdips.pipeline.kept_pixels import room_for_pixels
    from wsi_pgdips.pipeline.pool import make_pool
    from wsi_pgdips.pipeline.slide_run import SlideRun
    from wsi_pgdips.pipeline.stage_files import load_plan, save_plan, sees_more
    from wsi_pgdips.slide.reader import open_slide
    from wsi_pgdips.slide.staging import staged
    from wsi_pgdips.stages.context import identity, make_context

    science, how, ledger = settings.science, settings.execution, Ledger(output)
    device = device_for(how.device, how.cluster)
    cache = _cache_folder(how.cache, output)
    stains = load_stains(science.stains, science.stain_vectors)
    source = open_slide(slide.absolute(), science)
    own = identity(source.meta, science, stains)
    if claim_output(output, own, how) == "done":
        remove_dead_locks(output)
        return _summary_of_done(output)
    with ExitStack() as stack:
        stack.enter_context(lock_output(output, part))
        claim = claim_output(output, own, how)
        if claim == "done":  # another process has finished it meanwhile
            return _summary_of_done(output)
        copy = stack.enter_context(staged(slide, cache, output, progress, part.name))
        if copy != slide:
            source.close()
            source = open_slide(copy, science)

        def is_planned() -> bool:
            return ledger.plan.exists() and provenance.is_created(output)

        log = UsageLog(ledger.work / "usage", part.name)
        if not part.does("calibrate"):
            part.need("calibrate", is_planned, output)
        elif claim == "replace" or not is_planned() or sees_more(source, ledger.plan):
            with log.timed("prepare"):
                progress.stage("tissue", 1, "slide")
                context = make_context(source, stains, science)
                progress.advance()
                create_output(context, output)
                save_plan(context, ledger.plan)
        pool, workers, threads = make_pool(
            device,
            how.workers,
            how.threads,
            how.cluster,
            note=progress.note,
        )
        stack.callback(forget)
        stack.callback(pool.close)
        keep = how.keep_pixels
        if keep is None:
            context = load_plan(source, stains, science, ledger.plan)
            keep = room_for_pixels(output, context.grid, sum(len(p.fit) for p in context.plans))
        job = SlideJob(
            str(copy.absolute()),
            str(output.absolute()),
            science,
            device,
            threads,
            AUTO_BATCH if how.batch == "auto" else how.batch,
            keep,
        )
        pool.prepare(job)
        return SlideRun(job, pool, workers, part, progress, log).go()


def _summary_of_done(output: Path) -> RunSummary:
    return RunSummary.of_record(output, provenance.read_run_record(output), already_done=True)


def _cache_folder(cache: str | None, output: Path) -> Path | None:
    """The folder to stage the slide in.

    Raises:
        SettingsError: it lies in the output, which is emptied before it is written.
    """
    if cache is not None and Path(cache).resolve().is_relative_to(output.resolve()):
        raise SettingsError(
            "the slide cannot be staged in the output",
            expected="a folder on a local disk, outside the output",
            found=cache,
            where="--cache",
        )
    return None if cache is None else Path(cache)
