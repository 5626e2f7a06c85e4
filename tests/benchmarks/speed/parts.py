"""The parts of a run by themselves: the time of each if all others took none."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from wsi_pgdips.config import make_settings
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers import store
from wsi_pgdips.machine import in_threads, usable_cpus
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.image import solve
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.fit import fit_tiles
from wsi_pgdips.solver.presets import HALO
from wsi_pgdips.stages.context import Context, make_context
from wsi_pgdips.stages.fit import calibrate
from wsi_pgdips.stages.render import render_block
from wsi_pgdips.stages.tile_renderer import TileRenderer

Item = TypeVar("Item")
CALIBRATION_STEPS = 4  # of a network that is only timed
MOST_TILES = 64  # that are held in memory


@dataclass(frozen=True)
class PartTime:
    """Wall and CPU seconds a tile."""

    wall: float
    cpu: float


@contextlib.contextmanager
def open_parts(slide: Path, stains: str, preset: str, device: str) -> Iterator[Parts]:
    """A slide, opened and planned, and its parts to be timed with all cores."""
    asked = {"preset": preset, "stains": stains, "calibration_steps": CALIBRATION_STEPS}
    settings = make_settings(asked).science
    with (
        tempfile.TemporaryDirectory(prefix="wsi-pgdips-speed-") as folder,
        contextlib.closing(open_source(slide)) as source,
    ):
        context = make_context(source, load_stains(stains), settings)
        yield Parts(context, Path(folder) / "layers", torch.device(device), usable_cpus())


@dataclass(frozen=True)
class Parts:
    """The parts of a run on a slide.

    Attributes:
        output: where layers may be written.
    """

    context: Context
    output: Path
    device: torch.device
    threads: int

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """The tiles that are fitted."""
        return [tile for plan in self.context.plans for tile in plan.fit]

    def read(self) -> PartTime:
        """Decoding and resampling alone, each tile once."""
        grid = self.context.grid
        return self._timed(self._pixels, [grid.tile_region(*tile) for tile in self.tiles])

    def solve(self) -> dict[str, PartTime]:
        """``fit``, ``render`` (from pixels in memory) and ``write`` (from codes) alone."""
        context, device = self.context, self.device
        grid, solved = context.grid, solve(context, device, self.threads)
        under = (context, solved.prior, solved.fields, solved.slide_matrix)
        renderer = TileRenderer(*under, lambda _: None, str(device))
        chosen = self.tiles[:MOST_TILES]
        own = {t: self._pixels(grid.tile_region(*t)) for t in chosen}
        wide = {t: self._pixels(renderer.region(t)) for t in chosen}

        def fit(tile: tuple[int, int]) -> None:
            inputs = [context.tile_input(tile, own[tile], 0)]
            fit_tiles(inputs, solved.prior, context.preset, device)

        plan = max(context.plans, key=lambda p: len(p.render))
        how: dict[str, Any] = {"device": str(device), "threads": self.threads}
        block = render_block(*under, plan, lambda _: None, context.source, **how)
        made: dict[str, Any] = {
            name: getattr(block, name) for name in ("codes", "tissue", "artifact", "residual_rms")
        }
        store.create_layers(self.output, grid, context.stains, name=context.source.meta.name)
        written = self._timed(
            lambda _: store.write_block(self.output, grid, plan.by, plan.bx, **made), range(3), 1
        )
        per_tile = len(plan.render)
        return {
            "fit": self._timed(fit, chosen),
            "render": self._timed(lambda t: renderer.render(t, wide[t], halo_read=True), chosen),
            "write": PartTime(written.wall / per_tile, written.cpu / per_tile),
        }

    def network_flops(self) -> float:
        """Floating-point operations of the slide's network on one tile with its halo."""
        side = self.context.grid.tile + 2 * HALO
        generator = torch.Generator().manual_seed(0)
        weights = slide_network.init_weights(self.context.stains.n, generator)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            slide_network.forward(weights, torch.zeros(1, 3, side, side))
        return float(counter.get_total_flops())

    def paper_steps(self, batches: Iterable[int]) -> dict[int, float]:
        """Batch -> seconds of one optimisation step of ``paper`` on one tile, in such batches."""
        context, found = self.context, {}
        for batch in batches:
            prior = calibrate(context, self.device, self.threads)
            inputs = [
                context.tile_input(t, self._pixels(context.with_halo(context.tile_square(t))))
                for t in (self.tiles * batch)[:batch]
            ]
            took = []
            for steps in (1, 1, 3):
                start = time.perf_counter()
                fit_tiles(inputs, prior, context.preset.with_steps(steps), self.device)
                self._wait()
                took.append(time.perf_counter() - start)
            found[batch] = max(took[2] - took[1], 1e-9) / 2 / batch
        return found

    def _pixels(self, r: Region) -> ByteArray:
        return self.context.source.read(r.y, r.x, r.h, r.w)

    def _wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _timed(
        self, work: Callable[[Item], object], items: Iterable[Item], threads: int | None = None
    ) -> PartTime:
        """The second of two passes, so that memory and caches are as in a long run."""
        every = list(items)
        for _ in range(2):
            start, busy = time.perf_counter(), time.process_time()
            for _ in in_threads(work, every, threads or self.threads):
                pass
            self._wait()
            wall, cpu = time.perf_counter() - start, time.process_time() - busy
        return PartTime(wall / len(every), cpu / len(every))
