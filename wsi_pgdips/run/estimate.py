"""What a run of a slide would take: planned as a run plans it, and measured on a few of its tiles.

Tiles and blocks are those of the run. Time, memory and disk are what the stages' own functions take
for a sample, in a temporary folder, scaled to the whole.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wsi_pgdips.config import Settings, make_settings

if TYPE_CHECKING:
    import torch

    from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior
    from wsi_pgdips.run.context import Context, SlideJob
    from wsi_pgdips.slide.source import PyramidSource
    from wsi_pgdips.tiles.grid import BlockPlan

STAGES = ("prepare", "calibrate", "fit", "blend", "render", "finalize")
RUNS, LEAST_RUN = 4, 6  # of neighbouring tiles, since what is decoded for one serves the next
NETWORK_STEPS, TILE_STEPS = 40, 4  # that are taken; the others take as long
WARM_STEPS = 2
GLASS_SHARE = 0.1  # bytes of a pixel of glass, in those of one of tissue
_MIB = 2**20

TileIndex = tuple[int, int]
Result = TypeVar("Result")


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

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "total_s": round(self.total_s, 3)}


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
        batch: tiles at a time on a GPU.
    """

    device: str
    workers: int
    threads: int
    lanes: int
    batch: int

    @property
    def fitted_at_once(self) -> int:
        return self.threads if self.device == "cpu" else self.batch

    def seconds(self, computed: Sequence[float], written: Sequence[float]) -> float:
        """Of a stage whose blocks take so long to compute and to write."""
        shares: list[list[int]] = [[] for _ in range(self.workers)]
        for i in sorted(range(len(computed)), key=lambda i: -computed[i]):
            min(shares, key=lambda share: sum(computed[j] for j in share)).append(i)
        return max(self._one([computed[i] for i in s], [written[i] for i in s]) for s in shares)

    def _one(self, computed: Sequence[float], written: Sequence[float]) -> float:
        if self.lanes == 1 or not written:
            return sum(computed) + sum(written)
        # beside the next block, by a thread that the next block then lacks
        return sum(computed) + max(sum(written) / self.threads, written[-1])


