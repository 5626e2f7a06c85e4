"""The benchmark of speed: whole runs, their parts, and what others take for the same tiles."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import device_name, matmul_rate
from benchmarks.speed.parts import Parts, paper_step
from benchmarks.speed.peers import PEERS, peer_time
from benchmarks.speed.records import (
    CPU_SECONDS,
    END_TO_END,
    ESTIMATE,
    SECONDS,
    WITH_WORKERS,
    Speeds,
    check_folder,
    save_speeds,
)
from benchmarks.speed.runs import ONCE, STAGES, TimedRun, foreseen, slope, timed_run
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.machine import choose_device, quiet_threads, usable_cpus
from wsi_pgdips.phantom.make import make_phantom
from wsi_pgdips.solver.presets import PAPER_STEPS

Say = Callable[[str], None]
PRESETS = ("fast", "balanced")
SIDES, QUICK_SIDES = (4096, 12288), (3072, 6144)  # pixels of the two phantoms of a slope
REPEATS = 3  # runs, of which the fastest counts
WORKERS_BLOCK = 2048  # side of a block where workers are compared, so that there are 16 and more
WORKERS, PAIRS = (1, 2), 5  # pairs of runs of both, of which the median counts
BATCHES = (1, 2, 4)
REAL = {
    "ectopic_pancreas_HE_crop_40x_GT450.svs": "he",
    "metaplasia_trypsin_DAB_20x.svs": "hdab",
    "BS9_HE2_40x_AT2.svs": "he",
}


@dataclass(frozen=True)
class SpeedRequest:
    """What is to be measured.

    Attributes:
        out: file of records. data: folder with ``slides/``, or None for phantoms alone.
        device: as of a run. quick: a slice of a few minutes.
        side: of the larger phantom, in place of the usual.
    """

    out: Path
    data: Path | None = None
    device: str = "auto"
    quick: bool = False
    side: int | None = None


def run_speed(request: SpeedRequest, say: Say = lambda line: None) -> Speeds:
    """Measure; the file is rewritten after each part.

    Raises:
        SettingsError: no such folder. OutputError: the results cannot be written.
        IncompleteRunError: a run failed.
    """
    check_folder(request.out)
    if request.data is not None and not (request.data / "slides").is_dir():
        raise SettingsError(
            "no such folder of data", expected="a folder with slides/", found=request.data
        )
    quiet_threads()
    device = choose_device(request.device)
    speeds = Speeds(device_name(device))
    sides = QUICK_SIDES if request.quick else SIDES
    sides = (sides[0], request.side or sides[1])
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-speed-") as folder:
        say(f"{speeds.device}: two phantoms of {sides[0]} and {sides[1]} pixels")
        slides = [_phantom(Path(folder), side) for side in sides]
        stains = str(slides[0].with_name("small.stains.toml"))
        for measure in (_presets, _peers, _parts, *(() if request.quick else (_workers, _paper))):
            measure(speeds, slides, stains, device, request, say)
            save_speeds(request.out, speeds)
    if request.data is not None and not request.quick:
        for name, stains in REAL.items():
            _real(speeds, request.data / "slides" / name, stains, device, say)
            save_speeds(request.out, speeds)
    return speeds


def _phantom(folder: Path, side: int) -> Path:
    """A uniform phantom; the first one's stains serve both."""
    name = "small" if not any(folder.glob("small.tiff")) else "large"
    make_phantom(folder / f"{name}.tiff", shape=(side, side), seed=1)
    return folder / f"{name}.tiff"


