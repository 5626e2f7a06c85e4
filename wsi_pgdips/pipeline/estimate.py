"""Estimate what a run of a slide would take.

The slide is planned as a run plans it. Then the stages of a run work on a sample of its tiles in a
temporary folder, and their record is scaled to the whole slide.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.disk import size_of
from wsi_pgdips.layers import provenance
from wsi_pgdips.layers.store import create_layers
from wsi_pgdips.machine import choose_device, quiet_machine
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline import part
from wsi_pgdips.pipeline.block import AUTO_BATCH, SlideJob, forget
from wsi_pgdips.pipeline.kept_pixels import pixels_bytes
from wsi_pgdips.pipeline.pool import LANES, make_pool
from wsi_pgdips.pipeline.record import UsageLog
from wsi_pgdips.pipeline.slide_run import SlideRun
from wsi_pgdips.pipeline.stage_files import save_plan
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.records import BoolArray
from wsi_pgdips.solver.presets import HALO, resolve
from wsi_pgdips.stages.context import Context, make_context
from wsi_pgdips.tiles.blocks import BlockPlan

STAGES = ("prepare", *part.STAGES)
RUNS, LEAST_RUN = 4, 6  # runs of neighbouring tiles: what is decoded for one serves the next
TILE_STEPS = 4  # steps of a tile's networks that are timed; the others take as long
GLASS_SHARE = 0.1  # bytes of a pixel of glass, in those of one of tissue
_ARRAYS = ("labels", "qc", "residual")  # which grow with the tiles, as the levels do

TileIndex = tuple[int, int]
Load = tuple[float, float]  # area of blocks, in tiles, and tiles, of the worker with most work
Taken = tuple[Mapping[str, float], Load]  # seconds of stages, and the load that took them


@dataclass(frozen=True)
class Estimate:
    """The time, memory and disk that a run takes on this machine, as busy as it is now.

    Attributes:
        slide: name of the slide. preset, device: of the run. workers: its processes.
        threads: of each process.
        tiles: tiles that are rendered. tiles_to_fit: those with enough tissue to be fitted.
        blocks: blocks that hold the tiles.
        wall_s: seconds of each of ``STAGES``, as in a run's record; the start of the program and
            of worker processes is not counted.
        peak_rss_mb: resident memory of the largest process, MiB, as in a run's record.
        peak_vram_mb: MiB that PyTorch holds on the GPU, 0 on a CPU.
        disk_bytes: size of the finished layers.
        peak_disk_bytes: size of the output just before the run is done: the layers, the files that
            stages hand on, and the decoded pixels if they are kept.
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

    In a process that has done other work, memory is at least what that took, and imports that are
    done already are missing in ``prepare``. ``paper`` is extrapolated from a few timed steps on one
    tile for each thread; its layers are taken to be as large as those of ``fast``.

    Args:
        slide: anything a run takes. config: TOML of settings, overridden by ``options``.
        options: the fields of ``config.ScientificSettings`` and ``config.ExecutionSettings``; those
            about the output and clusters have no meaning here.

    Raises:
        WsiPgdipsError: bad input, as in a run.
    """
    settings = make_settings(options, config)
    with (
        tempfile.TemporaryDirectory(prefix="wsi-pgdips-estimate-") as folder,
        ExitStack() as stack,
    ):
        return _Rehearsal(Path(slide), Path(folder) / "layers", settings, stack).estimate()


class _Rehearsal:
    """Runs of samples of a slide's tiles.

    Args:
        output: folder to write. stack: closes the slide and the workers.

    Attributes:
        context: the whole slide. wall_s: seconds of each stage of a run.
    """

    def __init__(self, slide: Path, output: Path, settings: Settings, stack: ExitStack) -> None:
        self.science, how = settings.science, settings.execution
        device = choose_device(how.device)
        stack.enter_context(quiet_machine())
        # the networks of `paper` are timed apart
        self.paper = self.science.preset == "paper"
        science = self.science.model_copy(update={"preset": "fast"} if self.paper else {})
        batch = AUTO_BATCH if how.batch == "auto" else how.batch
        keep_pixels = how.keep_pixels is not False
        job = SlideJob(str(slide.absolute()), str(output), science, device, 1, batch, keep_pixels)
        self.ledger, stains = job.ledger, load_stains(science.stains, science.stain_vectors)
        source = stack.enter_context(closing(job.open_source()))
        stack.callback(forget)
        start = time.perf_counter()
        self.context = make_context(source, stains, science)
        residual = science.store_residual
        create_layers(output, source.grid, stains, name=source.meta.name, store_residual=residual)
        self.ledger.make_folders()
        save_plan(self.context, self.ledger.plan)
        self.wall_s = {"prepare": time.perf_counter() - start}
        self.pool, self.workers, threads = make_pool(device, how.workers, how.threads)
        stack.callback(self.pool.close)
        self.job = replace(job, threads=threads)
        self.pool.prepare(self.job)

    def estimate(self) -> Estimate:
        """Run the samples, and scale what they took."""
        whole, output, work = self.context, self.ledger.output, self.ledger.work
        run = self._begin(self.job)
        run.calibrate()
        self.wall_s |= run.log.total()["wall_s"]
        networks = self._time_networks() if self.paper else {}
        run, taken = self._run_samples()
        sampled = run.context
        a_tile = (size_of(work / "fit") + size_of(work / "render")) / sampled.n_tiles
        run.finalize()
        record = provenance.read_run_record(output)
        (output / provenance.RUN_RECORD).unlink()  # the digits of its times change its size
        self.wall_s |= record["wall_s"] | scale(taken, _load(whole, self.workers)) | networks
        arrays = [p for p in output.iterdir() if p.name.isdigit() or p.name in _ARRAYS]
        disk = size_of(output) + (_tissue(whole) / _tissue(sampled) - 1) * sum(map(size_of, arrays))
        # bytes of the maps that the networks of a tile make
        maps = 2 * whole.stains.n * (whole.grid.tile + 2 * HALO) ** 2 if self.paper else 0
        to_fit = sum(len(p.fit) for p in whole.plans)
        pixels = pixels_bytes(whole.grid, to_fit) if self.job.keep_pixels else 0
        # the maps of a block; and the shards, twice while they are put together, of blocks at work
        shards = 2 * LANES * disk / whole.n_tiles * (1 - sampled.n_tiles / whole.n_tiles)
        in_memory = max(len(p.render) for p in whole.plans) * (maps + shards)
        return Estimate(
            slide=whole.source.meta.name,
            preset=self.science.preset,
            device=self.job.device,
            workers=self.workers,
            threads=self.job.threads,
            tiles=whole.n_tiles,
            tiles_to_fit=to_fit,
            blocks=len(whole.plans),
            wall_s={stage: round(self.wall_s[stage], 3) for stage in STAGES},
            peak_rss_mb=round(record["peak_rss_mb"] + in_memory / 2**20, 1),
            peak_vram_mb=record.get("peak_vram_mb", 0.0),
            disk_bytes=round(disk),
            peak_disk_bytes=round(disk + pixels + whole.n_tiles * (a_tile + maps)),
        )

    def _run_samples(self) -> tuple[SlideRun, list[Taken]]:
        """Run the stages before ``finalize`` on samples; return the last run, and what all took."""
        threads, taken = self.job.threads, list[Taken]()
        runs = sample_runs(self.context.plans, max(LEAST_RUN, 2 * threads))
        full = [tile for run in runs for tile in run]
        thin = [tile for run in runs for tile in run[:threads]]
        for tiles in [full] if len(runs) == 1 else [thin, thin, full]:
            run = self._begin(self.job, tiles)
            run.fit()
            run.blend()
            run.render()
            taken.append((run.log.total()["wall_s"], _load(run.context, self.workers)))
        return run, taken

    def _time_networks(self) -> dict[str, float]:
        """Return seconds of ``fit`` where each tile has networks of its own."""
        tiles = max((p.fit for p in self.context.plans), key=len)
        if self.job.device == "cpu":  # a GPU is given a batch of the block
            tiles = tiles[: self.job.threads]
        timed = []
        for steps in (1, 1, 1 + TILE_STEPS):  # the first pays what is paid once
            settings = self.science.model_copy(update={"iterations": steps})
            run = self._begin(replace(self.job, settings=settings), tiles)
            run.fit()
            timed.append(run.log.total()["wall_s"]["fit"])
        a_step = max(timed[2] - timed[1], 0) / TILE_STEPS
        share = sum(len(p.fit) for p in self.context.plans) / self.context.n_tiles
        rounds = math.ceil(_load(self.context, self.workers)[1] * share / max(len(tiles), 1))
        return {"fit": rounds * (timed[1] + (resolve(self.science).steps - 1) * a_step)}

    def _begin(self, job: SlideJob, tiles: Sequence[TileIndex] | None = None) -> SlideRun:
        """Return a run that has nothing fitted yet, and no tiles but some planned."""
        context = self.context
        if tiles is not None and len(tiles) < context.n_tiles:
            context = replace(context, planned=_planned(context, tiles))
        self.ledger.forget_after_fit([(p.by, p.bx) for p in context.plans])
        save_plan(context, self.ledger.plan)
        whole, log = part.Part(), UsageLog(Path(tempfile.mkdtemp(dir=self.ledger.work)), "run")
        return SlideRun(job, self.pool, self.workers, whole, QuietProgress(), log)


def scale(taken: Sequence[Taken], whole: Load) -> dict[str, float]:
    """Return seconds of ``fit``, ``blend`` and ``render`` of the whole slide.

    A stage takes so much for each tile, and beside it so much for the area of its blocks, or once.

    Args:
        taken: by a thin sample, by the same again, and by the full sample; or by the whole slide
            alone. The first pays what is paid once in a process, such as imports.
        whole: load of the slide.
    """
    if len(taken) == 1:
        return dict(taken[0][0])
    (first, _), (again, thin), (full, most) = taken
    wall = {}
    for stage in ("fit", "blend", "render"):
        rows = [
            load if stage in part.OVER_BLOCKS else (1.0, load[1]) for load in (thin, most, whole)
        ]
        rates, _ = nnls(np.array(rows[:2]), np.array([again[stage], full[stage]]))
        wall[stage] = max(first[stage] - again[stage], 0) + float(rates @ rows[2])
    return wall


def sample_runs(plans: Sequence[BlockPlan], run: int) -> list[list[TileIndex]]:
    """Return the middle of each quarter of the work, as neighbouring tiles; or all as one run.

    Args:
        run: tiles of each.
    """
    tiles = [t for p in plans for t in p.render]
    if len(tiles) <= RUNS * run:
        return [tiles]
    starts = [int((k + 0.5) / RUNS * len(tiles)) - run // 2 for k in range(RUNS)]
    return [tiles[start : start + run] for start in starts]


def _planned(context: Context, tiles: Sequence[TileIndex]) -> BoolArray:
    """Return the mask that plans some tiles alone: pixels that lie in one of them."""
    planned, scale = np.zeros_like(context.planned), context.tissue.scale
    for tile in tiles:
        r = context.grid.tile_region(*tile)
        rows = slice(math.ceil(r.y / scale), int(r.stop_y / scale))
        columns = slice(math.ceil(r.x / scale), int(r.stop_x / scale))
        planned[rows, columns] = context.planned[rows, columns]
    return planned


def _load(context: Context, workers: int) -> Load:
    sizes = {(p.by, p.bx): len(p.render) for p in context.plans}
    share = max(part.share_out(sizes, workers), key=lambda blocks: sum(sizes[b] for b in blocks))
    regions = [context.grid.block_region(*block) for block in share]
    area = sum(r.h * r.w for r in regions) / context.grid.tile**2
    return area, sum(sizes[block] for block in share)


def _tissue(context: Context) -> float:
    """Return the tiles of tissue that are planned, with a little for their glass."""
    return sum(share + GLASS_SHARE for p in context.plans for share in p.fraction)
