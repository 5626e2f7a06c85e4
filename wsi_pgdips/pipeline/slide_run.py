"""The stages of one slide, each a function of the files of those before it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pgdips.errors import IncompleteRunError
from wsi_pgdips.layers import provenance
from wsi_pgdips.machine import usable_cpus
from wsi_pgdips.pipeline import block
from wsi_pgdips.pipeline.block import SlideJob
from wsi_pgdips.pipeline.kept_pixels import KeptPixels
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.pipeline.output import write_products
from wsi_pgdips.pipeline.part import STAGES, Part, Stage
from wsi_pgdips.pipeline.record import (
    RunSummary,
    TileFaults,
    UsageLog,
    used_by_all,
    used_here,
)
from wsi_pgdips.pipeline.retry import is_passing
from wsi_pgdips.pipeline.stage_files import FitFiles, load_faults, load_fit, save_fields
from wsi_pgdips.progress import Progress
from wsi_pgdips.solver.prior import trains
from wsi_pgdips.stages.blend import blend
from wsi_pgdips.stages.context import UNREADABLE, Context
from wsi_pgdips.stages.fit import UNREAD

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.pool import Pool

AGAIN_S = 5.0  # wait before blocks are tried again after a fault that may pass


@dataclass
class SlideRun:
    """A slide that is planned, and who works on it in this process.

    Attributes:
        job: what workers are told. pool: of ``workers`` workers. part: that this process does.
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
        """Threads of this process while its workers wait; all of its CPUs if they run elsewhere."""
        return usable_cpus() if self.pool.remote else self.workers * self.job.threads

    @property
    def blocks(self) -> list[Block]:
        return [(p.by, p.bx) for p in self.context.plans]

    def go(self) -> RunSummary | None:
        """Do the stages of the part; return a summary where the slide has come to its end."""
        for name in STAGES[:-1]:
            if self.part.does(name):
                getattr(self, name)()
        return self.finalize() if self.part.does("finalize") else None

    def calibrate(self) -> None:
        """Estimate the slide's prior; what failed in an earlier run gets another chance."""
        self._try_again()
        context = self.context
        if self.ledger.prior.exists():
            return
        with self._timed("calibrate"):
            network = trains(context.preset, context.stains.n)
            total = context.settings.calibration_steps if network else 1
            self.progress.stage("calibrate", total, "steps" if network else "slide")
            if self.pool.remote:  # on the device that does the rest
                self.pool.once(block.calibrate, self.job, self.job.threads)
            else:
                block.calibrate(self.job, self.threads, self.progress.advance)
            if not network:
                self.progress.advance()

    def fit(self) -> None:
        """Fit the tiles of each block."""
        self._need("calibrate", self.ledger.prior.exists)
        with self._timed("fit"):
            self._over_blocks("fit", block.fit, self.blocks)

    def blend(self) -> None:
        """Blend the fits of all blocks that could be fitted into fields over the slide."""
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
                fits = FitFiles([ledger.fit(b) for b in fitted])
                found = blend(self.context, self.job.prior(), fits, self.threads)
                save_fields(*found, ledger.fields)

    def render(self) -> None:
        """Render each fitted block into the layers."""
        self._need_fits()
        self._need("blend", self.ledger.fields.exists)
        with self._timed("render"):
            self._over_blocks("render", block.render, self._fitted())

    def finalize(self) -> RunSummary:
        """Write everything that is made from finished blocks, and the done marker."""
        self._need_fits()
        self._need("render", self._is_rendered)
        context, ledger, prior = self.context, self.ledger, self.job.prior()
        fitted = self._fitted()
        rendered = [b for b in fitted if ledger.render(b).exists()]
        with self._timed("finalize"):
            self.progress.stage("finalize", 1, "slide")
            fits = [load_fit(ledger.fit(b), statistics=False) for b in fitted]
            pixels = KeptPixels.of_run(context, ledger)
            figures = write_products(
                context, prior, fits, *self.job.fields(), rendered, ledger, pixels
            )
            self.progress.advance()
        lost = {b: block.lost_in_fit(fit) for b, fit in zip(fitted, fits, strict=True)}
        for b in rendered:
            lost[b] |= block.lost_in_render(ledger, b)
        failures = ledger.failures()
        redo = sorted({b for b, tiles in lost.items() if tiles} | failures.keys())
        incomplete = bool(redo) or UNREADABLE in prior.flags or UNREAD in prior.flags
        faults = self._faults([*map(ledger.fit, fitted), *map(ledger.render, rendered)])
        used = self.log.total()
        device, device_name = self.pool.once(block.device_of, self.job)
        if "cuda" not in device:
            del used["peak_vram_mb"]
        record = {
            **figures,
            **used,
            "flags": list(prior.flags),
            "failed_tiles": len(frozenset().union(*lost.values())),
            "tile_failures": faults.kinds,
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
        """Give what failed in an earlier run another chance; drop what was made without it."""
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

    def _is_fitted(self) -> bool:
        """True if each block is fitted or given up."""
        fit, failed = self.ledger.fit, self.ledger.failed
        return all(fit(b).exists() or failed("fit", b).exists() for b in self.blocks)

    def _is_rendered(self) -> bool:
        """True if each fitted block is rendered or given up."""
        ledger = self.ledger
        return all(
            ledger.failed("render", b).exists() or block.is_rendered(ledger, b)
            for b in self._fitted()
        )

    def _need_fits(self) -> None:
        """Check the fits, also after blend: one whose file is gone would be missing unnoticed."""
        self._need("fit", self._is_fitted)

    def _need(self, stage: Stage, done: Callable[[], bool]) -> None:
        """Check that a stage before is done.

        Raises:
            NotReadyError: it is not.
        """
        self.part.need(stage, done, self.ledger.output)

    def _over_blocks(self, stage: Stage, work: Any, blocks: Sequence[Block]) -> None:
        """Do a stage for this part's share of some blocks; note what failed."""
        tiles = {(p.by, p.bx): len(p.render) for p in self.context.plans}
        chosen, ledger = set(blocks), self.ledger
        own = [
            b
            for b in self.part.blocks(tiles)
            if b in chosen and not ledger.failed(stage, b).exists()
        ]
        self.progress.stage(stage, sum(tiles[b] for b in own), "tiles")
        left = own
        for wait in (AGAIN_S, None):
            again = []
            for b, outcome in self.pool.map(work, self.job, left, self.progress.advance):
                if not isinstance(outcome, Exception):
                    continue
                if wait is not None and is_passing(outcome):
                    again.append(b)
                else:
                    ledger.give_up(stage, b, f"{type(outcome).__name__}: {outcome}")
                    self.progress.note(f"{stage}: block {b} failed: {outcome!r}")
            if not again or wait is None:
                break
            self.progress.note(f"{stage}: {len(again)} blocks are tried again in {wait:g} s")
            time.sleep(wait)
            left = again
        files = map(ledger.fit if stage == "fit" else ledger.render, own)
        for line in self._faults(f for f in files if f.exists()).lines():
            self.progress.note(line)

    def _faults(self, files: Iterable[Path]) -> TileFaults:
        """The faults of tiles that blocks have left in their files."""
        faults = TileFaults()
        for file in files:
            faults.merge(load_faults(file).kinds)
        return faults

    def _timed(self, stage: Stage) -> AbstractContextManager[None]:
        return self.log.timed(stage, lambda: used_by_all((used_here(), self.pool.used())))
