"""The stages of one slide, each a function of the files of those before it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_pgdips.errors import IncompleteRunError
from wsi_pgdips.layers import provenance
from wsi_pgdips.machine import usable_cpus
from wsi_pgdips.pipeline import block as worker
from wsi_pgdips.pipeline import fit_files
from wsi_pgdips.pipeline.kept_pixels import KeptPixels
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.pipeline.part import Part, Stage
from wsi_pgdips.pipeline.record import RunSummary, Usage, UsageLog, used_by_all, used_here
from wsi_pgdips.pipeline.retry import is_passing
from wsi_pgdips.progress import Progress
from wsi_pgdips.solver.prior import trains
from wsi_pgdips.stages import blend as blending
from wsi_pgdips.stages import finish as finishing
from wsi_pgdips.stages.context import UNREADABLE, Context, SlideJob
from wsi_pgdips.stages.fit import UNREAD

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.pool import Pool

AGAIN_S = 5.0  # after a fault of a disk that may have passed by then


@dataclass
class SlideRun:
    """A slide that is planned, and who works on it in this process.

    Attributes:
        job: what workers are handed. workers: of the pool. part: that this process does.
    """

    job: SlideJob
    pool: Pool
    workers: int
    part: Part
    progress: Progress
    log: UsageLog

    @property
    def context(self) -> Context:
        return self.job.context()

    @property
    def ledger(self) -> Ledger:
        return self.job.ledger

    @property
    def threads(self) -> int:
        """Of this process, while the workers wait; those of other machines say nothing of it."""
        return usable_cpus() if self.pool.remote else self.workers * self.job.threads

    @property
    def blocks(self) -> list[Block]:
        return [(p.by, p.bx) for p in self.context.plans]

    def go(self) -> RunSummary | None:
        """Do what the part says; a summary where the slide has come to its end."""
        summary = None
        stages: dict[Stage, Callable[[], RunSummary | None]] = {
            "calibrate": self.calibrate,
            "fit": self.fit,
            "blend": self.blend,
            "render": self.render,
            "finalize": self.finalize,
        }
        for name, stage in stages.items():
            if self.part.does(name):
                summary = stage()
        return summary

    def calibrate(self) -> None:
        """The slide's prior; what failed before gets another chance."""
        self._try_again()
        ledger, context = self.ledger, self.context
        if ledger.prior.exists():
            return
        with self._timed("calibrate"):
            network = trains(context.preset, context.stains.n)
            total = context.settings.calibration_steps if network else 1
            self.progress.stage("calibrate", total, "steps" if network else "slide")
            if self.pool.remote:  # on the device that does the rest
                self.pool.once(worker.calibrate, self.job, self.job.threads)
            else:
                worker.calibrate(self.job, self.threads, self.progress.advance)
            if not network:
                self.progress.advance()

    def fit(self) -> None:
        """The parameters of the tiles of each block."""
        self._need("calibrate", self.ledger.prior.exists)
        with self._timed("fit"):
            self._over_blocks("fit", worker.fit, self.blocks)

    def blend(self) -> None:
        """Fields over the slide, of every block that could be fitted."""
        self._need_fits()
        with self._timed("blend"):
            ledger, fitted = self.ledger, self._fitted()
            if not fitted:
                raise IncompleteRunError(
                    "not one block of the slide could be fitted",
                    found=next(iter(ledger.failures().values())),
                    where=self.job.name,
                    hint="the same command tries again",
                )
            if not ledger.fields.exists():
                prior = fit_files.load_prior(ledger.prior)
                files = fit_files.FitFiles([ledger.fit(b) for b in fitted])
                found = blending.blend(self.context, prior, files, self.threads)
                blending.save_fields(*found, ledger.fields)

    def render(self) -> None:
        """The layers of each fitted block."""
        self._need_fits()
        self._need("blend", self.ledger.fields.exists)
        with self._timed("render"):
            self._over_blocks("render", worker.render, self._fitted())

    def finalize(self) -> RunSummary:
        """Everything that is made from finished blocks, and the done marker."""
        self._need_fits()
        self._need("render", lambda: not self._unrendered())
        context, ledger = self.context, self.ledger
        fitted = self._fitted()
        rendered = [b for b in fitted if ledger.render(b).exists()]
        with self._timed("finalize"):
            self.progress.stage("finalize", 1, "slide")
            prior = fit_files.load_prior(ledger.prior)
            fits = [fit_files.load_fit(ledger.fit(b), statistics=False) for b in fitted]
            figures = finishing.write_products(
                context,
                prior,
                fits,
                *blending.load_fields(ledger.fields),
                rendered,
                ledger,
                KeptPixels.of_run(context, ledger),
            )
            self.progress.advance()
        lost = {b: worker.lost_in_fit(fit) for b, fit in zip(fitted, fits, strict=True)}
        for block in rendered:
            lost[block] |= worker.lost_in_render(ledger, block)
        failures = ledger.failures()
        redo = sorted({b for b, tiles in lost.items() if tiles} | failures.keys())
        incomplete = bool(redo) or UNREADABLE in prior.flags or UNREAD in prior.flags
        used = self.log.total()
        device, device_name = self.pool.once(worker.device_of, self.job)
        if "cuda" not in device:
            del used["peak_vram_mb"]
        record = {
            **figures,
            **used,
            "flags": list(prior.flags),
            "failed_tiles": len(frozenset().union(*lost.values())),
            "failed_blocks": len(failures),
            "failures": {f"{by},{bx}": reason for (by, bx), reason in failures.items()},
            "blocks_to_redo": redo,
            "status": "incomplete" if incomplete else provenance.DONE,
            "device": device,
            "device_name": device_name,
            "workers": self.workers,
            "threads": self.job.threads,
            "job": os.environ.get("SLURM_JOB_ID", ""),
        }
        if incomplete:
            provenance.write_json(ledger.output / provenance.RUN_RECORD, record)
        else:
            provenance.mark_done(ledger.output, record)
            ledger.remove()
        return RunSummary.of_record(ledger.output, record)

    def _try_again(self) -> None:
        """Give what failed before another chance; what was made without it is dropped."""
        ledger = self.ledger
        path = ledger.output / provenance.RUN_RECORD
        record, failures = provenance.read_run_record(ledger.output), ledger.failures()
        if UNREAD in record.get("flags", ()):
            ledger.forget_after_plan()
        elif record or failures:
            again = {tuple(b) for b in record.get("blocks_to_redo", [])} | failures.keys()
            ledger.forget_after_fit([b for b in self.blocks if b in again])
        # last: a run that is killed before forgets again, one that is killed later goes on
        ledger.forget_failures()
        path.unlink(missing_ok=True)

    def _fitted(self) -> list[Block]:
        return [b for b in self.blocks if self.ledger.fit(b).exists()]

    def _unfitted(self) -> list[Block]:
        """Blocks that are neither fitted nor given up."""
        ledger = self.ledger
        return [
            b
            for b in self.blocks
            if not ledger.fit(b).exists() and not ledger.failed("fit", b).exists()
        ]

    def _unrendered(self) -> list[Block]:
        """Fitted blocks that are neither rendered nor given up."""
        ledger = self.ledger
        return [
            b
            for b in self._fitted()
            if not ledger.failed("render", b).exists() and not worker.is_rendered(ledger, b)
        ]

    def _need_fits(self) -> None:
        """Also after blend: a fit whose file is gone would be missing from the slide unseen."""
        self._need("fit", lambda: not self._unfitted())

    def _need(self, stage: Stage, done: Callable[[], bool]) -> None:
        """
        Raises:
            NotReadyError: a stage before is not done.
        """
        self.part.need(stage, done, self.ledger.output)

    def _over_blocks(self, stage: Stage, work: Any, blocks: Sequence[Block]) -> None:
        tiles = {(p.by, p.bx): len(p.render) for p in self.context.plans}
        chosen, ledger = set(blocks), self.ledger
        own = [
            b
            for b in self.part.blocks(tiles)
            if b in chosen and not ledger.failed(stage, b).exists()
        ]
        self.progress.stage(stage, sum(tiles[b] for b in own), "tiles")
        for wait in (AGAIN_S, None):
            again = []
            for block, outcome in self.pool.map(work, self.job, own, self.progress.advance):
                if not isinstance(outcome, Exception):
                    continue
                if wait is not None and is_passing(outcome):
                    again.append(block)
                else:
                    ledger.give_up(stage, block, f"{type(outcome).__name__}: {outcome}")
                    self.progress.note(f"{stage}: block {block} failed: {outcome!r}")
            if not again or wait is None:
                return
            self.progress.note(f"{stage}: {len(again)} blocks are tried again in {wait:g} s")
            time.sleep(wait)
            own = again

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start, before = time.monotonic(), self._used().cpu_s
        yield
        # not where the stage broke off: nothing is written then
        used = self._used()
        # a worker that died took what it had used with it
        cpu_s = max(used.cpu_s - before, 0.0)
        self.log.add(stage, time.monotonic() - start, used, cpu_s=cpu_s)

    def _used(self) -> Usage:
        """By this process and its workers."""
        return used_by_all((used_here(), self.pool.used()))
