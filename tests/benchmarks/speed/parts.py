"""The parts of a run by themselves: what each could do if all else were free."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.layers import store
from wsi_pgdips.machine import in_threads
from wsi_pgdips.optics.stains import load_stains
from wsi_pgdips.pipeline.block import SlideJob
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.stage_files import save_plan
from wsi_pgdips.records import ByteArray, SlidePrior
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.fit import fit_tiles
from wsi_pgdips.solver.presets import HALO
from wsi_pgdips.solver.slide_network import MAX_STAINS
from wsi_pgdips.stages import blend as blending
from wsi_pgdips.stages import fit as fitting
from wsi_pgdips.stages import render as rendering
from wsi_pgdips.stages.context import Context, make_context
from wsi_pgdips.stages.tile_renderer import TileRenderer

Item = TypeVar("Item")
CALIBRATION_STEPS = 4  # of a network that is only timed
MOST_TILES = 64  # that are held in memory


@dataclass(frozen=True)
class PartTime:
    """Wall and CPU seconds a tile."""

    wall: float
    cpu: float


class Parts:
    """A slide, opened and planned, and its parts to be timed. Close it."""

    def __init__(self, slide: Path, stains: str, preset: str, device: str, threads: int) -> None:
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="wsi-pgdips-speed-"))
        settings = ScientificSettings(
            preset=preset,  # type: ignore[arg-type]
            stains=stains,
            calibration_steps=CALIBRATION_STEPS,
        )
        self.device, self.threads = device, threads
        source = open_source(slide, mpp=settings.mpp)
        self._stack.callback(source.close)
        self.context: Context = make_context(source, load_stains(stains), settings)
        self.output = Path(folder) / "layers"
        self.job = SlideJob(str(slide), str(self.output), settings, device, threads, 1)
        store.create_layers(
            self.output, self.context.grid, self.context.stains, name=source.meta.name
        )
        Ledger(self.output).make_folders()
        save_plan(self.context, Ledger(self.output).plan)
        self.tiles = [t for p in self.context.plans for t in p.fit]

    def close(self) -> None:
        self._stack.close()

    def read(self) -> PartTime:
        """Decoding and resampling alone, each tile once."""
        source, grid = self.context.source, self.context.grid

        def read(tile: tuple[int, int]) -> None:
            r = grid.tile_region(*tile)
            source.read(r.y, r.x, r.h, r.w)

        return self._timed(read, self.tiles)

    def solve(self) -> dict[str, PartTime]:
        """``fit``, ``render`` (from pixels in memory) and ``write`` (from codes) alone."""
        context, device = self.context, torch.device(self.device)
        prior = fitting.calibrate(context, device, self.threads)
        fits = [
            fitting.fit_block(context, prior, p, device=device, threads=self.threads, batch=1)
            for p in context.plans
        ]
        fields, matrix = blending.blend(context, prior, fits)
        renderer = TileRenderer(context, prior, fields, matrix, lambda _: None, self.device)
        chosen = self.tiles[:MOST_TILES]
        own = {t: self.pixels(context.grid.tile_region(*t)) for t in chosen}
        wide = {t: self.pixels(renderer.region(t)) for t in chosen}

        def fit(tile: tuple[int, int]) -> None:
            fit_tiles([context.tile_input(tile, own[tile], 0)], prior, context.preset, device)

        def render(tile: tuple[int, int]) -> None:
            renderer.render(tile, wide[tile], halo_read=True)

        plan = max(context.plans, key=lambda p: len(p.render))
        block = rendering.render_block(
            context,
            prior,
            fields,
            matrix,
            plan,
            lambda _: None,
            context.source,
            device=self.device,
            threads=self.threads,
        )

        def write(_: int) -> None:
            store.write_block(
                self.output,
                context.grid,
                plan.by,
                plan.bx,
                codes=block.codes,
                tissue=block.tissue,
                residual_rms=block.residual_rms,
            )

        written = self._timed(write, range(3), 1)
        per_tile = len(plan.render)
        return {
            "fit": self._timed(fit, chosen),
            "render": self._timed(render, chosen),
            "write": PartTime(written.wall / per_tile, written.cpu / per_tile),
        }

    def network_flops(self) -> float:
        """Floating-point operations of the slide's network on one tile with its halo."""
        n = self.context.stains.n
        if n > MAX_STAINS:
            return 0.0
        side = self.context.grid.tile + 2 * HALO
        weights = slide_network.init_weights(n, torch.Generator().manual_seed(0))
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            slide_network.forward(weights, torch.zeros(1, 3, side, side))
        return float(counter.get_total_flops())

    def pixels(self, r: Any) -> ByteArray:
        return self.context.source.read(r.y, r.x, r.h, r.w)

    def _timed(
        self, work: Callable[[Item], None], items: Iterable[Item], threads: int | None = None
    ) -> PartTime:
        """The second of two passes, so that memory and caches are as in a long run."""
        every = list(items)
        for _ in range(2):
            start, busy = time.perf_counter(), time.process_time()
            for _ in in_threads(work, every, threads or self.threads):
                pass
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - start, time.process_time() - busy
        return PartTime(wall / len(every), cpu / len(every))


def paper_step(parts: Parts, prior: SlidePrior | None = None, batch: int = 1) -> float:
    """Seconds of one optimisation step of ``paper`` on one tile, in batches of so many."""
    context, device = parts.context, torch.device(parts.device)
    prior = prior or fitting.calibrate(context, device, parts.threads)
    chosen = (parts.tiles * batch)[:batch]
    inputs = [
        context.tile_input(t, parts.pixels(context.with_halo(context.tile_square(t))))
        for t in chosen
    ]
    took = []
    for steps in (1, 1, 3):
        preset = context.preset.with_steps(steps)
        start = time.perf_counter()
        fit_tiles(inputs, prior, preset, device)
        if parts.device.startswith("cuda"):
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(np.maximum(took[2] - took[1], 1e-9)) / 2 / batch
