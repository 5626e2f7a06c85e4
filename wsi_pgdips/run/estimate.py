"""What a run of a slide would take: planned as a run plans it, and measured on a few of its tiles.

Tiles and blocks are those of the run. Time, memory and disk are what the stages' own functions take
for a sample, in a temporary folder, scaled to the whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from wsi_pgdips.config import ExecutionSettings, Settings, make_settings

if TYPE_CHECKING:
    from wsi_pgdips.records import BlockFit, SlidePrior
    from wsi_pgdips.run.context import Context, SlideJob
    from wsi_pgdips.run.rendering import RenderedBlock
    from wsi_pgdips.slide.source import PyramidSource
    from wsi_pgdips.tiles.grid import BlockPlan

STAGES = ("prepare", "calibrate", "fit", "blend", "render", "finalize")
RUNS, LEAST_RUN = 4, 6  # of neighbouring tiles, since what is decoded for one serves the next
NETWORK_STEPS, TILE_STEPS = 40, 4  # that are taken; the others take as long
WARM_STEPS = 1
BATCH = 4  # tiles that a GPU is tried with
ALIKE = 3  # tiles of the sample that stand for one outside it, in turn
GLASS_SHARE = 0.1  # bytes of a pixel of glass, in those of one of tissue
_MIB = 2**20

TileIndex = tuple[int, int]
Seconds = npt.NDArray[np.float64]  # (2,): wall, CPU


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


@dataclass(frozen=True)
class Crew:
    """Who would work: what ``pool.make_pool`` decides, without anybody being started.

    Attributes:
        device, workers, threads: as of ``Estimate``. lanes: blocks at a time in each worker.
    """

    device: str
    workers: int
    threads: int
    lanes: int

    @classmethod
    def of(cls, how: ExecutionSettings) -> Self:
        """The workers of a run with these settings.

        Raises:
            DeviceError: a device that is not there.
        """
        from wsi_pgdips.run.pool import LANES, choose_device, devices_of, usable_cpus

        device = choose_device(how.device)
        workers = how.workers or len(devices_of(device))
        threads = how.threads or max(usable_cpus() // workers, 1)
        return cls(device, workers, threads, 1 if threads == 1 and device == "cpu" else LANES)

    def seconds(
        self, computed: Sequence[float], written: Sequence[float] = (), slowing: float = 0.0
    ) -> float:
        """Of a stage.

        Args:
            computed, written: seconds that each block takes.
            slowing: seconds of computing that a second of writing costs where both go on.
        """
        written = written or [0.0] * len(computed)
        shares: list[list[int]] = [[] for _ in range(self.workers)]
        for i in sorted(range(len(computed)), key=lambda i: -computed[i]):
            min(shares, key=lambda share: sum(computed[j] for j in share)).append(i)
        longest = 0.0
        for share in filter(None, shares):
            writing = sum(written[i] for i in share)
            if self.lanes > 1:  # beside the next block, but for the last
                writing = max(writing * slowing, written[share[-1]])
            longest = max(longest, sum(computed[i] for i in share) + writing)
        return longest


def sample_tiles(plans: Sequence[BlockPlan], run: int) -> list[TileIndex]:
    """``RUNS`` runs of so many tiles each, in the order of work, spread evenly over it."""
    tiles = [t for p in plans for t in p.render]
    if len(tiles) <= RUNS * run:
        return tiles
    stops = np.cumsum([len(p.render) for p in plans])
    chosen = set[int]()
    for k in range(RUNS):
        middle = int((k + 0.5) / RUNS * len(tiles))
        block = int(np.searchsorted(stops, middle, side="right"))
        stop = int(stops[block])
        first = stop - len(plans[block].render)
        start = max(min(middle - run // 2, stop - run), first)
        chosen.update(range(start, min(start + run, stop)))
    return [tiles[i] for i in sorted(chosen)]


class _Rehearsal:
    """A run of a few tiles by the clock. ``sampled`` is the slide with these alone planned."""

    context: Context
    sampled: Context
    prior: SlidePrior

    def __init__(self, slide: Path, output: Path, settings: Settings) -> None:
        from wsi_pgdips.run.context import AUTO_BATCH, SlideJob
        from wsi_pgdips.run.worker import quiet_threads

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
        from wsi_pgdips.run.finishing import peak_rss_mb
        from wsi_pgdips.run.worker import forget

        with contextlib.closing(self.job.open_source()) as source:
            try:
                self._prepare(source)
                self._calibrate()
                self._plan_sample()
                fit = self._fit()
                self._render_from(fit)
            finally:
                forget()
            disk, peak_disk = self._disk()
        return Estimate(
            slide=source.meta.name,
            preset=self.science.preset,
            device=self.crew.device,
            workers=self.crew.workers,
            threads=self.crew.threads,
            tiles=self.context.n_tiles,
            tiles_to_fit=_tiles_to_fit(self.context),
            blocks=len(self.context.plans),
            wall_s={stage: round(float(self.wall[stage]), 3) for stage in STAGES},
            peak_rss_mb=round(peak_rss_mb() + self._unseen_mb(disk), 1),
            peak_vram_mb=round(self._vram_mb(), 1),
            disk_bytes=round(disk),
            peak_disk_bytes=round(peak_disk),
        )

    def _prepare(self, source: PyramidSource) -> None:
        from wsi_pgdips.layers import store
        from wsi_pgdips.optics.stains import load_stains
        from wsi_pgdips.run.context import make_context, save_plan

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

        from wsi_pgdips.run import fit_files, fitting

        asked = self.science.calibration_steps
        steps = min(asked, NETWORK_STEPS)
        few = self.context.settings.model_copy(update={"calibration_steps": steps})
        context, device = replace(self.context, settings=few), torch.device(self.crew.device)
        with self._timed("calibrate"), _StepClock(self.crew.device) as clock:
            self.prior = fitting.calibrate(context, device, self.crew.threads)
            fit_files.save_prior(self.prior, self.ledger.prior)
        self.wall["calibrate"] += (asked - steps) * clock.seconds()

    def _plan_sample(self) -> None:
        from wsi_pgdips.run.context import save_plan

        once, planned = self.crew.threads, np.zeros_like(self.context.planned)
        for tile in sample_tiles(self.context.plans, -(-LEAST_RUN // once) * once):
            planned[_inside(self.context, tile)] = True
        save_plan(replace(self.context, planned=planned), self.ledger.plan)
        self.sampled = self.job.context()

    def _fit(self) -> BlockFit:
        from wsi_pgdips.run import fit_files, worker

        blocks, once = _blocks(self.sampled), self.crew.threads
        first = _first_tiles(self.sampled, once)
        cold = self._fit_block(self.sampled, first)
        took = _took(lambda: [worker.fit(self.job, block) for block in blocks])[0]
        a_round = took / max(sum(_rounds(self.sampled, "fit", once)), 1)
        computed = [n * a_round for n in _rounds(self.context, "fit", once)]
        if self.science.preset == "paper":
            computed = self._solve()
        self.wall["fit"] = max(cold - a_round, 0) + self.crew.seconds(computed)
        return _spread([fit_files.load_fit(self.ledger.fit(b)) for b in blocks], self.context)

    def _solve(self) -> list[float]:
        """Seconds of each block whose tiles are fitted by networks of their own."""
        from wsi_pgdips.solver.presets import resolve

        gpu, preset = self.crew.device != "cpu", resolve(self.science)
        plan = _first_tiles(self.sampled, BATCH if gpu else self.crew.threads)
        few = preset.with_steps(min(preset.steps, TILE_STEPS))
        with _StepClock(self.crew.device) as clock:
            took = self._fit_block(replace(self.sampled, preset=few), plan)
        took += (preset.steps - few.steps) * clock.seconds()
        if gpu:  # which has enough to do with any number of tiles
            return [len(p.fit) * took / len(plan.render) for p in self.context.plans]
        return [n * took for n in _rounds(self.context, "fit", self.crew.threads)]

    def _fit_block(self, context: Context, plan: BlockPlan) -> float:
        """Seconds that it takes."""
        import torch

        from wsi_pgdips.run.fitting import fit_block

        device, threads = torch.device(self.crew.device), self.crew.threads
        options: dict[str, Any] = {"device": device, "threads": threads, "batch": len(plan.render)}
        return float(_took(lambda: fit_block(context, self.prior, plan, **options))[0])

    def _render_from(self, fit: BlockFit) -> None:
        """``blend``, ``render`` and ``finalize``; ``fit`` has all tiles of the slide."""
        from wsi_pgdips.run import blending, finishing, rendering
        from wsi_pgdips.run.ledger import load_arrays

        context, crew, blocks = self.context, self.crew, _blocks(self.sampled)
        with self._timed("blend"):
            fields, matrix = blending.blend(context, self.prior, [fit])
            blending.save_fields(fields, matrix, self.ledger.fields)

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
            finishing.write_products(
                context, self.prior, [fit], fields, matrix, blocks, self.ledger
            )
        # most of what grows with the tiles: their strips are read twice
        strips = _took(lambda: [load_arrays(self.ledger.render(b)) for b in blocks])[0]
        self.wall["finalize"] += 2 * strips * (context.n_tiles / self.sampled.n_tiles - 1)

    def _render(self, rendered: Callable[[BlockPlan], RenderedBlock]) -> None:
        from wsi_pgdips.run import worker

        threads, first = self.crew.threads, _first_tiles(self.sampled, self.crew.threads)
        cold = _took(lambda: rendered(first))[0]
        # what a pixel of a block takes whatever is there
        empty = replace(first, render=(), fit=(), fraction=())
        area = _area(self.context, empty)
        compute_px = _took(lambda: rendered(empty)) / area
        write_px = _took(functools.partial(self._write, empty, rendered(empty))) / area

        compute, write = np.zeros(2), np.zeros(2)
        for by, bx in _blocks(self.sampled):
            at = [_now()]

            def tile_done(at: list[Seconds] = at) -> None:
                at.append(_now())

            worker.render(self.job, (by, bx), tile_done)
            compute += at[-1] - at[0]
            write += _now() - at[-1]
        # on a CPU, threads get no more of the machine than they got here
        busy = compute[1] / compute[0] if self.crew.device == "cpu" else threads
        slowing = min(write[1] / write[0] / max(busy, 1), 1)
        pixels = sum(_area(self.sampled, p) for p in self.sampled.plans)
        rounds = sum(_rounds(self.sampled, "render", threads))
        a_round = max((compute - pixels * compute_px)[0], 0) / rounds
        a_tile = max((write - pixels * write_px)[0], 0) / self.sampled.n_tiles
        computed, written = [], []
        for plan in self.context.plans:
            px, tiles = _area(self.context, plan), len(plan.render)
            computed.append(px * compute_px[0] + -(-tiles // threads) * a_round)
            written.append(px * write_px[0] + tiles * a_tile)
        cold = max(cold - area * compute_px[0] - a_round, 0)
        self.wall["render"] = cold + self.crew.seconds(computed, written, slowing)

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

    def _disk(self) -> tuple[float, float]:
        """Bytes of the finished layers, and of the output before what is handed on goes."""
        from wsi_pgdips.run.pixels import pixels_bytes

        sizes: dict[str, int] = defaultdict(int)
        for path in self.output.rglob("*"):
            if path.is_file():
                sizes[_kind(path.relative_to(self.output).parts)] += path.stat().st_size
        tiles, context = self.context.n_tiles, self.context
        layers = sizes["rest"] + sizes["data"] * _mass(context) / _mass(self.sampled)
        handed_on = sizes["work"] + sizes["tiles"] * tiles / self.sampled.n_tiles
        if self.job.keep_pixels:
            handed_on += pixels_bytes(context.grid, _tiles_to_fit(context))
        return layers, layers + handed_on + tiles * self._map_bytes()

    def _vram_mb(self) -> float:
        if self.crew.device == "cpu":
            return 0.0
        import torch

        from wsi_pgdips.run.fitting import batch_for

        device, most = self.crew.device, max(len(p.fit) for p in self.context.plans)
        seen = torch.cuda.max_memory_allocated(device) / _MIB
        if self.science.preset != "paper":
            return seen
        batch = self.job.batch or batch_for(*torch.cuda.mem_get_info(device), self.context.stains.n)
        return seen * min(batch, most) / BATCH

    def _map_bytes(self) -> int:
        """Bytes of the map of a tile's own networks."""
        from wsi_pgdips.solver.presets import HALO

        side = self.context.grid.tile + 2 * HALO
        return self.context.stains.n * side**2 * 2 if self.science.preset == "paper" else 0

    def _unseen_mb(self, layers: float) -> float:
        """MiB that blocks take beyond what the sample did: they are full, and several at a time.

        Args:
            layers: bytes of them all.
        """
        n, mass = self.context.stains.n, _mass(self.context)
        held = []
        for plan in self.context.plans:
            # a shard is put together in memory, beside the chunks it is made of
            shards = 2 * layers * _mass(self.context, plan) / mass
            codes = 2 * n * _area(self.context, plan)
            masks = 3 * _area(self.context, plan)
            held.append((codes * 4 / 3 + masks, shards + len(plan.render) * self._map_bytes()))
        held.sort(reverse=True)
        return (held[0][1] + sum(map(sum, held[1 : self.crew.lanes]))) / _MIB

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.wall[stage] = time.perf_counter() - start


