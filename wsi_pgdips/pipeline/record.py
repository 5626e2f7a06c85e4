"""The record of a run: its outcome, what went wrong with its tiles, and what it used."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import Fault
from wsi_pgdips.records import Verdict


@dataclass(frozen=True)
class RunSummary:
    """Outcome of one slide.

    Attributes:
        path: the layers. tiles: rendered. fitted: of them fitted on their own.
        inherited: tiles whose parameters come from neighbours or the slide.
        failed_tiles: tiles that could not be read or fitted. failed_blocks: blocks not written.
        flags: what could not be done on this slide (``no_glass``...).
        seam_step_od: label -> 99th percentile of the seam step in OD, None below presence.
        wall_s: stage -> seconds. already_done: the slide had been finished before.
        incomplete: something could not be read or fitted; the same command tries it again.
        verdict: whether the result can be used. strict: without a ``pass`` the exit code is 3.
    """

    path: Path
    tiles: int
    fitted: int
    inherited: int
    failed_tiles: int
    failed_blocks: int
    flags: tuple[str, ...]
    seam_step_od: dict[str, float | None]
    wall_s: dict[str, float] = field(default_factory=dict)
    already_done: bool = False
    incomplete: bool = False
    verdict: Verdict = field(default_factory=Verdict)
    strict: bool = False

    @classmethod
    def of_record(
        cls, path: Path, record: Mapping[str, Any], *, already_done: bool = False
    ) -> Self:
        """Return the summary of a ``provenance/run.json``."""
        return cls(
            path=path,
            tiles=record.get("tiles", 0),
            fitted=record.get("tiles_fitted", 0),
            inherited=record.get("tiles_inherited", 0),
            failed_tiles=record.get("failed_tiles", 0),
            failed_blocks=record.get("failed_blocks", 0),
            flags=tuple(record.get("flags", ())),
            seam_step_od=record.get("seam_step_od", {}),
            wall_s=record.get("wall_s", {}),
            already_done=already_done,
            incomplete=record.get("status") == "incomplete",
            verdict=Verdict.of_json(record.get("verdict")),
        )

    @property
    def has_failures(self) -> bool:
        """True if parts of the slide could not be read, fitted or rendered."""
        return bool(self.incomplete or self.failed_tiles or self.failed_blocks)

    @property
    def exit_code(self) -> int:
        """0 if the slide is done; 3 with failures, or strictly without a ``pass``."""
        doubtful = self.strict and self.verdict.status != "pass"
        return 3 if self.has_failures or doubtful else 0


class TileFaults:
    """Faults of tiles that a run survived: the first of each kind, and how many there were.

    A kind is a type of exception at one place of the code in one stage.

    Args:
        stage: in which tiles are added. kinds: to begin with, as ``kinds`` returns them.
    """

    def __init__(self, stage: str = "", kinds: Iterable[Mapping[str, Any]] = ()) -> None:
        self._stage = stage
        self._kinds: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.merge(kinds)

    @property
    def kinds(self) -> list[dict[str, Any]]:
        """Kinds for JSON: stage, type, message, place, ``tile`` (ty, tx) of the first, count."""
        return list(self._kinds.values())

    def add(self, tile: tuple[int, int], fault: Fault) -> None:
        """Count the fault of one tile."""
        self.merge([{"stage": self._stage, **fault._asdict(), "tile": list(tile), "count": 1}])

    def merge(self, kinds: Iterable[Mapping[str, Any]]) -> None:
        """Count the faults of other tiles."""
        for kind in kinds:
            key = (kind["stage"], kind["type"], kind["place"])
            first = self._kinds.setdefault(key, {**kind, "count": 0})
            first["count"] += kind["count"]

    def lines(self) -> list[str]:
        """Return one line of text for each kind."""
        return [
            f"{k['stage']}: {k['count']} tiles failed by {k['type']}: {k['message']} "
            f"({k['place'] or 'place unknown'}), first tile {tuple(k['tile'])}"
            for k in self.kinds
        ]


@dataclass(frozen=True)
class Usage:
    """CPU time and memory of one process, or of several.

    Attributes:
        cpu_s: seconds of CPU, summed. peak_rss_mb: resident memory of the largest process, MiB.
        peak_vram_mb: the most that PyTorch held on any GPU, MiB; 0 without one.
    """

    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    peak_vram_mb: float = 0.0


class UsageLog:
    """Seconds of each stage and the most memory, kept in a file of each part of a run.

    Args:
        folder: of these files. part: name of the part that this process does.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self._folder, self._own = folder, folder / f"{part}.json"

    @contextlib.contextmanager
    def timed(self, stage: str, used: Callable[[], Usage] | None = None) -> Iterator[None]:
        """Add a stage, unless it ends with an exception.

        Args:
            used: returns the usage of the stage's processes; by default of this process.
        """
        used = used or used_here
        start, before = time.monotonic(), used()
        yield
        wall_s, after = time.monotonic() - start, used()
        # a worker that died took what it had used with it
        cpu_s, kept = max(after.cpu_s - before.cpu_s, 0.0), self._read(self._own)
        for name, seconds in (("wall_s", wall_s), ("cpu_s", cpu_s)):
            of = kept.setdefault(name, {})
            of[stage] = of.get(stage, 0.0) + seconds
        for name in ("peak_rss_mb", "peak_vram_mb"):
            kept[name] = max(kept.get(name, 0.0), getattr(after, name))
        write_atomic(self._own, json.dumps(kept).encode())

    def total(self) -> dict[str, Any]:
        """Return the usage of all parts; they work at once, so the slowest sets the wall time."""
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
    """Return what this process has used."""
    return Usage(time.process_time(), _peak_rss_mb(), _peak_vram_mb())


def used_by_all(processes: Iterable[Usage]) -> Usage:
    """Return what several processes have used together."""
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
    torch = sys.modules.get("torch")  # not loaded: no GPU was used
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    devices = range(torch.cuda.device_count())
    return float(max(torch.cuda.max_memory_allocated(i) for i in devices)) / 2**20
