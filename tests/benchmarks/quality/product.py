"""The product and its ablations: in memory, or as a user runs it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.ablation import ablate
from benchmarks.quality.methods import ABLATION
from benchmarks.quality.picture import Result
from wsi_pgdips import machine
from wsi_pgdips.config import ScientificSettings, make_settings
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.pipeline.image import Deconvolution, Solved, render, solve
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.pipeline.stage_files import load_prior
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.records import SlidePrior, StainSet
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.stages.context import make_context

if TYPE_CHECKING:
    import torch

    from benchmarks.quality.scene import Scene


class Product:
    """The product on one source; ablations of ``balanced`` take its prior where it is known.

    Args:
        source: all of it fits in memory. stains: what it is stained with.
    """

    def __init__(self, source: PyramidSource, stains: StainSet) -> None:
        self._source, self._stains = source, stains
        self.prior: SlidePrior | None = None

    def result(self, method: str, **options: Any) -> Deconvolution:
        """A preset or an ablation in memory.

        Args:
            method: by the name it has in ``METHODS``. options: further settings of a preset.
        """
        device, threads = device_and_threads()
        if not method.startswith(ABLATION):
            solved = self.balanced if method == "balanced" and not options else None
            return render(solved or self._solved(method, **options), device, threads)
        name = method.removeprefix(ABLATION)
        return ablate(
            name,
            self._source,
            self._stains,
            self._settings("balanced"),
            device=device,
            threads=threads,
            prior=self.prior,
        )

    @cached_property
    def balanced(self) -> Solved:
        """``balanced`` before its render: context, prior, fits and fields."""
        solved = self._solved("balanced", self.prior)
        self.prior = solved.prior
        return solved

    def run(self, preset: str, scene: Scene, folder: Path) -> tuple[Result, dict[str, Any]]:
        """Deconvolve a phantom's file as a user would, and read the layers back.

        Returns:
            The result, and the seam step of each stain as the run itself measures it.
        """
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
        if preset == "balanced":
            self.prior = keeper.prior
        layers = open_layers(out)
        maps, fields = layers.read(0, 0, *layers.grid.shape), layers.fields
        result = Result(maps, fields.tile_stain_matrix, fields.tile_background)
        return result, summary.seam_step_od

    def _solved(self, preset: str, prior: SlidePrior | None = None, **options: Any) -> Solved:
        context = make_context(self._source, self._stains, self._settings(preset, **options))
        return solve(context, *device_and_threads(), prior)

    def _settings(self, preset: str, **options: Any) -> ScientificSettings:
        grid = self._source.grid
        fixed = {"tile": grid.tile, "block": grid.block, "mpp": "native"}
        return make_settings({"preset": preset, **fixed, **options}).science


class _Keeper(QuietProgress):
    """Takes the prior of a run out of its ledger, which is gone when the run is done."""

    def __init__(self, out: Path) -> None:
        self._ledger = Ledger(out)
        self.prior: SlidePrior | None = None

    def stage(self, name: str, total: int, unit: str) -> None:
        if name == "fit":
            self.prior = load_prior(self._ledger.prior)


def device_and_threads() -> tuple[torch.device, int]:
    """Device and threads, as a run would choose them."""
    import torch

    machine.quiet_threads()
    return torch.device(machine.choose_device("auto")), machine.usable_cpus()
