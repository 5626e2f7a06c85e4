"""What a run of a slide would take: planned as a run plans it, and measured on a few of its tiles.

Tiles and blocks are those of the run. Time, memory and disk are what the stages' own functions take
for a sample, in a temporary folder, scaled to the whole.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.pipeline.clock import Seconds, StepClock, clock_now, seconds_of
from wsi_pgdips.pipeline.crew import Crew
from wsi_pgdips.pipeline.sample import (
    GLASS_SHARE,
    LEAST_RUN,
    StandIns,
    TileIndex,
    block_area,
    block_keys,
    pixel_inside,
    rich_tiles,
    rounds_of,
    sample_tiles,
    spread_fits,
    tiles_to_fit,
    tissue_mass,
)

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.block import SlideJob
    from wsi_pgdips.pipeline.sizes import Sizes
    from wsi_pgdips.records import BlockFit, ByteArray, SlidePrior
    from wsi_pgdips.slide.source import PyramidSource
    from wsi_pgdips.stages.context import Context
    from wsi_pgdips.stages.render import RenderedBlock
    from wsi_pgdips.tiles.blocks import BlockPlan

STAGES = ("prepare", "calibrate", "fit", "blend", "render", "finalize")
NETWORK_STEPS, TILE_STEPS = 40, 4  # that are taken; the others take as long


@dataclass(frozen=True)
class Estimate:
    """What a run would take on this machine, as busy as it is now.

    Attributes:
        slide: its name. preset, device: of the run. workers: its processes. threads: of each.
        tiles: that are rendered. tiles_to_fit: with enough tissue to be fitted on their own.
        blocks: that hold them.
        wall_s: seconds of each of ``STAGES``, as in a run's record: without the start of the
            program and of worker processes.
        peak_rss_mb: resident memory of the largest process, MiB, as in a run's record.
        peak_vram_mb: MiB that PyTorch holds on the GPU, 0 on a CPU.
        disk_bytes: of the finished layers.
        peak_disk_bytes: of the output when it is largest, at the end of the run: the layers, what
            stages hand on, and the decoded pixels if they are kept (as on a disk with room).
    """

    slide: str
    preset: str
    device: str
    workers: int
    threads: int
    tiles: int
    tiles_to_fit: int
    blocks: int
    wall_s: dict[str, float]
    peak_rss_mb: float
    peak_vram_mb: float
    disk_bytes: int
    peak_disk_bytes: int

    @property
    def total_s(self) -> float:
        """Seconds of all stages."""
        return sum(self.wall_s.values())


def estimate_slide(slide: str | Path, *, config: Path | None = None, **options: Any) -> Estimate:
    """Predict what ``deconvolve_slide`` with the same arguments would take.

    In a process that has done other things, memory is at least what those took, and imports that
    are done already are missing in ``prepare``. Of ``paper`` the networks are timed; its layers are
    taken to be as large as those of ``fast``.

    Args:
        slide: anything a run takes. config: TOML of settings, overridden by ``options``.
        options: the fields of ``config.ScientificSettings`` and ``config.ExecutionSettings``; those
            on the output have no meaning here.

    Raises:
        WsiPgdipsError: bad input, as in a run.
    """
    settings = make_settings(options, config)
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-estimate-") as folder:
        return _Rehearsal(Path(slide), Path(folder) / "layers", settings).estimate()


class _Rehearsal:
    """A run of a few tiles by the clock. ``sampled`` is the slide with these alone planned."""

    context: Context
    sampled: Context
    prior: SlidePrior

    def __init__(self, slide: Path, output: Path, settings: Settings) -> None:
        from wsi_pgdips.machine import quiet_threads
        from wsi_pgdips.pipeline.block import AUTO_BATCH, SlideJob

        self.crew = crew = Crew.of(settings.execution)
        quiet_threads()
        self.output, self.science = output, settings.science
        # what the networks of paper take is timed apart
        rest = {"preset": "fast"} if self.science.preset == "paper" else {}
        self.job: SlideJob = SlideJob(
            str(slide.absolute()),
            str(output),
            self.science.model_copy(update=rest),
            crew.device,
            crew.threads,
            AUTO_BATCH if settings.execution.batch == "auto" else settings.execution.batch,
            settings.execution.keep_pixels is not False,
        )
        self.ledger = self.job.ledger
        self.wall: dict[str, float] = {}

    def estimate(self) -> Estimate:
        from wsi_pgdips.pipeline.block import forget
        from wsi_pgdips.pipeline.record import used_here

        with contextlib.closing(self.job.open_source()) as source:
            try:
                self._prepare(source)
                self._calibrate()
                self._plan_sample()
                fit = self._fit()
                self._render_from(fit)
            finally:
                forget()
            sizes = self._sizes()
            disk, peak_disk = sizes.disk()
        return Estimate(
            slide=source.meta.name,
            preset=self.science.preset,
            device=self.crew.device,
            workers=self.crew.workers,
            threads=self.crew.threads,
            tiles=self.context.n_tiles,
            tiles_to_fit=tiles_to_fit(self.context),
            blocks=len(self.context.plans),
            wall_s={stage: round(float(self.wall[stage]), 3) for stage in STAGES},
            peak_rss_mb=round(used_here().peak_rss_mb + sizes.unseen_mb(disk), 1),
            peak_vram_mb=round(sizes.vram_mb(), 1),
            disk_bytes=round(disk),
            peak_disk_bytes=round(peak_disk),
        )

    def _prepare(self, source: PyramidSource) -> None:
        from wsi_pgdips.layers import store
        from wsi_pgdips.optics.stains import load_stains
        from wsi_pgdips.pipeline.stage_files import save_plan
        from wsi_pgdips.stages.context import make_context

        science = self.job.settings
        stains = load_stains(science.stains)
        with self._timed("prepare"):
            self.context = make_context(source, stains, science)
            store.create_layers(
                self.output,
                source.grid,
                stains,
                name=source.meta.name,
                store_residual=science.store_residual,
            )
            self.ledger.make_folders()
            save_plan(self.context, self.ledger.plan)

    def _calibrate(self) -> None:
        import torch

        from wsi_pgdips.pipeline import stage_files
        from wsi_pgdips.stages import fit as fitting

        asked = self.science.calibration_steps
        steps = min(asked, NETWORK_STEPS)
        few = self.context.settings.model_copy(update={"calibration_steps": steps})
        context, device = replace(self.context, settings=few), torch.device(self.crew.device)
        with self._timed("calibrate"), StepClock(self.crew.device) as clock:
            self.prior = fitting.calibrate(context, device, self.crew.all_threads, clock.note)
            stage_files.save_prior(self.prior, self.ledger.prior)
        self.wall["calibrate"] += (asked - steps) * clock.seconds()

    def _plan_sample(self) -> None:
        from wsi_pgdips.pipeline.stage_files import save_plan

        once, planned = self.crew.threads, np.zeros_like(self.context.planned)
        for tile in sample_tiles(self.context.plans, -(-LEAST_RUN // once) * once):
            planned[pixel_inside(self.context, tile)] = True
        save_plan(replace(self.context, planned=planned), self.ledger.plan)
        self.sampled = self.job.context()

    def _fit(self) -> BlockFit:
        from wsi_pgdips.pipeline import block as worker
        from wsi_pgdips.pipeline import stage_files

        blocks, once = block_keys(self.sampled), self.crew.threads
        rich = rich_tiles(self.sampled, once)
        # what each block waits for at first; later ones are read beside the work
        a_read = seconds_of(lambda: [self._read(tile) for tile in rich.render])[0] / len(
            rich.render
        )
        cold = self._fit_block(self.sampled, rich)
        took = seconds_of(lambda: [worker.fit(self.job, block) for block in blocks])[0]
        rounds = max(sum(rounds_of(self.sampled, "fit", once)), 1)
        a_round = max(took - len(blocks) * a_read, 0) / rounds
        computed = [n * a_round + a_read for n in rounds_of(self.context, "fit", once)]
        if self.science.preset == "paper":
            computed = self._solve()
        self.wall["fit"] = max(cold - a_round, 0) + self.crew.seconds(computed)
        return spread_fits([stage_files.load_fit(self.ledger.fit(b)) for b in blocks], self.context)

    def _read(self, tile: TileIndex) -> ByteArray:
        region = self.context.grid.tile_region(*tile)
        return self.context.source.read(region.y, region.x, region.h, region.w)

    def _solve(self) -> list[float]:
        """Seconds of each block whose tiles are fitted by networks of their own."""
        from wsi_pgdips.pipeline.sizes import BATCH
        from wsi_pgdips.solver.presets import resolve

        gpu, preset = self.crew.device != "cpu", resolve(self.science)
        plan = rich_tiles(self.sampled, BATCH if gpu else self.crew.threads)
        few = preset.with_steps(min(preset.steps, TILE_STEPS))
        with StepClock(self.crew.device) as clock:
            took = self._fit_block(replace(self.sampled, preset=few), plan)
        took += (preset.steps - few.steps) * clock.seconds()
        if gpu:  # which has enough to do with any number of tiles
            return [len(p.fit) * took / len(plan.render) for p in self.context.plans]
        return [n * took for n in rounds_of(self.context, "fit", self.crew.threads)]

    def _fit_block(self, context: Context, plan: BlockPlan) -> float:
        """Seconds that it takes."""
        import torch

        from wsi_pgdips.stages.fit import fit_block

        device, threads = torch.device(self.crew.device), self.crew.threads
        options: dict[str, Any] = {"device": device, "threads": threads, "batch": len(plan.render)}
        return float(seconds_of(lambda: fit_block(context, self.prior, plan, **options))[0])

    def _render_from(self, fit: BlockFit) -> None:
        """``blend``, ``render`` and ``finalize``; ``fit`` has all tiles of the slide."""
        from wsi_pgdips.disk import load_arrays
        from wsi_pgdips.pipeline import stage_files
        from wsi_pgdips.pipeline.kept_pixels import KeptPixels
        from wsi_pgdips.pipeline.output import write_products
        from wsi_pgdips.stages import blend as blending
        from wsi_pgdips.stages import render as rendering

        context, crew, blocks = self.context, self.crew, block_keys(self.sampled)
        with self._timed("blend"):
            fields, matrix = blending.blend(context, self.prior, [fit], crew.all_threads)
            stage_files.save_fields(fields, matrix, self.ledger.fields)

        def rendered(plan: BlockPlan) -> RenderedBlock:
            return rendering.render_block(
                self.sampled,
                self.prior,
                fields,
                matrix,
                plan,
                lambda _: None,
                self.sampled.source,
                device=crew.device,
                threads=crew.threads,
            )

        self._render(rendered)
        with self._timed("finalize"):
            pixels = StandIns(KeptPixels.of_run(self.sampled, self.ledger), self.sampled)
            write_products(context, self.prior, [fit], fields, matrix, blocks, self.ledger, pixels)
        # most of what grows with the tiles: their strips are read twice
        strips = seconds_of(lambda: [load_arrays(self.ledger.render(b)) for b in blocks])[0]
        self.wall["finalize"] += 2 * strips * (context.n_tiles / self.sampled.n_tiles - 1)

    def _render(self, rendered: Callable[[BlockPlan], RenderedBlock]) -> None:
        from wsi_pgdips.pipeline import block as worker

        threads, rich = self.crew.threads, rich_tiles(self.sampled, self.crew.threads)
        cold = seconds_of(lambda: rendered(rich))[0]
        # what a pixel of a block takes whatever is there, and what is there beside
        empty, area = replace(rich, render=(), fit=(), fraction=()), block_area(self.context, rich)
        compute_px = seconds_of(lambda: rendered(empty)) / area
        write_px = seconds_of(functools.partial(self._write, rich, rendered(empty))) / area
        full = self._filled(rendered(rich), rich)
        write = seconds_of(functools.partial(self._write, rich, full))
        write_mass = max((write / area - write_px)[0], 0) / (rich.fraction[0] + GLASS_SHARE)

        compute = np.zeros(2)
        for block in block_keys(self.sampled):
            at = [clock_now()]

            def tile_done(at: list[Seconds] = at) -> None:
                at.append(clock_now())

            worker.render(self.job, block, tile_done)
            compute += at[-1] - at[0]
        pixels = sum(block_area(self.sampled, p) for p in self.sampled.plans)
        rounds = sum(rounds_of(self.sampled, "render", threads))
        a_round = max((compute - pixels * compute_px)[0], 0) / rounds
        computed, written = [], []
        for plan in self.context.plans:
            px, mass = block_area(self.context, plan), tissue_mass(self.context, plan)
            computed.append(px * compute_px[0] + -(-len(plan.render) // threads) * a_round)
            written.append(px * write_px[0] + mass * write_mass)
        # on a CPU, threads get no more of the machine than they got here
        busy = compute[1] / compute[0] if self.crew.device == "cpu" else threads
        slowing = min(write[1] / write[0] / max(busy, 1), 1)
        cold = max(cold - area * compute_px[0] - a_round, 0)
        self.wall["render"] = cold + self.crew.seconds(computed, written, slowing)

    def _filled(self, block: RenderedBlock, plan: BlockPlan) -> RenderedBlock:
        """The block with its first tile all over."""
        here = self.context.grid.block_region(plan.by, plan.bx)
        tile = self.context.grid.tile_region(*plan.render[0]).within(here)
        down, across = -(-here.h // tile.h), -(-here.w // tile.w)
        codes = np.tile(block.codes[(slice(None), *tile.slices)], (1, down, across))
        tissue = np.tile(block.tissue[tile.slices], (down, across))
        return replace(block, codes=codes[:, : here.h, : here.w], tissue=tissue[: here.h, : here.w])

    def _write(self, plan: BlockPlan, block: RenderedBlock) -> None:
        from wsi_pgdips.layers.store import write_block

        write_block(
            self.output,
            self.context.grid,
            plan.by,
            plan.bx,
            codes=block.codes,
            tissue=block.tissue,
            residual_rms=block.residual_rms,
            residual_od=block.residual_od,
        )

    def _sizes(self) -> Sizes:
        from wsi_pgdips.pipeline.sizes import Sizes

        lanes, preset = self.crew.lanes, self.science.preset
        return Sizes(self.context, self.sampled, self.job, preset, lanes, self.output)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.wall[stage] = time.perf_counter() - start
