"""Whole runs of the program, each a process of its own, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pgdips.errors import IncompleteRunError
from wsi_pgdips.layers.provenance import RUN_RECORD

ONCE = ("prepare", "calibrate")  # stages whose time does not grow with the slide
STAGES = ("fit", "blend", "render", "finalize")
ESTIMATED = ("tiles", "seconds", "disk_bytes", "peak_rss_mb")  # of a whole run, by an estimate


@dataclass(frozen=True)
class TimedRun:
    """Time, memory and disk that a run took.

    Attributes:
        tiles: rendered. wall, cpu: seconds by stage. peak_rss_mb: of its largest process.
        peak_vram_mb: 0 on a CPU. written: bytes of the layers.
    """

    tiles: int
    wall: dict[str, float]
    cpu: dict[str, float]
    peak_rss_mb: float
    peak_vram_mb: float
    written: int

    @property
    def seconds(self) -> float:
        """Wall seconds of all stages that grow with the slide."""
        return sum(self.wall.get(s, 0.0) for s in STAGES)

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.get(s, 0.0) for s in STAGES)

    @property
    def found(self) -> dict[str, float]:
        """The figures that ``estimated`` gives before a run."""
        values = (self.tiles, sum(self.wall.values()), self.written, self.peak_rss_mb)
        return dict(zip(ESTIMATED, values, strict=True))


def timed_run(slide: Path, stains: str, *options: str, cores: int | None = None) -> TimedRun:
    """``wsi-pgdips run`` of a slide into a folder that is thrown away.

    Args:
        options: of the program. cores: that it may use, all by default.

    Raises:
        IncompleteRunError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-speed-") as folder:
        output = Path(folder) / "out.ome.zarr"
        _program("run", slide, output, "--stains", stains, "--quiet", *options, cores=cores)
        record = json.loads((output / RUN_RECORD).read_text())
        written = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    return TimedRun(
        int(record["tiles"]),
        record["wall_s"],
        record["cpu_s"],
        float(record["peak_rss_mb"]),
        float(record.get("peak_vram_mb", 0.0)),
        written,
    )


def estimated(slide: Path, stains: str, *options: str) -> dict[str, float]:
    """The estimate of a run by ``wsi-pgdips estimate``: each of ``ESTIMATED``, in the run's units.

    Raises:
        IncompleteRunError: it failed.
    """
    found = json.loads(_program("estimate", slide, "--stains", stains, "--json", *options))
    values = (found["tiles"], found["total_s"], found["disk_bytes"], found["peak_rss_mb"])
    return dict(zip(ESTIMATED, values, strict=True))


def _program(command: str, slide: Path, *options: str | Path, cores: int | None = None) -> str:
    """Run a command of the program on a slide; returns what it printed."""
    asked = [sys.executable, "-m", "wsi_pgdips", command, str(slide), *map(str, options)]
    done = subprocess.run(
        asked, capture_output=True, text=True, check=False, preexec_fn=_confined_to(cores)
    )
    if done.returncode != 0:
        raise IncompleteRunError(
            f"a process of the benchmark failed: {command}",
            found=done.stderr.strip(),
            where=slide.name,
        )
    return done.stdout


def _confined_to(cores: int | None) -> Callable[[], None] | None:
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return None
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    return lambda: os.sched_setaffinity(0, chosen)


def slope(tiles: Sequence[int], values: Sequence[float]) -> float:
    """The part of a value that each further tile adds, from two slides: their tiles and values."""
    return (values[1] - values[0]) / (tiles[1] - tiles[0])
