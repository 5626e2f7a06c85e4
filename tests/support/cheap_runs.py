"""Small phantoms, cheap settings, and outputs compared byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.phantom.make import make_phantom
from wsi_pgdips.pipeline.record import RunSummary
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.progress import QuietProgress

PHANTOMS = Path(__file__).parents[1] / "phantoms"
SHAPE = (1100, 1500)  # four blocks of 1024, the last ones cut, and thirty tiles of 256
CHEAP: dict[str, Any] = {
    "tile": 256,
    "block": 1024,
    "calibration_tiles": 2,
    "calibration_steps": 5,
    "device": "cpu",
}
FAST: dict[str, Any] = {**CHEAP, "preset": "fast"}
BALANCED: dict[str, Any] = {**CHEAP, "preset": "balanced"}
PAPER: dict[str, Any] = {**CHEAP, "preset": "paper", "iterations": 1}


@dataclass(frozen=True)
class Slide:
    """A slide and the stain file to run it with."""

    path: Path
    stains: Path

    def run(self, output: Path, **options: Any) -> RunSummary:
        return deconvolve_slide(self.path, output, stains=str(self.stains), **options)


def phantom(folder: Path, name: str, shape: tuple[int, int]) -> Slide:
    made = make_phantom(folder / f"{name}.tiff", config=PHANTOMS / f"{name}.toml", shape=shape)
    return Slide(made.truth.path, made.stains)


def tree(output: Path) -> dict[str, bytes]:
    """All bytes of an output, but for the one file that tells runs apart."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path != output / "provenance" / "run.json"
    }


def differing(a: Path, b: Path) -> list[str]:
    """Files that are not the same bytes in two outputs."""
    one, other = tree(a), tree(b)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def unlike(a: Path, b: Path) -> dict[str, float]:
    """Columns of two tables of tiles -> the share of tiles that differ, to tell where it began."""
    one, other = (open_layers(path).tiles for path in (a, b))
    shares = {
        name: sum(x != y for x, y in zip(*(t[name].to_pylist() for t in (one, other)), strict=True))
        / max(one.num_rows, 1)
        for name in one.column_names
    }
    return {name: share for name, share in shares.items() if share}


class StopAt(QuietProgress):
    """An impatient user: interrupts when a stage begins."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def stage(self, name: str, total: int, unit: str) -> None:
        if name == self._stage:
            raise KeyboardInterrupt


def stop_at(slide: Slide, output: Path, stage: str, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        slide.run(output, progress=StopAt(stage), **options)
