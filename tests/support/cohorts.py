"""Small cohorts, and a pool that works on their slides one by one in this process."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.cheap_runs import CHEAP, phantom
from wsi_pgdips.pipeline.slide import deconvolve_slide

OPTIONS = ("--preset=fast", *(f"--{k.replace('_', '-')}={v}" for k, v in CHEAP.items()))
GOOD = ("a", "b")


def lay_slides(folder: Path) -> Path:
    """Two that are good, a truncated one, and one without tissue; and a manifest of them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = phantom(folder, "tiny", (500, 700)).path.rename(folder / "a.tiff").read_bytes()
    phantom(folder, "tiny", (600, 400)).path.rename(folder / "b.tiff")
    (folder / "truncated.tiff").write_bytes(whole[: len(whole) // 3])
    glass = np.full((400, 500, 3), 244, np.uint8)
    Image.fromarray(glass).save(folder / "blank.tif", dpi=(50800, 50800))  # 0.5 um a pixel
    names = ("a.tiff", "truncated.tiff", "b.tiff", "blank.tif")
    return table(folder, "slide", *names)


def table(folder: Path, *lines: str) -> Path:
    manifest = folder / "cohort.csv"
    manifest.write_text("".join(f"{line}\n" for line in lines))
    return manifest


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_pgdips", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def alone(slide: Path, output: Path, **options: Any) -> Path:
    """The layers that a run of its own makes."""
    assert deconvolve_slide(slide, output, **{**CHEAP, "preset": "fast", **options}).exit_code == 0
    return output


def layers(job: Path, name: str) -> Path:
    return job / "layers" / f"{name}.ome.zarr"


def summary(job: Path) -> dict[str, Any]:
    return dict(json.loads((job / "summary.json").read_bytes()))


def standings(job: Path) -> dict[str, str]:
    return {row["name"]: row["status"] for row in summary(job)["rows"]}


def failures(job: Path) -> dict[str, dict[str, str]]:
    """Rows of ``failures.csv`` by the slide's name."""
    with (job / "failures.csv").open() as file:
        return {Path(row["slide"]).stem: row for row in csv.DictReader(file)}


def leftovers(job: Path) -> list[str]:
    """What only processes in hand may leave."""
    ends = (".partial", ".running")
    return sorted(str(p.relative_to(job)) for p in job.rglob("*") if p.name.endswith(ends))


class OneByOne:
    """In place of worker processes: this one.

    Args:
        before: called with the name of each slide before it is worked on.
    """

    def __init__(self, before: Callable[[str], object] = lambda name: None) -> None:
        self.before, self.seen = before, list[str]()

    def __call__(self, *_: object) -> tuple[OneByOne, int]:
        return self, 1

    def map(
        self, work: Callable[..., Any], job: Any, names: Sequence[str], on_tile: Callable[[], None]
    ) -> Iterator[tuple[str, Any]]:
        for name in names:
            self.before(name)
            self.seen.append(name)
            yield name, work(job, name)
            on_tile()

    def close(self) -> None: ...
