"""Runs that are killed at random instants and started again: every file must be the same bytes."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cohort.killer import Killer, Step
from benchmarks.cohort.moments import MOMENTS, Place, blocks_of, difference
from benchmarks.records import Records, Say
from wsi_pgdips.errors import IncompleteRunError
from wsi_pgdips.phantom.make import make_phantom

KILLS = "kills"
FAULTS = ("wrong_files", "lost_files", "left_behind", "refused_starts")
SHAPE, QUICK_SHAPE = (3072, 4096), (1100, 1500)  # twelve blocks, and four
CHEAP = "--tile 256 --block 1024 --calibration-tiles 2 --calibration-steps 5 --device cpu --quiet"
SEED = 11
METRICS = ("kills", *(f"killed_in_{m}" for m in MOMENTS), "runs", "files_compared", *FAULTS)
IN_PARTS: tuple[Step, ...] = (
    ("--stage calibrate",),
    ("--stage fit --part 1/2", "--stage fit --part 2/2"),
    ("--stage blend",),
    ("--stage render --part 1/2", "--stage render --part 2/2"),
    ("--stage finalize",),
)


@dataclass(frozen=True)
class Way:
    """A way to run a slide: its preset, and for each step, in order, its processes."""

    preset: str
    name: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.preset}, {self.name}"

    @property
    def own_steps(self) -> tuple[Step, ...]:
        return tuple(tuple(f"{o} --preset {self.preset}" for o in step) for step in self.steps)


WAYS = (
    Way("fast", "one process", (("--workers 1",),)),
    Way("balanced", "two workers", (("--workers 2",),)),
    Way("fast", "in parts", IN_PARTS),
    Way("balanced", "one process", (("--workers 1",),)),
    Way("fast", "two workers", (("--workers 2",),)),
    Way("balanced", "in parts", IN_PARTS),
)


def measure_kills(
    records: Records, folder: Path, count: int, say: Say, *, quick: bool = False
) -> None:
    """Kill runs ``count`` times, and compare each run that finished with an undisturbed one.

    Raises:
        IncompleteRunError: an undisturbed run failed.
    """
    made = make_phantom(folder / "slide.tiff", shape=QUICK_SHAPE if quick else SHAPE, seed=1)
    scratch = folder / "scratch"
    scratch.mkdir()
    command: tuple[str | Path, ...] = (made.truth.path, "--stains", made.stains, *CHEAP.split())
    killer = Killer(command, count, random.Random(SEED), scratch)
    references: dict[str, Path] = {}
    found = {str(way): Counter[str]() for way in WAYS}
    ways = WAYS[:2] if quick else WAYS
    for way in ways:
        output = folder / f"{way} undisturbed" / "out.ome.zarr"
        killer.undisturbed(output, way.own_steps)
        references.setdefault(way.preset, output)
        _compare(found[str(way)], references[way.preset], Place(output, 0), say)
    for number, way in enumerate(itertools.cycle(ways)):
        if not killer.left:
            break
        reference = references[way.preset]
        place = Place(folder / str(number) / "out.ome.zarr", blocks_of(reference))
        counted, moments = found[str(way)], list[str]()
        try:
            killer.disturbed(place, way.own_steps, moments)
            _compare(counted, reference, place, say)
        except IncompleteRunError as error:
            counted["refused_starts"] += 1
            say(f"{way}: {error}")
        counted["kills"] += len(moments)
        counted.update(f"killed_in_{m}" for m in moments)
        say(f"{way}: killed in {', '.join(moments) or 'no stage'}; {killer.left} kills left")
        shutil.rmtree(place.output.parent)
    for name, total in found.items():
        if total:
            records.add({metric: total[metric] for metric in METRICS}, case=KILLS, how=name)


def _compare(counted: Counter[str], reference: Path, place: Place, say: Say) -> None:
    if reference == place.output:
        return
    compared, left = difference(reference, place.output), place.left_behind()
    counted.update(runs=1, files_compared=compared.files)
    for metric, names in zip(FAULTS, (compared.wrong, compared.lost, left), strict=False):
        counted[metric] += len(names)
        if names:
            say(f"{metric}: {', '.join(names)}")
