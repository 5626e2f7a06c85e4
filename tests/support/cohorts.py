"""Small cohorts, what may go wrong with them, and a pool that runs their slides in this process."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.cheap_runs import CHEAP, phantom
from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.state import StateFile, read_states, state_of_slide
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline import slide as pipeline
from wsi_pgdips.pipeline.part import Part
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


def leftovers(job: Path) -> list[str]:
    """What only processes in hand may leave."""
    ends = (".partial", ".running")
    return sorted(str(p.relative_to(job)) for p in job.rglob("*") if p.name.endswith(ends))


def times(*folders: Path) -> dict[str, int]:
    files = (p for folder in folders for p in folder.rglob("*") if p.is_file())
    return {str(p): p.stat().st_mtime_ns for p in files}


@dataclass(frozen=True)
class Study:
    """Slides, a manifest of them, and a job folder; ``call`` runs the program in this process."""

    slides: Path
    manifest: Path
    job: Path
    call: Callable[..., int]

    def copied(self, folder: Path, call: Callable[..., int]) -> Study:
        """One's own, to go on with."""
        shutil.copytree(self.slides, folder / "slides")
        shutil.copytree(self.job, folder / "job")
        plan = folder / "job" / "cohort.json"
        plan.write_text(plan.read_text().replace(str(self.slides), str(folder / "slides")))
        return Study(folder / "slides", folder / "slides" / "cohort.csv", folder / "job", call)

    def run(self, *options: str) -> int:
        """Exit code of ``cohort run``."""
        return self.call("cohort", "run", self.manifest, self.job, *OPTIONS, *options)

    def retry(self, *options: str) -> int:
        return self.call("cohort", "retry", self.job, "--quiet", *options)

    def opened(self) -> tuple[JobFolder, Cohort]:
        return JobFolder.opened(self.job)

    def layers(self, name: str) -> Path:
        return layers(self.job, name)

    def state(self, name: str = "a") -> Any:
        return state_of_slide(read_states(self.job / "state" / name))

    def summary(self) -> dict[str, Any]:
        return summary(self.job)

    def standings(self) -> dict[str, str]:
        return {row["name"]: row["status"] for row in self.summary()["rows"]}

    def failures(self) -> dict[str, dict[str, str]]:
        """Rows of ``failures.csv`` by the slide's name."""
        with (self.job / "failures.csv").open() as file:
            return {Path(row["slide"]).stem: row for row in csv.DictReader(file)}

    def leftovers(self) -> list[str]:
        return leftovers(self.job)


def begun(folder: Path, name: str, part: Part | None = None, **changes: Any) -> StateFile:
    """The state of a slide that was begun, in the folder of a cohort's states."""
    file = StateFile(folder / name, part or Part(), "digest")
    file.write(**changes)
    return file


def failing(*errors: BaseException) -> Callable[..., Any]:
    """``run_part`` that fails as told before it works."""
    left, genuine = list(errors), pipeline.run_part

    def run_part(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop(0)
        return genuine(*arguments, **named)

    return run_part


def stale() -> OutputError:
    """As the operating system's error comes through layers of ours."""
    try:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    except OSError as error:
        wrapped = OutputError("writing the output failed", found=error.strerror)
        wrapped.__cause__ = error
        return wrapped


class OneByOne:
    """In place of worker processes: this one.

    Args:
        before: called with the name of each slide before it is worked on. instead_of: the pool.
    """

    def __init__(
        self, before: Callable[[str], object] = lambda name: None, instead_of: Any = None
    ) -> None:
        self.before, self.seen, self.instead_of = before, list[str](), instead_of

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
