"""The benchmark of speed: whole runs, their parts, and what others take for the same tiles."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import device_name, matmul_rate
from benchmarks.records import Records, Say, check_places, kept_records, lookup, silent
from benchmarks.speed.parts import open_parts
from benchmarks.speed.peers import PEERS, peer_time
from benchmarks.speed.runs import ONCE, STAGES, TimedRun, estimated, slope, timed_run
from wsi_pgdips.machine import choose_device, quiet_threads, usable_cpus
from wsi_pgdips.phantom.make import make_phantom
from wsi_pgdips.solver.presets import PAPER_STEPS

END_TO_END, ESTIMATE = "end-to-end", "estimate"
SECONDS, CPU_SECONDS = "seconds_per_tile", "cpu_seconds_per_tile"
WITH_WORKERS = "fast-workers"  # the method fast, by a process of one thread on each core
PRESETS = ("fast", "balanced")  # that are run from end to end
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


def run(
    out: Path,
    *,
    data: Path | None = None,
    device: str = "auto",
    quick: bool = False,
    side: int | None = None,
    say: Say = silent,
) -> Records:
    """Measure; the file is rewritten after each part, and keeps the records of other devices.

    Args:
        out: file of records. data: folder with ``slides/``, or None for phantoms alone.
        device: as of a run. quick: a slice of a few minutes.
        side: of the larger phantom, in place of the usual. say: told one line a method.

    Returns:
        The records of this device.

    Raises:
        SettingsError: no such folder, or the file holds something else.
        OutputError: the results cannot be written. IncompleteRunError: a run failed.
    """
    check_places(out, data, "slides")
    kept = kept_records("speed", out)
    quiet_threads()
    device = choose_device(device)
    records = Records("speed", {"device": device_name(device)})
    sides = QUICK_SIDES if quick else SIDES
    sides = (sides[0], side or sides[1])
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-speed-") as folder:
        say(f"{device_name(device)}: two phantoms of {sides[0]} and {sides[1]} pixels")
        made = [
            make_phantom(Path(folder) / f"{name}.tiff", shape=(side, side), seed=1)
            for name, side in zip(("small", "large"), sides, strict=True)
        ]
        slides, stains = [m.truth.path for m in made], str(made[0].stains)
        bench = _Phantoms(records.at(case="phantom"), slides, stains, device, quick, say)
        slow = () if quick else (bench.workers, bench.paper)
        for measure in (bench.presets, bench.peers, bench.parts, *slow):
            measure()
            kept.put(records, "device")
            kept.save(out)
    if data is not None and not quick:
        for name, stains in REAL.items():
            slide = data / "slides" / name
            if slide.exists():
                _real(records.at(case=slide.stem), slide, stains, device, say)
                kept.put(records, "device")
                kept.save(out)
    return records


@dataclass(frozen=True)
class _Phantoms:
    """Everything that is measured on the two phantoms."""

    records: Records
    slides: list[Path]
    stains: str
    device: str
    quick: bool
    say: Say

    def presets(self) -> None:
        """Whole runs: the slope over the two phantoms, and what is done once a slide."""
        cores = usable_cpus()
        ways = {preset: _options(preset, self.device) for preset in PRESETS}
        if self.device == "cpu" and cores > 1 and not self.quick:
            ways[WITH_WORKERS] = (*ways["fast"], *_each_on_a_core(cores))
        for preset, options in ways.items():
            again: list[list[TimedRun]] = [[] for _ in self.slides]
            for _ in range(1 if self.quick else REPEATS):  # in turn: a machine has slow minutes
                for slide, of_slide in zip(self.slides, again, strict=True):
                    of_slide.append(timed_run(slide, self.stains, *options))
            runs = [min(of_slide, key=lambda r: r.seconds) for of_slide in again]
            small, large = runs
            tiles, own = (small.tiles, large.tiles), self.records.at(method=preset)
            for stage in STAGES:
                walls, cpus = ([getattr(r, of)[stage] for r in runs] for of in ("wall", "cpu"))
                _add(own, stage, slope(tiles, walls), slope(tiles, cpus))
            wall = slope(tiles, (small.seconds, large.seconds))
            cpu = slope(tiles, (small.cpu_seconds, large.cpu_seconds))
            found: dict[str, float] = {
                "tiles_per_s": 1 / wall,
                "over_cpu_seconds_over_cores": wall * cores / cpu,
                "tiles": large.tiles,
                "peak_rss_mb": large.peak_rss_mb,
                "bytes_written_per_tile": slope(tiles, (small.written, large.written)),
            }
            if large.peak_vram_mb:
                found["peak_vram_mb"] = large.peak_vram_mb
            _add(own, END_TO_END, wall, cpu, **found)
            for stage in ONCE:
                own.add({"seconds": large.wall[stage]}, stage=stage)
            self.say(f"  {preset}: {wall:.4f} s a tile ({cpu:.4f} of CPU), {large.tiles} tiles")

    def peers(self) -> None:
        """tiatoolbox on the same tiles."""
        tiles: list[int] = []
        times: dict[str, list[tuple[float, float]]] = {
            m: [] for m in PEERS[: 1 if self.quick else None]
        }
        for slide in self.slides:
            with open_parts(slide, self.stains, "fast", "cpu") as parts:
                tiles.append(len(parts.tiles))
                for name, took in times.items():
                    took.append(peer_time(name, slide, parts.tiles))
        for name, took in times.items():
            wall, cpu = (slope(tiles, seconds) for seconds in zip(*took, strict=True))
            _add(self.records.at(method=name), END_TO_END, wall, cpu, tiles_per_s=1 / wall)
            self.say(f"  {name}: {wall:.4f} s a tile ({cpu:.4f} of CPU)")

    def parts(self) -> None:
        """Parts of a run by themselves, and the floor of the slide's network."""
        rate = matmul_rate(self.device)
        machine = self.records.at(case="machine", method="matmul")
        machine.add({"gflops": rate / 1e9}, stage="ceiling")
        for preset in PRESETS:
            own = self.records.at(method=preset)
            with open_parts(self.slides[0], self.stains, preset, self.device) as parts:
                read = parts.read() if preset == PRESETS[0] else None
                alone, flops = parts.solve(), parts.network_flops()
            if read is not None:
                for stage, took in (("read", read), ("write", alone["write"])):
                    _add(self.records.at(method="ceiling"), stage, took.wall, took.cpu)
            for stage in ("fit", "render"):
                _add(own, f"{stage}-alone", alone[stage].wall, alone[stage].cpu)
            self.say(
                f"  {preset} alone: " + ", ".join(f"{k} {v.wall:.4f}" for k, v in alone.items())
            )
            if preset == "balanced":
                share = flops / rate / alone["render"].wall
                found = {"gflop_per_tile": flops / 1e9, SECONDS: flops / rate}
                own.add({**found, "share_achieved": share}, stage="floor")
            if self.device.startswith("cuda"):
                seconds = lookup(self.records.frame, "case", "method", "stage", "metric")
                whole = seconds("phantom", preset, END_TO_END, SECONDS)
                busy = (alone["fit"].wall + alone["render"].wall) / whole
                own.add({"gpu_busy_share": min(busy, 1.0)}, stage=END_TO_END)

    def workers(self) -> None:
        """One worker on one core against two on two, in blocks so small that there are enough.

        A worker of one thread still decodes ahead and compresses in others: with cores to spare one
        worker takes them too, and two would seem to gain nothing.
        """
        took: dict[int, list[float]] = {workers: [] for workers in WORKERS}
        for _ in range(PAIRS):
            for workers, seconds in took.items():
                options = (*_options("fast", self.device), *_each_on_a_core(workers))
                cores = workers if self.device == "cpu" else None
                run = timed_run(self.slides[1], self.stains, *options, cores=cores)
                seconds.append(run.wall["fit"] + run.wall["render"])
        one, two = took.values()
        found = {f"tiles_per_s@workers={n}": run.tiles / median(s) for n, s in took.items()}
        found["two_workers_over_one"] = ratio = median(a / b for a, b in zip(one, two, strict=True))
        own = self.records.at(case="phantom-blocks", method="fast")
        own.add(found, stage="fit+render")
        self.say(f"  two workers: {ratio:.2f} times one")

    def paper(self) -> None:
        """``paper`` by the slope of a few of its steps: a tile of them all takes hours on a CPU."""
        own = self.records.at(method="paper")
        with open_parts(self.slides[0], self.stains, "paper", self.device) as parts:
            steps = parts.paper_steps(BATCHES)
        found = {f"tiles_per_s@batch={batch}": 1 / step for batch, step in steps.items()}
        own.add({**found, "seconds_per_step": steps[1]}, stage="solve")
        own.add({SECONDS: steps[1] * PAPER_STEPS}, stage=END_TO_END)
        self.say(f"  paper: {steps[1] * PAPER_STEPS:.0f} s a tile")


