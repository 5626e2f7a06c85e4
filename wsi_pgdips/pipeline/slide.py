"""The main job: a slide goes in, finished concentration layers come out.

    calibrate -> fit (blocks) -> blend -> render (blocks) -> finalize

Each stage reads and writes files of the ledger, so a run that is killed at any instant goes on from
there when the same command is given again, to the same bytes. One process may do all of them, or
several a stage or some of its blocks each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.disk import check_room, layers_bytes, size_of
from wsi_pgdips.errors import AnotherRunError, OutputError, SettingsError, WsiPgdipsError
from wsi_pgdips.pipeline.ledger import Ledger, digest, identity
from wsi_pgdips.pipeline.lock import clear_dead, holding
from wsi_pgdips.pipeline.output import claim_output, discard
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.pipeline.record import RunSummary, UsageLog, used_here
from wsi_pgdips.progress import Progress, QuietProgress

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.slide_run import SlideRun
    from wsi_pgdips.records import StainSet
    from wsi_pgdips.slide.source import PyramidSource
    from wsi_pgdips.stages.context import SlideJob

WHOLE = Part()


def deconvolve_slide(
    slide: str | Path,
    output: str | Path,
    *,
    config: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunSummary:
    """Turn a whole slide into OME-Zarr layers of stain concentration.

    Args:
        slide: anything OpenSlide opens, or a TIFF, PNG or JPEG image.
        output: folder to make, usually ``*.ome.zarr``; finished or unfinished layers of the same
            slide and scientific settings are resumed.
        config: TOML of settings, overridden by ``options``.
        progress: where to show progress; quiet by default.
        options: the fields of ``config.ScientificSettings`` and ``config.ExecutionSettings``.

    Returns:
        Summary; ``exit_code`` 3 where some tiles or blocks failed and were left out.

    Raises:
        WsiPgdipsError: bad input or an output that cannot be used; nothing is left half-written
            that a second run would not finish.
    """
    settings = make_settings(options, config)
    begun = _has_begun(Path(output))
    summary = run_part(Path(slide), Path(output), settings, WHOLE, progress, begun=begun)
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
    """One stage of ``deconvolve_slide``, as one of several processes that do the slide together.

    Args:
        stage: of ``parts.STAGES``, in whose order they follow one another.
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
    """Whether an earlier start of this job has replaced what is there, or finished it."""
    from wsi_pgdips.layers.provenance import DONE, read_run_record

    if not is_restarted():
        return False
    try:
        record = read_run_record(output)
    except OutputError:
        return False
    return record.get("status") != DONE or record.get("job") == os.environ.get("SLURM_JOB_ID")


def is_restarted() -> bool:
    """Whether Slurm has started this job anew, with the command it had before."""
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
    """Do a part of what ``deconvolve_slide`` does; the whole goes as the parts one by one.

    Args:
        begun: it may have been begun before with these settings, so that what ``overwrite`` is to
            replace may be replaced by now: it is gone on with, unless it is of another run.

    Returns:
        Summary where the slide came to its end, or had been finished before.

    Raises:
        NotReadyError: the stages before are not done.
        WsiPgdipsError: as ``deconvolve_slide``.
    """
    progress = progress or QuietProgress()
    if begun or not part.does("calibrate"):  # what the first stage has made is gone on with
        go_on = {"overwrite": False, "resume": True}
        execution = settings.execution.model_copy(update=go_on)
        try:
            gone_on = settings.model_copy(update={"execution": execution})
            return _run_part(slide, output, gone_on, part, progress)
        except AnotherRunError:
            if not (part.does("calibrate") and settings.execution.overwrite):
                raise
    return _run_part(slide, output, settings, part, progress)


def _run_part(
    slide: Path, output: Path, settings: Settings, part: Part, progress: Progress
) -> RunSummary | None:
    try:
        with _Opening(slide, output, settings, part, progress).run() as run:
            return _before(output) if run is None else run.go()
    finally:
        progress.close()


def _before(output: Path) -> RunSummary:
    from wsi_pgdips.layers.provenance import read_run_record

    return RunSummary.of_record(output, read_run_record(output), already_done=True)


