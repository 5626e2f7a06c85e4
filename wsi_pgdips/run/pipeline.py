"""The main job: a slide goes in, finished concentration layers come out.

    calibrate -> fit (blocks) -> blend -> render (blocks) -> finalize

Each stage reads and writes files of the ledger, so a run that is killed at any instant goes on from
there when the same command is given again, to the same bytes.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.errors import OutputError, WsiPgdipsError
from wsi_pgdips.records import StainSet, TileSource
from wsi_pgdips.run.ledger import Block, Ledger, digest, identity
from wsi_pgdips.run.progress import Progress, QuietProgress
from wsi_pgdips.run.summary import RunSummary


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

    def execute(self) -> RunSummary:
        from wsi_pgdips.layers import provenance
        from wsi_pgdips.optics.stains import load_stains
        from wsi_pgdips.run import pool as pools
        from wsi_pgdips.run.context import SlideJob
        from wsi_pgdips.run.finishing import read_timings
        from wsi_pgdips.run.worker import quiet_threads

        science, how = self.settings.science, self.settings.execution
        device = pools.choose_device(how.device)
        quiet_threads()
        job = SlideJob(
            str(self.slide.absolute()),
            str(self.output.absolute()),
            science,
            device,
            how.threads or 1,
            8 if how.batch == "auto" else how.batch,
        )
        stains = load_stains(science.stains)
        source = job.open_source()
        record = identity(source.meta, science, stains)
        self._claim_output(record)
        if provenance.is_done(self.output):
            return self._summary(provenance.read_run_record(self.output), done=True)
        self.wall = read_timings(self.ledger)
        if not (self.ledger.plan.exists() and provenance.is_created(self.output)):
            self._prepare(source, stains, record)
        pool, workers, threads = pools.make_pool(device, how.workers)
        try:
            job = replace(job, threads=how.threads or threads)
            return self._stages(job, pool, workers)
        finally:
            pool.close()

    def _prepare(self, source: TileSource, stains: StainSet, record: dict[str, Any]) -> None:
        """Find tissue and glass once, create the empty layers, keep the plan."""
        from wsi_pgdips.layers import provenance, store
        from wsi_pgdips.layers.schema import OWN_KEY
        from wsi_pgdips.run.context import make_context, save_plan

        science = self.settings.science
        with self._timed("prepare"):
            self.progress.stage("tissue", 1, "slide")
            context = make_context(source, stains, science)
            self.progress.advance()
            _make_folder(self.output)
            store.create_layers(
                self.output,
                source.grid,
                stains,
                name=source.meta.name,
                store_residual=science.store_residual,
            )
            own = {"identity": digest(record), "settings": record["settings"]}
            provenance.write_metadata(self.output, {OWN_KEY: own})
            self.ledger.make_folders()
            save_plan(context, self.ledger.plan)

    def _claim_output(self, record: dict[str, Any]) -> None:
        from wsi_pgdips.layers import provenance
        from wsi_pgdips.layers.schema import OWN_KEY

        if not self.output.exists():
            return
        attributes = provenance.read_attributes(self.output) if self.output.is_dir() else {}
        own = attributes.get(OWN_KEY)
        how = self.settings.execution
        if own is None:
            if self.output.is_dir() and not any(self.output.iterdir()):
                return
            raise OutputError(
                "something that is not ours is in the way of the output",
                expected="a free path, or layers made by wsi-pgdips",
                found="a folder with other content" if self.output.is_dir() else "a file",
                where=self.output,
                hint="give another output path, or move it away",
            )
        if how.overwrite:
            shutil.rmtree(self.output)
            return
        if not how.resume:
            raise OutputError(
                "the output exists",
                where=self.output,
                hint="give --overwrite to replace it, or leave --no-resume out to go on with it",
            )
        if own.get("identity") not in (None, digest(record)):
            raise OutputError(
                "the output belongs to another run",
                expected="layers of the same slide and scientific settings",
                found=_difference(own, record),
                where=self.output,
                hint="give --overwrite to replace it, or another output path",
            )

    def _stages(self, job: Any, pool: Any, workers: int) -> RunSummary:
        import torch

        from wsi_pgdips.layers import provenance
        from wsi_pgdips.run import blending, finishing, fitting, worker

        ledger, context = self.ledger, job.context()
        record = provenance.read_run_record(self.output)
        blocks = [(p.by, p.bx) for p in context.plans]
        if record:  # an earlier run ended with failures: give those another chance
            again = [tuple(b) for b in record.get("blocks_to_redo", [])]
            ledger.forget_after_fit([b for b in blocks if b in again])
        if not ledger.prior.exists():
            with self._timed("calibrate"):
                self.progress.stage("calibrate", 1, "slide")
                prior = fitting.calibrate(context, torch.device(job.device), job.threads)
                fitting.save_prior(prior, ledger.prior)
                self.progress.advance()
        prior = fitting.load_prior(ledger.prior)
        with self._timed("fit"):
            fit_reports, fit_errors = self._over_blocks("fit", pool, worker.fit, job, blocks)
        fitted = [b for b in blocks if b in fit_reports]
        if not fitted:
            raise next(iter(fit_errors.values()))
        with self._timed("blend"):
            fits = [fitting.load_fit(ledger.fit(b)) for b in fitted]
            if not ledger.fields.exists():
                blending.save_fields(*blending.blend(context, prior, fits), ledger.fields)
            fields, slide_matrix = blending.load_fields(ledger.fields)
        with self._timed("render"):
            reports, errors = self._over_blocks("render", pool, worker.render, job, fitted)
        rendered = [b for b in blocks if b in reports]
        with self._timed("finalize"):
            self.progress.stage("finalize", 1, "slide")
            figures = finishing.write_products(
                context, prior, fits, fields, slide_matrix, rendered, ledger
            )
            self.progress.advance()
        errors = {**fit_errors, **errors}
        failed_tiles = sum(
            max(fit_reports[b].failed_tiles, reports[b].failed_tiles if b in reports else 0)
            for b in fitted
        )
        redo = sorted(
            {b for b, r in {**fit_reports, **reports}.items() if r.failed_tiles} | set(errors)
        )
        outcome = {
            **figures,
            "wall_s": {k: round(v, 3) for k, v in self.wall.items()},
            "peak_rss_mb": round(finishing.peak_rss_mb(), 1),
            "flags": list(prior.flags),
            "failed_tiles": failed_tiles,
            "failed_blocks": len(errors),
            "failures": {f"{b[0]},{b[1]}": f"{type(e).__name__}: {e}" for b, e in errors.items()},
            "blocks_to_redo": redo,
            "device": job.device,
            "device_name": _device_name(job.device),
            "workers": workers,
            "threads": job.threads,
        }
        if redo:
            provenance.write_json(
                self.output / provenance.RUN_RECORD, {**outcome, "status": "incomplete"}
            )
        else:
            provenance.mark_done(self.output, outcome)
            ledger.remove()
        return self._summary(outcome, done=False)

    def _over_blocks(
        self, stage: str, pool: Any, work: Any, job: Any, blocks: Sequence[Block]
    ) -> tuple[dict[Block, Any], dict[Block, Exception]]:
        context = job.context()
        total = sum(len(p.render) for p in context.plans if (p.by, p.bx) in set(blocks))
        self.progress.stage(stage, total, "tiles")
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

        start = time.monotonic()
        try:
            yield
        finally:
            self.wall[stage] = self.wall.get(stage, 0.0) + time.monotonic() - start
            if self.ledger.work.is_dir():
                write_json(self.ledger.timings, self.wall)

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
        )


def _difference(own: dict[str, Any], record: dict[str, Any]) -> str:
    """The settings that differ, or the slide."""
    before, now = own.get("settings", {}), record["settings"]
    names = [k for k in now if before.get(k) != now[k]]
    shown = [f"{k} = {before.get(k)!r}, now {now[k]!r}" for k in names if k != "stains"]
    shown += ["another stain set"] if "stains" in names else []
    return "; ".join(shown) or "another slide"


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "the output folder cannot be made",
            found=error.strerror,
            where=output,
            hint="give a path in a folder you may write to",
        ) from None


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


__all__ = ["RunSummary", "WsiPgdipsError", "deconvolve_slide"]