def _real(records: Records, slide: Path, stains: str, device: str, say: Say) -> None:
    """A real slide from end to end; all stages but those that do not grow with it, by its tiles."""
    for preset in PRESETS:
        options, own = _options(preset, device), records.at(method=preset)
        estimate = estimated(slide, stains, *options)
        run = timed_run(slide, stains, *options)
        own.add(estimate, stage=ESTIMATE)
        own.add(run.found, stage="run")
        seconds = run.seconds / run.tiles
        _add(own, END_TO_END, seconds, run.cpu_seconds / run.tiles, tiles=run.tiles)
        for stage in ONCE:
            own.add({"seconds": run.wall[stage]}, stage=stage)
        say(
            f"  {slide.stem}, {preset}: {seconds:.4f} s a tile; "
            f"{estimate['seconds']:.1f} s estimated, {run.found['seconds']:.1f} taken"
        )
    name = PEERS[0]
    with open_parts(slide, stains, "fast", "cpu") as parts:
        wall, cpu = (all_s / len(parts.tiles) for all_s in peer_time(name, slide, parts.tiles))
    _add(records.at(method=name), END_TO_END, wall, cpu)
    say(f"  {slide.stem}, {name}: {wall:.4f} s a tile")


def _add(records: Records, stage: str, wall: float, cpu: float, **more: float) -> None:
    """Add the seconds a tile of a stage, and other figures of it."""
    records.add({SECONDS: wall, CPU_SECONDS: cpu, **more}, stage=stage)


def _options(preset: str, device: str) -> tuple[str, ...]:
    return ("--preset", preset, "--device", device)


def _each_on_a_core(workers: int) -> tuple[str, ...]:
    """Options of workers of one thread, and of blocks so small that each has several."""
    return ("--workers", str(workers), "--threads", "1", "--block", str(WORKERS_BLOCK))