def _presets(
    speeds: Speeds, slides: list[Path], stains: str, device: str, request: SpeedRequest, say: Say
) -> None:
    cores = usable_cpus()
    ways = {preset: _options(preset, device) for preset in PRESETS}
    if device == "cpu" and cores > 1 and not request.quick:
        ways[WITH_WORKERS] = (*ways["fast"], *_each_on_a_core(cores))
    for preset, options in ways.items():
        again: list[list[TimedRun]] = [[] for _ in slides]
        for _ in range(1 if request.quick else REPEATS):  # in turn: a machine has its slow minutes
            for slide, of_slide in zip(slides, again, strict=True):
                of_slide.append(timed_run(slide, stains, *options))
        runs = [min(of_slide, key=lambda r: r.seconds) for of_slide in again]
        small, large = runs

        for stage in STAGES:
            for metric, of in ((SECONDS, "wall"), (CPU_SECONDS, "cpu")):
                ends = [(r.tiles, getattr(r, of)[stage]) for r in runs]
                speeds.add("phantom", preset, stage, metric, slope(*ends))
        wall, cpu = (
            slope((small.tiles, a), (large.tiles, b))
            for a, b in ((small.seconds, large.seconds), (small.cpu_seconds, large.cpu_seconds))
        )
        speeds.add("phantom", preset, END_TO_END, SECONDS, wall)
        speeds.add("phantom", preset, END_TO_END, CPU_SECONDS, cpu)
        speeds.add("phantom", preset, END_TO_END, "tiles_per_s", 1 / wall)
        speeds.add("phantom", preset, END_TO_END, "over_cpu_seconds_over_cores", wall * cores / cpu)
        speeds.add("phantom", preset, END_TO_END, "tiles", large.tiles)
        speeds.add("phantom", preset, END_TO_END, "peak_rss_mb", large.peak_rss_mb)
        if large.peak_vram_mb:
            speeds.add("phantom", preset, END_TO_END, "peak_vram_mb", large.peak_vram_mb)
        written = (large.written - small.written) / (large.tiles - small.tiles)
        speeds.add("phantom", preset, END_TO_END, "bytes_written_per_tile", written)
        for stage in ONCE:
            speeds.add("phantom", preset, stage, "seconds", large.wall[stage])
        say(f"  {preset}: {wall:.4f} s a tile ({cpu:.4f} of CPU), {large.tiles} tiles")


def _peers(
    speeds: Speeds, slides: list[Path], stains: str, device: str, request: SpeedRequest, say: Say
) -> None:
    names = list(PEERS)[:1] if request.quick else list(PEERS)
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    for slide in slides:
        with _open(slide, stains, "fast", "cpu") as parts:
            for name in names:
                took = peer_time(name, parts.job, parts.tiles)
                found[name].append((len(parts.tiles), took.wall, took.cpu))
    for name, (small, large) in found.items():
        wall = slope((small[0], small[1]), (large[0], large[1]))
        cpu = slope((small[0], small[2]), (large[0], large[2]))
        speeds.add("phantom", name, END_TO_END, SECONDS, wall)
        speeds.add("phantom", name, END_TO_END, CPU_SECONDS, cpu)
        speeds.add("phantom", name, END_TO_END, "tiles_per_s", 1 / wall)
        say(f"  {name}: {wall:.4f} s a tile ({cpu:.4f} of CPU)")


def _parts(
    speeds: Speeds, slides: list[Path], stains: str, device: str, request: SpeedRequest, say: Say
) -> None:
    rate = matmul_rate(device)
    speeds.add("machine", "matmul", "ceiling", "gflops", rate / 1e9)
    for preset in PRESETS:
        with _open(slides[0], stains, preset, device) as parts:
            if preset == PRESETS[0]:
                read = parts.read()
                speeds.add("phantom", "ceiling", "read", SECONDS, read.wall)
                speeds.add("phantom", "ceiling", "read", CPU_SECONDS, read.cpu)
            alone = parts.solve()
            flops = parts.network_flops()
        for stage, took in alone.items():
            method = "ceiling" if stage == "write" else preset
            if method == preset or preset == PRESETS[0]:
                name = stage if method == "ceiling" else f"{stage}-alone"
                speeds.add("phantom", method, name, SECONDS, took.wall)
                speeds.add("phantom", method, name, CPU_SECONDS, took.cpu)
        say(f"  {preset} alone: " + ", ".join(f"{k} {v.wall:.4f}" for k, v in alone.items()))
        if preset == "balanced":
            speeds.add("phantom", preset, "floor", "gflop_per_tile", flops / 1e9)
            speeds.add("phantom", preset, "floor", SECONDS, flops / rate)
            speeds.add(
                "phantom", preset, "floor", "share_achieved", flops / rate / alone["render"].wall
            )
        if device.startswith("cuda"):
            busy = (alone["fit"].wall + alone["render"].wall) / speeds.value(
                "phantom", preset, END_TO_END, SECONDS
            )
            speeds.add("phantom", preset, END_TO_END, "gpu_busy_share", min(busy, 1.0))