def crew_of(settings: Settings) -> Crew:
    """The workers of a run with these settings.

    Raises:
        DeviceError: a device that is not there.
    """
    import torch

    from wsi_pgdips.run.pool import LANES, choose_device, usable_cpus

    how = settings.execution
    device = choose_device(how.device)
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    workers = how.workers or max(gpus, 1)
    threads = how.threads or max(usable_cpus() // workers, 1)
    lanes = 1 if threads == 1 and device == "cpu" else LANES
    return Crew(device, workers, threads, lanes, 8 if how.batch == "auto" else how.batch)


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
    """A run of the tiles of a sample, by the clock."""

    def __init__(self, slide: Path, output: Path, settings: Settings) -> None:
        from wsi_pgdips.run.context import SlideJob
        from wsi_pgdips.run.worker import quiet_threads

        self.crew = crew = crew_of(settings)
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
            crew.batch,
            settings.execution.keep_pixels is not False,
        )
        self.ledger = self.job.ledger
        self.wall: dict[str, float] = {}

    def estimate(self) -> Estimate:
        from wsi_pgdips.run.finishing import peak_rss_mb
        from wsi_pgdips.run.worker import forget

        with contextlib.closing(self.job.open_source()) as source:
            context = self._prepare(source)
            prior = self._calibrate(context)
            sampled = self._sample(context)
            try:
                fit = _spread(self._fit(context, prior, sampled), context)
                fields, slide_matrix = self._blend(context, prior, fit)
                self._render(context, prior, fields, slide_matrix, sampled)
                self._finalize(context, prior, fit, fields, slide_matrix, sampled)
            finally:
                forget()
            disk, peak_disk = self._disk(context, sampled)
            return Estimate(
                slide=source.meta.name,
                preset=self.science.preset,
                device=self.crew.device,
                workers=self.crew.workers,
                threads=self.crew.threads,
                tiles=context.n_tiles,
                tiles_to_fit=_tiles_to_fit(context),
                blocks=len(context.plans),
                wall_s={stage: round(self.wall[stage], 3) for stage in STAGES},
                peak_rss_mb=round(peak_rss_mb() + self._unseen_mb(context), 1),
                peak_vram_mb=round(_vram_mb(self.crew.device), 1),
                disk_bytes=round(disk),
                peak_disk_bytes=round(peak_disk),
            )

    def _prepare(self, source: PyramidSource) -> Context:
        from wsi_pgdips.layers import store
        from wsi_pgdips.optics.stains import load_stains
        from wsi_pgdips.run.context import make_context, save_plan

        science = self.job.settings
        stains = load_stains(science.stains)
        with self._timed("prepare"):
            context = make_context(source, stains, science)
            store.create_layers(
                self.output,
                source.grid,
                stains,
                name=source.meta.name,
                store_residual=science.store_residual,
            )
            self.ledger.make_folders()
            save_plan(context, self.ledger.plan)
        return context

    def _calibrate(self, context: Context) -> SlidePrior:
        import torch

        from wsi_pgdips.run import fit_files, fitting

        asked = self.science.calibration_steps
        steps = min(asked, NETWORK_STEPS)
        few = context.settings.model_copy(update={"calibration_steps": steps})
        device = torch.device(self.crew.device)
        with self._timed("calibrate"), _StepClock(device) as clock:
            prior = fitting.calibrate(replace(context, settings=few), device, self.crew.threads)
            fit_files.save_prior(prior, self.ledger.prior)
        self.wall["calibrate"] += (asked - steps) * clock.seconds()
        return prior

    def _sample(self, context: Context) -> Context:
        """The same slide, of which the tiles of the sample alone are planned."""
        from wsi_pgdips.run.context import save_plan

        once = max(self.crew.threads, self.crew.fitted_at_once)
        planned, scale = np.zeros_like(context.planned), context.tissue.scale
        for tile in sample_tiles(context.plans, -(-LEAST_RUN // once) * once):
            r = context.grid.tile_region(*tile)
            planned[int((r.y + r.h / 2) / scale), int((r.x + r.w / 2) / scale)] = True
        save_plan(replace(context, planned=planned), self.ledger.plan)
        return self.job.context()

    def _fit(self, context: Context, prior: SlidePrior, sampled: Context) -> list[BlockFit]:
        from wsi_pgdips.run import fit_files, worker

        once = self.crew.fitted_at_once
        first = _first_tiles(sampled, once)
        cold = _seconds(lambda: self._fit_block(sampled, prior, first))
        took = [_seconds(functools.partial(worker.fit, self.job, b)) for b in _blocks(sampled)]
        a_round = sum(took) / max(sum(_rounds(sampled, "fit", once)), 1)
        cold = max(cold - a_round, 0.0)  # the first of all, once
        if self.science.preset == "paper":
            a_round = self._solve(context, prior, first)
        computed = [n * a_round for n in _rounds(context, "fit", once)]
        self.wall["fit"] = cold + self.crew.seconds(computed, [0.0] * len(computed))
        return [fit_files.load_fit(self.ledger.fit(b)) for b in _blocks(sampled)]

    def _solve(self, context: Context, prior: SlidePrior, plan: BlockPlan) -> float:
        """Seconds of tiles that are fitted at once, by networks of their own."""
        import torch

        from wsi_pgdips.solver.presets import resolve

        preset = resolve(self.science)
        few = preset.with_steps(min(preset.steps, TILE_STEPS))
        paper = replace(context, settings=self.science, preset=few)
        with _StepClock(torch.device(self.crew.device)) as clock:
            took = _seconds(lambda: self._fit_block(paper, prior, plan))
        return took + (preset.steps - few.steps) * clock.seconds()

    def _fit_block(self, context: Context, prior: SlidePrior, plan: BlockPlan) -> BlockFit:
        import torch

        from wsi_pgdips.run.fitting import fit_block

        return fit_block(
            context,
            prior,
            plan,
            device=torch.device(self.crew.device),
            threads=self.crew.threads,
            batch=self.crew.batch,
        )

    def _blend(
        self, context: Context, prior: SlidePrior, fit: BlockFit
    ) -> tuple[Fields, FloatArray]:
        from wsi_pgdips.run import blending

        with self._timed("blend"):
            blended = blending.blend(context, prior, [fit])
            blending.save_fields(*blended, self.ledger.fields)
        return blended

    def _render(
        self,
        context: Context,
        prior: SlidePrior,
        fields: Fields,
        slide_matrix: FloatArray,
        sampled: Context,
    ) -> None:
        from wsi_pgdips.layers import store
        from wsi_pgdips.run import rendering, worker

        threads = self.crew.threads

        def rendered(plan: BlockPlan) -> rendering.RenderedBlock:
            return rendering.render_block(
                sampled,
                prior,
                fields,
                slide_matrix,
                plan,
                lambda _: None,
                sampled.source,
                device=self.crew.device,
                threads=threads,
            )

        def write(plan: BlockPlan, block: rendering.RenderedBlock) -> None:
            store.write_block(
                self.output,
                context.grid,
                plan.by,
                plan.bx,
                codes=block.codes,
                tissue=block.tissue,
                residual_rms=block.residual_rms,
                residual_od=block.residual_od,
            )

        first = _first_tiles(sampled, threads)
        cold = _seconds(lambda: rendered(first))
        # what a block takes for its size alone
        empty = replace(first, render=(), fit=(), fraction=())
        blank = rendered(empty)
        area = _area(context, empty)
        compute_px = _seconds(lambda: rendered(empty)) / area
        write_px = _seconds(lambda: write(empty, blank)) / area
        del blank

        computed, written = 0.0, 0.0
        for plan in sampled.plans:
            ticks = [time.perf_counter()]
            worker.render(
                self.job, (plan.by, plan.bx), lambda ticks=ticks: ticks.append(time.perf_counter())
            )
            computed += ticks[-1] - ticks[0] - compute_px * _area(context, plan)
            written += time.perf_counter() - ticks[-1] - write_px * _area(context, plan)
        a_round = max(computed, 0.0) / sum(_rounds(sampled, "render", threads))
        a_tile = max(written, 0.0) / sampled.n_tiles
        areas = [_area(context, p) for p in context.plans]
        rounds = _rounds(context, "render", threads)
        cold = max(cold - a_round - compute_px * area, 0.0)
        self.wall["render"] = cold + self.crew.seconds(
            [n * a_round + px * compute_px for n, px in zip(rounds, areas, strict=True)],
            [
                len(p.render) * a_tile + px * write_px
                for p, px in zip(context.plans, areas, strict=True)
            ],
        )

    def _finalize(
        self,
        context: Context,
        prior: SlidePrior,
        fit: BlockFit,
        fields: Fields,
        slide_matrix: FloatArray,
        sampled: Context,
    ) -> None:
        from wsi_pgdips.run.finishing import write_products
        from wsi_pgdips.run.ledger import load_arrays

        blocks = _blocks(sampled)
        with self._timed("finalize"):
            write_products(context, prior, [fit], fields, slide_matrix, blocks, self.ledger)
        # most of what grows with the tiles: the strips are read twice
        strips = _seconds(lambda: [load_arrays(self.ledger.render(b)) for b in blocks])
        self.wall["finalize"] += 2 * strips * (context.n_tiles / sampled.n_tiles - 1)

    def _disk(self, context: Context, sampled: Context) -> tuple[float, float]:
        """Bytes of the finished layers, and of the output before what is handed on goes."""
        from wsi_pgdips.run.pixels import pixels_bytes

        sizes: dict[str, int] = defaultdict(int)
        for path in self.output.rglob("*"):
            if path.is_file():
                sizes[_kind(path.relative_to(self.output).parts)] += path.stat().st_size
        layers = sizes["rest"] + sizes["data"] * _mass(context) / _mass(sampled)
        handed_on = sizes["work"] + sizes["tiles"] * context.n_tiles / sampled.n_tiles
        if self.job.keep_pixels:
            handed_on += pixels_bytes(context.grid, _tiles_to_fit(context))
        return layers, layers + handed_on + context.n_tiles * self._map_bytes(context)

    def _map_bytes(self, context: Context) -> int:
        """Bytes of the map of a tile's own networks."""
        from wsi_pgdips.solver.presets import HALO

        side = context.grid.tile + 2 * HALO
        return context.stains.n * side**2 * 2 if self.science.preset == "paper" else 0

    def _unseen_mb(self, context: Context) -> float:
        """MiB of a run that the sample had no need of."""
        areas = sorted((_area(context, p) for p in context.plans), reverse=True)
        # the codes of a block that is written while another is computed
        beside = areas[1] * context.stains.n * 2 if self.crew.lanes > 1 and areas[1:] else 0
        maps = max(len(p.render) for p in context.plans) * self._map_bytes(context)
        return (beside + maps) / _MIB

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.wall[stage] = time.perf_counter() - start


class _StepClock:
    """Seconds of the steps of optimisers, seen from outside."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at: dict[int, list[float]] = defaultdict(list)

    def __enter__(self) -> _StepClock:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook = register_optimizer_step_post_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, *_: object) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        self._at[threading.get_ident()].append(time.perf_counter())

    def seconds(self) -> float:
        """Of one step, once it goes at its pace; 0 where there were too few."""
        spans = [np.diff(at[WARM_STEPS:]) for at in self._at.values() if len(at) > WARM_STEPS + 1]
        return float(np.concatenate(spans).mean()) if spans else 0.0


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _spread(fits: Sequence[BlockFit], context: Context) -> BlockFit:
    """Fits of all planned tiles: of one outside the sample, those of another that is in it."""
    own = {t: i for i, t in enumerate((int(y), int(x)) for f in fits for y, x in f.index)}
    tiles = [t for p in context.plans for t in p.render]
    rows = np.array([own.get(t, k % len(own)) for k, t in enumerate(tiles)])

    def of_all(name: str) -> Any:
        return np.concatenate([getattr(f, name) for f in fits])[rows]

    plain = [name for name in asdict(fits[0]) if name not in ("index", "statistics", "concentration")]
    return replace(
        fits[0],
        index=np.array(tiles, np.int32),
        statistics={
            name: np.concatenate([f.statistics[name] for f in fits])[rows]
            for name in fits[0].statistics
        },
        **{name: of_all(name) for name in plain},
    )


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


def _mass(context: Context) -> float:
    """What the bytes of the planned tiles go with: tissue, and a little of every pixel."""
    total = 0.0
    for plan in context.plans:
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


def _vram_mb(device: str) -> float:
    """Most that PyTorch has held of a GPU so far, MiB."""
    import torch

    return torch.cuda.max_memory_allocated(device) / _MIB if device.startswith("cuda") else 0.0


def describe_estimate(found: Estimate) -> list[tuple[str, str]]:
    """(name, text) rows for a reader."""
    from wsi_pgdips.run.inspect import times_text

    who = f"{found.threads} threads" if found.threads > 1 else "one thread"
    if found.workers > 1:
        who = f"{found.workers} processes of {who}"
    each = " in each process" if found.workers > 1 else ""
    rows = [
        ("slide", found.slide),
        ("run", f"{found.preset}, {found.device}, {who}"),
        ("tiles", f"{found.tiles}, {found.tiles_to_fit} of them to fit"),
        ("blocks", str(found.blocks)),
        ("time", f"about {duration_text(found.total_s)}"),
        ("seconds", times_text(found.wall_s)),
        ("memory", f"about {_size_text(found.peak_rss_mb * _MIB)}{each}"),
    ]
    if found.peak_vram_mb:
        rows.append(("GPU memory", f"about {_size_text(found.peak_vram_mb * _MIB)}"))
    most = _size_text(found.peak_disk_bytes)
    rows.append(("disk", f"about {_size_text(found.disk_bytes)}; {most} until the run is done"))
    return rows


def duration_text(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2 h 10 min``."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _size_text(size: float) -> str:
    """Bytes as ``12 MB`` or ``3.4 GB``, of powers of ten as disks are sold."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.3g} MB"
