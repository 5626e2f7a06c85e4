"""What the processes of a run have used so far."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pgdips.layers.disk import write_atomic


@dataclass(frozen=True)
class Usage:
    """Of one process, or several.

    Attributes:
        cpu_s: seconds of CPU, summed. peak_rss_mb: resident memory, of the largest, MiB.
        peak_vram_mb: what PyTorch held on a GPU, the most of any; 0 without one.
    """

    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    peak_vram_mb: float = 0.0


class UsageLog:
    """Seconds of each stage and the most memory, kept in a file of each part of a run.

    Args:
        folder: of these files. part: that this process does.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self._folder, self._part = folder, part
        self._own = self._read(folder / f"{part}.json")

    def add(self, stage: str, wall_s: float, used: Usage, *, cpu_s: float) -> None:
        """A stage has ended; ``used`` of the processes until now, ``cpu_s`` of it in the stage."""
        for name, seconds in (("wall_s", wall_s), ("cpu_s", cpu_s)):
            of = self._own.setdefault(name, {})
            of[stage] = of.get(stage, 0.0) + seconds
        for name in ("peak_rss_mb", "peak_vram_mb"):
            self._own[name] = max(self._own.get(name, 0.0), getattr(used, name))
        write_atomic(self._folder / f"{self._part}.json", json.dumps(self._own).encode())

    def total(self) -> dict[str, Any]:
        """Of all parts: they work at once, so seconds on the wall are those of the slowest."""
        parts = [self._read(path) for path in sorted(self._folder.glob("*.json"))]
        stages = list(dict.fromkeys(s for p in parts for s in p.get("wall_s", {})))
        seconds = {
            name: {s: round(of(p.get(name, {}).get(s, 0.0) for p in parts), 3) for s in stages}
            for name, of in (("wall_s", max), ("cpu_s", sum))
        }
        return seconds | {
            name: round(max((p.get(name, 0.0) for p in parts), default=0.0), 1)
            for name in ("peak_rss_mb", "peak_vram_mb")
        }

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            return {}


def used_here() -> Usage:
    """Of this process."""
    return Usage(time.process_time(), _peak_rss_mb(), _peak_vram_mb())


def used_by_all(processes: Iterable[Usage]) -> Usage:
    """Of them together."""
    every = list(processes)
    return Usage(
        sum(p.cpu_s for p in every),
        max((p.peak_rss_mb for p in every), default=0.0),
        max((p.peak_vram_mb for p in every), default=0.0),
    )


def _peak_rss_mb() -> float:
    # what getrusage says on Linux includes the process that started this one
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _peak_vram_mb() -> float:
    torch = sys.modules.get("torch")  # where nobody has loaded it, nobody has used a GPU
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    devices = range(torch.cuda.device_count())
    return float(max(torch.cuda.max_memory_allocated(i) for i in devices)) / 2**20