def _workers(
    speeds: Speeds, slides: list[Path], stains: str, device: str, request: SpeedRequest, say: Say
) -> None:
    """One worker on one core against two on two, in blocks so small that there are enough.

    A worker of one thread still decodes ahead and compresses in others: with cores to spare one
    worker takes them too, and two would seem to gain nothing.
    """
    took: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(PAIRS):
        for workers in WORKERS:
            options = (*_options("fast", device), *_each_on_a_core(workers))
            cores = workers if device == "cpu" else None
            run = timed_run(slides[1], stains, *options, cores=cores)
            took[workers].append(run.wall["fit"] + run.wall["render"])
    for workers, seconds in took.items():
        name = f"tiles_per_s@workers={workers}"
        speeds.add("phantom-blocks", "fast", "fit+render", name, run.tiles / median(seconds))
    one, most = took[WORKERS[0]], took[WORKERS[-1]]
    ratio = median(a / b for a, b in zip(one, most, strict=True))
    speeds.add("phantom-blocks", "fast", "fit+render", "two_workers_over_one", ratio)
    say(f"  two workers: {ratio:.2f} times one")


def _options(preset: str, device: str) -> tuple[str, ...]:
    return ("--preset", preset, "--device", device)


def _each_on_a_core(workers: int) -> tuple[str, ...]:
    """Options of workers of one thread, and of blocks so small that each has several."""
    return ("--workers", str(workers), "--threads", "1", "--block", str(WORKERS_BLOCK))


def _paper(
    speeds: Speeds, slides: list[Path], stains: str, device: str, request: SpeedRequest, say: Say
) -> None:
    """``paper`` by the slope of a few of its steps: a tile of them all takes hours on a CPU."""
    with _open(slides[0], stains, "paper", device) as parts:
        for batch in BATCHES:
            step = paper_step(parts, batch=batch)
            speeds.add("phantom", "paper", "solve", f"tiles_per_s@batch={batch}", 1 / step)
            if batch == 1:
                speeds.add("phantom", "paper", "solve", "seconds_per_step", step)
                speeds.add("phantom", "paper", END_TO_END, SECONDS, step * PAPER_STEPS)
    say(f"  paper: {speeds.value('phantom', 'paper', END_TO_END, SECONDS):.0f} s a tile")


def _real(speeds: Speeds, slide: Path, stains: str, device: str, say: Say) -> None:
    """A real slide from end to end; all stages but those that do not grow with it, by its tiles."""
    if not slide.exists():
        return
    for preset in PRESETS:
        options = _options(preset, device)
        said = foreseen(slide, stains, *options)
        run = timed_run(slide, stains, *options)
        for metric, value in run.found.items():
            speeds.add(slide.stem, preset, ESTIMATE, metric, said[metric])
            speeds.add(slide.stem, preset, "run", metric, value)
        speeds.add(slide.stem, preset, END_TO_END, SECONDS, run.seconds / run.tiles)
        speeds.add(slide.stem, preset, END_TO_END, CPU_SECONDS, run.cpu_seconds / run.tiles)
        speeds.add(slide.stem, preset, END_TO_END, "tiles", run.tiles)
        for stage in ONCE:
            speeds.add(slide.stem, preset, stage, "seconds", run.wall[stage])
        say(
            f"  {slide.stem}, {preset}: {run.seconds / run.tiles:.4f} s a tile; "
            f"{said['seconds']:.1f} s foreseen, {run.found['seconds']:.1f} taken"
        )
    with _open(slide, stains, "fast", "cpu") as parts:
        name = next(iter(PEERS))
        took = peer_time(name, parts.job, parts.tiles)
        tiles = len(parts.tiles)
    speeds.add(slide.stem, name, END_TO_END, SECONDS, took.wall / tiles)
    speeds.add(slide.stem, name, END_TO_END, CPU_SECONDS, took.cpu / tiles)
    say(f"  {slide.stem}, {name}: {took.wall / tiles:.4f} s a tile")


@contextlib.contextmanager
def _open(slide: Path, stains: str, preset: str, device: str) -> Iterator[Parts]:
    with contextlib.closing(Parts(slide, stains, preset, device, usable_cpus())) as parts:
        yield parts