class _StepClock:
    """Seconds of the steps of optimisers, seen from outside."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._at: dict[int, list[float]] = defaultdict(list)

    def __enter__(self) -> Self:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook = register_optimizer_step_post_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, *_: object) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
        self._at[threading.get_ident()].append(time.perf_counter())

    def seconds(self) -> float:
        """Of one step, once it goes at its pace; 0 where there were too few."""
        spans = [np.diff(at[WARM_STEPS:]) for at in self._at.values()]
        every = np.concatenate([np.zeros(0), *spans])
        return float(every.mean()) if len(every) else 0.0


def _now() -> Seconds:
    """Of this process, so far."""
    return np.array([time.perf_counter(), time.process_time()])


def _took(work: Callable[[], object]) -> Seconds:
    start = _now()
    work()
    return _now() - start


def _spread(fits: Sequence[BlockFit], context: Context) -> BlockFit:
    """Fits of all planned tiles: one outside the sample has those of one with as much tissue."""
    own = {(int(y), int(x)): i for i, (y, x) in enumerate(t for f in fits for t in f.index)}
    seen = np.concatenate([f.tissue for f in fits])
    planned = [pair for p in context.plans for pair in zip(p.render, p.fraction, strict=True)]
    rows = []
    for k, (tile, share) in enumerate(planned):
        like = np.argsort(np.abs(seen - share), kind="stable")[:ALIKE]
        rows.append(own.get(tile, int(like[k % len(like)])))

    def joined(parts: Iterable[Any]) -> Any:
        return np.concatenate(list(parts))[rows]

    apart = ("index", "statistics", "concentration")
    names = [f.name for f in dataclasses.fields(fits[0]) if f.name not in apart]
    statistics = {k: joined(f.statistics[k] for f in fits) for k in fits[0].statistics}
    plain = {name: joined(getattr(f, name) for f in fits) for name in names}
    return replace(
        fits[0],
        index=np.array([tile for tile, _ in planned], np.int32),
        statistics=statistics,
        **plain,
    )


def _inside(context: Context, tile: TileIndex) -> tuple[int, int]:
    """A pixel of the overview for which a tile is planned: of those, the nearest to its middle."""
    r, scale = context.grid.tile_region(*tile), context.tissue.scale
    rows = slice(int(r.y / scale), math.ceil(r.stop_y / scale))
    columns = slice(int(r.x / scale), math.ceil(r.stop_x / scale))
    ys, xs = np.nonzero(context.planned[rows, columns])
    off_y = ys + rows.start + 0.5 - (r.y + r.h / 2) / scale
    off_x = xs + columns.start + 0.5 - (r.x + r.w / 2) / scale
    best = int(np.argmin(off_y**2 + off_x**2))
    return rows.start + int(ys[best]), columns.start + int(xs[best])


def _first_tiles(context: Context, count: int) -> BlockPlan:
    """The first tiles that are fitted, of the block that has most of them."""
    plan = max(context.plans, key=lambda p: len(p.fit))
    tiles = (plan.fit or plan.render)[:count]
    shares = dict(zip(plan.render, plan.fraction, strict=True))
    fit = tuple(t for t in tiles if t in plan.fit)
    return replace(plan, render=tiles, fit=fit, fraction=tuple(shares[t] for t in tiles))


def _blocks(context: Context) -> list[tuple[int, int]]:
    return [(p.by, p.bx) for p in context.plans]


def _rounds(context: Context, kind: str, once: int) -> list[int]:
    """Of each block, how often so many of its tiles are begun at once."""
    return [-(-len(getattr(p, kind)) // once) for p in context.plans]


def _tiles_to_fit(context: Context) -> int:
    return sum(len(p.fit) for p in context.plans)


def _area(context: Context, plan: BlockPlan) -> int:
    """Pixels of a block."""
    region = context.grid.block_region(plan.by, plan.bx)
    return region.h * region.w


def _mass(context: Context, *plans: BlockPlan) -> float:
    """What the bytes of planned tiles go with: tissue, and a little of every pixel."""
    total = 0.0
    for plan in plans or context.plans:
        for tile, share in zip(plan.render, plan.fraction, strict=True):
            region = context.grid.tile_region(*tile)
            total += region.h * region.w * (share + GLASS_SHARE)
    return total


def _kind(parts: tuple[str, ...]) -> str:
    """What a file of the output grows with."""
    if parts[0] == "work":
        return {"fit": "tiles", "render": "tiles", "pixels": "pixels"}.get(parts[1], "work")
    layers = parts[0].isdigit() or parts[0] in ("labels", "qc", "residual")
    return "data" if layers and parts[-1] != "zarr.json" else "rest"
