"""The main job: a slide goes in, finished concentration layers come out.

    calibrate -> fit (blocks) -> blend -> render (blocks) -> finalize

Each stage reads and writes files of the ledger, so a run that is killed at any instant goes on from
there when the same command is given again, to the same bytes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.errors import IncompleteRunError, SettingsError, WsiPgdipsError
from wsi_pgdips.records import StainSet
from wsi_pgdips.run.claim import claim_output, discard
from wsi_pgdips.run.ledger import Block, Ledger, digest, identity
from wsi_pgdips.run.progress import Progress, QuietProgress
from wsi_pgdips.run.summary import RunSummary
from wsi_pgdips.run.usage import Usage, used_by_all, used_here

if TYPE_CHECKING:
    from wsi_pgdips.run.pool import Pool
    from wsi_pgdips.slide.source import PyramidSource


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
    run = _Run(Path(slide), Path(output), settings, progress or QuietProgress())
    try:
        return run.execute()
    finally:
        run.progress.close()


class _Run:
    def __init__(self, slide: Path, output: Path, settings: Settings, progress: Progress) -> None:
        self.slide, self.output = slide, output
        self.settings, self.progress = settings, progress
        self.ledger = Ledger(output)
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.pool: Pool | None = None

    def execute(self) -> RunSummary:
        from wsi_pgdips.layers import provenance
        from wsi_pgdips.layers.disk import writing
        from wsi_pgdips.optics.stains import load_stains
        from wsi_pgdips.run import pool as pools
        from wsi_pgdips.run.context import AUTO_BATCH, SlideJob, sees_more
        from wsi_pgdips.run.finishing import read_timings
        from wsi_pgdips.run.staging import staged
        from wsi_pgdips.run.worker import forget, quiet_threads

        science, how = self.settings.science, self.settings.execution
        device = pools.choose_device(how.device)
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
        with writing(self.output):
            replaces = claim_output(self.output, record, how)
        if not replaces and provenance.is_done(self.output):
            self.ledger.remove()  # of a run that was killed on its last step
            return self._summary(provenance.read_run_record(self.output), done=True)
        with staged(self.slide, cache, self.output, self.progress) as slide:
            if slide != self.slide:
                source.close()
                job = replace(job, slide=str(slide))
                source = job.open_source()
            planned = self.ledger.plan.exists() and provenance.is_created(self.output)
            if replaces or not planned or sees_more(source, self.ledger.plan):
                self._prepare(source, stains, record)
            else:
                self.wall = read_timings(self.ledger)
            pool, workers, threads = pools.make_pool(device, how.workers, how.threads)
            self.pool = pool
            try:
                keep = self._keeps_pixels(job)
                job = replace(job, threads=threads, keep_pixels=keep)
                return self._stages(job, pool, workers)
            finally:
                pool.close()
                forget()

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

    def _keeps_pixels(self, job: Any) -> bool:
        from wsi_pgdips.run.pixels import room_for_pixels

        asked = self.settings.execution.keep_pixels
        context = job.context()
        tiles = sum(len(p.fit) for p in context.plans)
        return room_for_pixels(self.output, context.grid, tiles) if asked is None else asked

    def _prepare(self, source: PyramidSource, stains: StainSet, record: dict[str, Any]) -> None:
        """Find tissue and glass once, create the empty layers, keep the plan.

        What they take the place of goes when it is known that the slide can be planned.
        """
        from wsi_pgdips.layers import provenance, store
        from wsi_pgdips.layers.disk import writing
        from wsi_pgdips.layers.schema import OWN_KEY
        from wsi_pgdips.run.context import make_context, save_plan

        science = self.settings.science
        with self._timed("prepare"):
            self.progress.stage("tissue", 1, "slide")
            context = make_context(source, stains, science)
            self.progress.advance()
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

    def _stages(self, job: Any, pool: Any, workers: int) -> RunSummary:
        import torch

        from wsi_pgdips.layers import provenance
        from wsi_pgdips.run import blending, finishing, fit_files, fitting, worker
        from wsi_pgdips.run.context import UNREADABLE
        from wsi_pgdips.run.fitting import UNREAD
        from wsi_pgdips.run.pixels import KeptPixels
        from wsi_pgdips.solver.prior import trains

        ledger, context = self.ledger, job.context()
        threads = workers * job.threads  # of this process, while the workers wait
        pool.prepare(job)
        record = provenance.read_run_record(self.output)
        blocks = [(p.by, p.bx) for p in context.plans]
        if record:
            self._try_again(record, blocks)
        if not ledger.prior.exists():
            with self._timed("calibrate"):
                network = trains(context.preset, context.stains.n)
                total = context.settings.calibration_steps if network else 1
                self.progress.stage("calibrate", total, "steps" if network else "slide")
                prior = fitting.calibrate(
                    context, torch.device(job.device), threads, self.progress.advance
                )
                fit_files.save_prior(prior, ledger.prior)
                if not network:
                    self.progress.advance()
        prior = fit_files.load_prior(ledger.prior)
        with self._timed("fit"):
            fit_reports, fit_errors = self._over_blocks("fit", pool, worker.fit, job, blocks)
        fitted = [b for b in blocks if b in fit_reports]
        if not fitted:
            error = next(iter(fit_errors.values()))
            raise IncompleteRunError(
                "not one block of the slide could be fitted",
                found=f"{type(error).__name__}: {error}",
                where=self.slide.name,
                hint="the same command tries again",
            ) from error
        with self._timed("blend"):
            paths = [ledger.fit(b) for b in fitted]
            if not ledger.fields.exists():
                files = fit_files.FitFiles(paths)
                found = blending.blend(context, prior, files, threads)
                blending.save_fields(*found, ledger.fields)
            fits = [fit_files.load_fit(path, statistics=False) for path in paths]
            fields, slide_matrix = blending.load_fields(ledger.fields)
        with self._timed("render"):
            reports, errors = self._over_blocks("render", pool, worker.render, job, fitted)
        rendered = [b for b in blocks if b in reports]
        with self._timed("finalize"):
            self.progress.stage("finalize", 1, "slide")
            figures = finishing.write_products(
                context,
                prior,
                fits,
                fields,
                slide_matrix,
                rendered,
                ledger,
                KeptPixels.of_run(context, ledger),
            )
            self.progress.advance()
        errors = {**fit_errors, **errors}
        every = [*fit_reports.values(), *reports.values()]
        failed = set[tuple[int, int]]().union(*(r.failed for r in every))
        redo = sorted({r.block for r in every if r.failed} | set(errors))
        incomplete = bool(redo) or UNREADABLE in prior.flags or UNREAD in prior.flags
        used = self._used()
        outcome = {
            **figures,
            "wall_s": {k: round(v, 3) for k, v in self.wall.items()},
            "cpu_s": {k: round(v, 3) for k, v in self.cpu.items()},
            "peak_rss_mb": round(used.peak_rss_mb, 1),
            **({"peak_vram_mb": round(used.peak_vram_mb, 1)} if "cuda" in job.device else {}),
            "flags": list(prior.flags),
            "failed_tiles": len(failed),
            "failed_blocks": len(errors),
            "failures": {f"{b[0]},{b[1]}": f"{type(e).__name__}: {e}" for b, e in errors.items()},
            "blocks_to_redo": redo,
            "status": "incomplete" if incomplete else provenance.DONE,
            "device": job.device,
            "device_name": _device_name(job.device),
            "workers": workers,
            "threads": job.threads,
        }
        if incomplete:
            provenance.write_json(self.output / provenance.RUN_RECORD, outcome)
        else:
            provenance.mark_done(self.output, outcome)
            ledger.remove()
        return self._summary(outcome, done=False)

    def _try_again(self, record: dict[str, Any], blocks: Sequence[Block]) -> None:
        """Give what failed in an earlier run another chance; what was made with it is dropped."""
        from wsi_pgdips.layers import provenance
        from wsi_pgdips.run.fitting import UNREAD

        if UNREAD in record.get("flags", ()):
            self.ledger.forget_after_plan()
        else:
            again = {tuple(b) for b in record.get("blocks_to_redo", [])}
            self.ledger.forget_after_fit([b for b in blocks if b in again])
        # last: a run that is killed before forgets again, one that is killed later goes on
        (self.output / provenance.RUN_RECORD).unlink()

    def _over_blocks(
        self, stage: str, pool: Any, work: Any, job: Any, blocks: Sequence[Block]
    ) -> tuple[dict[Block, Any], dict[Block, Exception]]:
        context = job.context()
        tiles = {(p.by, p.bx): len(p.render) for p in context.plans}
        self.progress.stage(stage, sum(tiles[b] for b in blocks), "tiles")
        # the largest first, so that no worker is left with a large one at the end
        blocks = sorted(blocks, key=lambda b: -tiles[b])
        reports: dict[Block, Any] = {}
        errors: dict[Block, Exception] = {}
        for block, outcome in pool.map(work, job, blocks, self.progress.advance):
            if isinstance(outcome, Exception):
                errors[block] = outcome
                self.progress.note(f"{stage}: block {block} failed: {outcome!r}")
            else:
                reports[block] = outcome
        return reports, errors

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        from wsi_pgdips.layers.provenance import write_json

        start, busy = time.monotonic(), self._used().cpu_s
        yield
        # not where the stage broke off: nothing is written then
        self.wall[stage] = self.wall.get(stage, 0.0) + time.monotonic() - start
        # a worker that died took what it had used with it
        self.cpu[stage] = self.cpu.get(stage, 0.0) + max(self._used().cpu_s - busy, 0.0)
        write_json(self.ledger.timings, self.wall)

    def _used(self) -> Usage:
        """By this process and its workers."""
        return used_by_all((used_here(), *([self.pool.used()] if self.pool else [])))

    def _summary(self, record: dict[str, Any], *, done: bool) -> RunSummary:
        return RunSummary(
            path=self.output,
            tiles=record.get("tiles", 0),
            fitted=record.get("tiles_fitted", 0),
            inherited=record.get("tiles_inherited", 0),
            failed_tiles=record.get("failed_tiles", 0),
            failed_blocks=record.get("failed_blocks", 0),
            flags=tuple(record.get("flags", ())),
            seam_step_od=record.get("seam_step_od", {}),
            wall_s=record.get("wall_s", {}),
            already_done=done,
            incomplete=record.get("status") == "incomplete",
        )


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


__all__ = ["RunSummary", "WsiPgdipsError", "deconvolve_slide"]