class _Opening:
    """From a slide's file to a run that is planned, and who works on it."""

    def __init__(
        self, slide: Path, output: Path, settings: Settings, part: Part, progress: Progress
    ) -> None:
        self.slide, self.output, self.settings = slide, output, settings
        self.part, self.progress = part, progress
        self.ledger = Ledger(output)
        self.replaces = False

    @contextmanager
    def run(self) -> Iterator[SlideRun | None]:
        """None where the layers are finished already."""
        from wsi_pgdips import machine
        from wsi_pgdips.machine import quiet_threads
        from wsi_pgdips.optics.stains import load_stains
        from wsi_pgdips.pipeline import pool as pools
        from wsi_pgdips.pipeline.block import forget
        from wsi_pgdips.pipeline.slide_run import SlideRun
        from wsi_pgdips.slide.staging import staged
        from wsi_pgdips.stages.context import AUTO_BATCH, SlideJob

        science, how = self.settings.science, self.settings.execution
        device = machine.device_for(how.device, how.cluster)
        quiet_threads()
        job = SlideJob(
            str(self.slide.absolute()),
            str(self.output.absolute()),
            science,
            device,
            how.threads or 1,
            AUTO_BATCH if how.batch == "auto" else how.batch,
        )
        cache = self._cache_folder()
        stains = load_stains(science.stains)
        source = job.open_source()
        record = identity(source.meta, science, stains)
        with ExitStack() as stack:
            if self._is_done(record):
                clear_dead(self.output)
                yield None
                return
            stack.enter_context(holding(self.output, self.part.name, beside=self.part.beside))
            if self._is_done(record):  # by another, meanwhile
                yield None
                return
            staging = staged(self.slide, cache, self.output, self.progress, self.part.name)
            if (slide := stack.enter_context(staging)) != self.slide:
                source.close()
                job = replace(job, slide=str(slide))
                source = job.open_source()
            log = self._planned(source, stains, record)
            pool, workers, threads = pools.make_pool(
                device,
                how.workers,
                how.threads,
                how.cluster,
                note=self.progress.note,
            )
            stack.callback(forget)
            stack.callback(pool.close)
            job = replace(job, threads=threads, keep_pixels=self._keeps_pixels(job))
            pool.prepare(job)
            yield SlideRun(job, pool, workers, self.part, self.progress, log)

    def _is_done(self, record: dict[str, Any]) -> bool:
        """Whether nothing is left to do.

        Raises:
            OutputError: what is there must not be touched.
        """
        from wsi_pgdips.disk import writing
        from wsi_pgdips.layers import provenance

        with writing(self.output):
            self.replaces = claim_output(self.output, record, self.settings.execution)
        if self.replaces or not provenance.is_done(self.output):
            return False
        self.ledger.remove()  # of a run that was killed on its last step
        return True

    def _cache_folder(self) -> Path | None:
        """Where the slide is staged.

        Raises:
            SettingsError: it lies in the output, which is emptied before it is written.
        """
        cache = self.settings.execution.cache
        if cache is None:
            return None
        folder = Path(cache)
        if folder.resolve().is_relative_to(self.output.resolve()):
            raise SettingsError(
                "the slide cannot be staged in the output",
                expected="a folder on a local disk, outside the output",
                found=cache,
                where="--cache",
            )
        return folder

    def _keeps_pixels(self, job: SlideJob) -> bool:
        from wsi_pgdips.pipeline.kept_pixels import room_for_pixels

        asked = self.settings.execution.keep_pixels
        context = job.context()
        tiles = sum(len(p.fit) for p in context.plans)
        return room_for_pixels(self.output, context.grid, tiles) if asked is None else asked

    def _planned(self, source: PyramidSource, stains: StainSet, record: dict[str, Any]) -> UsageLog:
        """Plan the slide where it is not; what this process has used is counted from then on.

        Raises:
            NotReadyError: there is no plan, and the part does not make one.
        """
        from wsi_pgdips.layers import provenance
        from wsi_pgdips.stages.context import sees_more

        plan = self.ledger.plan

        def is_there() -> bool:
            return plan.exists() and provenance.is_created(self.output)

        folder = self.ledger.work / "usage"
        if not self.part.does("calibrate"):
            self.part.need("calibrate", is_there, self.output)
        elif self.replaces or not is_there() or sees_more(source, plan):
            start, used = time.monotonic(), used_here()
            self._prepare(source, stains, record)
            log = UsageLog(folder, self.part.name)
            after = used_here()
            seconds = time.monotonic() - start
            log.add("prepare", seconds, after, cpu_s=after.cpu_s - used.cpu_s)
            return log
        return UsageLog(folder, self.part.name)

    def _prepare(self, source: PyramidSource, stains: StainSet, record: dict[str, Any]) -> None:
        """Find tissue and glass once, create the empty layers, keep the plan.

        What they take the place of goes when it is known that the slide can be planned.
        """
        from wsi_pgdips.disk import writing
        from wsi_pgdips.layers import provenance, store
        from wsi_pgdips.layers.schema import OWN_KEY
        from wsi_pgdips.stages.context import make_context, save_plan

        science = self.settings.science
        self.progress.stage("tissue", 1, "slide")
        context = make_context(source, stains, science)
        self.progress.advance()
        needed = layers_bytes(context.grid, context.n_tiles, stains.n)
        check_room(self.output, needed - size_of(self.output))
        with writing(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
            discard(self.output)
        store.create_layers(
            self.output,
            source.grid,
            stains,
            name=source.meta.name,
            store_residual=science.store_residual,
        )
        own = {"identity": digest(record), "settings": record["settings"]}
        provenance.write_metadata(self.output, {OWN_KEY: own})
        with writing(self.output):
            self.ledger.make_folders()
        save_plan(context, self.ledger.plan)


__all__ = ["RunSummary", "WsiPgdipsError", "deconvolve_slide", "run_part", "run_stage"]
