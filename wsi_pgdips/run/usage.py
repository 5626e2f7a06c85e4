"""What the processes of a run have used so far."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


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
