"""The product itself, and its ablations, on a phantom."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.ablation import ablate
from benchmarks.quality.linear import Result
from benchmarks.quality.methods import ABLATION
from wsi_pgdips import machine
from wsi_pgdips.config import ScientificSettings, make_settings
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.pipeline.image import Deconvolution, Solved, render, solve
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.pipeline.stage_files import load_prior
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.records import Fields, SlidePrior, StainSet
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.stages.context import make_context

if TYPE_CHECKING:
    import torch

    from benchmarks.quality.scene import Scene


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run of the product says, its fields, and how long it took.

    Attributes:
        seams: label -> seam step as the run itself measures it, where it does.
        prior: that the run calibrated, where it is known.
    """

    result: Result
    fields: Fields
    seconds: float
    seams: dict[str, float | None] = field(default_factory=dict)
    prior: SlidePrior | None = None


class _Keeper(QuietProgress):
    """Takes the prior of a run out of its ledger, which is gone when the run is done."""

    def __init__(self, out: Path) -> None:
        self._ledger = Ledger(out)
        self.prior: SlidePrior | None = None

    def stage(self, name: str, total: int, unit: str) -> None:
        if name == "fit":
            self.prior = load_prior(self._ledger.prior)


def run_preset(preset: str, scene: Scene, folder: Path) -> Outcome:
    """Deconvolve the phantom's file as a user would, and read the layers back."""
    begin = time.perf_counter()
    out = folder / f"{preset}.ome.zarr"
    keeper = _Keeper(out)
    summary = deconvolve_slide(
        scene.slide,
        out,
        stains=str(scene.stains_file),
        preset=preset,
        mpp="native",
        progress=keeper,
    )
    seconds = time.perf_counter() - begin
    layers = open_layers(out)
    maps = layers.read(0, 0, *layers.grid.shape)
    fields = layers.fields
    result = Result(maps, fields.tile_stain_matrix, fields.tile_background)
    return Outcome(result, fields, seconds, summary.seam_step_od, keeper.prior)


def run_in_memory(
    method: str,
    source: PyramidSource,
    stains: StainSet,
    stains_name: str,
    prior: SlidePrior | None = None,
    **options: Any,
) -> tuple[Deconvolution, float]:
    """A preset, or an ablation of ``balanced``, on a source of which nothing is written.

    Args:
        method: name of ``bench.methods``. stains_name: what the settings call the stains.
        prior: of ``balanced`` on this source, where known; spares some ablations their own.
        options: further settings of a preset.

    Returns:
        The result, and seconds it took.
    """
    device, threads = device_and_threads()
    begin = time.perf_counter()
    if method.startswith(ABLATION):
        settings = _settings("balanced", stains_name, source)
        name = method.removeprefix(ABLATION)
        done = ablate(name, source, stains, settings, device=device, threads=threads, prior=prior)
    else:
        solved = solve_in_memory(method, source, stains, stains_name, **options)
        done = render(solved, device, threads)
    return done, time.perf_counter() - begin


def solve_in_memory(
    preset: str,
    source: PyramidSource,
    stains: StainSet,
    stains_name: str,
    prior: SlidePrior | None = None,
    **options: Any,
) -> Solved:
    """Context, prior, fits and fields of a preset, before the render; a known prior is taken."""
    device, threads = device_and_threads()
    context = make_context(source, stains, _settings(preset, stains_name, source, **options))
    return solve(context, device, threads, prior)


def run_ablation(method: str, scene: Scene, prior: SlidePrior) -> Outcome:
    """An ablation of ``balanced``, whose prior is given, on a phantom."""
    name = str(scene.stains_file)
    done, seconds = run_in_memory(method, scene.source, scene.stains, name, prior)
    result = Result(done.concentration, done.fields.tile_stain_matrix, done.fields.tile_background)
    return Outcome(result, done.fields, seconds)


def device_and_threads() -> tuple[torch.device, int]:
    """Device and threads, as a run would choose them."""
    import torch

    machine.quiet_threads()
    return torch.device(machine.choose_device("auto")), machine.usable_cpus()


def _settings(
    preset: str, stains: str, source: PyramidSource, **options: Any
) -> ScientificSettings:
    grid = source.grid
    fixed = {"tile": grid.tile, "block": grid.block, "mpp": "native"}
    return make_settings({"preset": preset, "stains": stains, **fixed, **options}).science
