"""The product and its ablations, in memory, and the product as a user runs it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.methods import ABLATION, BY_NAME
from benchmarks.quality.picture import Result
from benchmarks.quality.scene import Scene
from wsi_pgdips import machine
from wsi_pgdips.config import ScientificSettings, make_settings
from wsi_pgdips.errors import SlideError
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.pipeline.image import Deconvolution, Solved, render, solve
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.pipeline.stage_files import load_prior
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.records import Fields, FloatArray, SlidePrior, StainSet
from wsi_pgdips.slide.source import ArraySource, PyramidSource
from wsi_pgdips.solver.presets import NETWORK_ONLY
from wsi_pgdips.stages.context import Context, make_context
from wsi_pgdips.stages.fit import calibrate

_SETTINGS: dict[str, dict[str, float]] = {
    "exclusion": {"beta": 0.01},
    "pgdips-loss": {"alpha": 1.0, "beta": 0.01},
}
_PRIOR_WEIGHTS = {"no-network": 0.0, "no-data-consistency": NETWORK_ONLY}
# these differ from the method after the slide's prior only, and can be given it
SAME_PRIOR = ("no-network", "no-blending", "no-data-consistency", "no-stain-prior")


class Product:
    """The product on one source.

    Args:
        source: all of it fits in memory. stains: what it is stained with.
        usual: settings of all presets and ablations, in place of the usual ones.
    """

    def __init__(self, source: PyramidSource, stains: StainSet, **usual: Any) -> None:
        self._source, self._stains, self._usual = source, stains, usual
        self.prior: SlidePrior | None = None  # of ``balanced``, where known
        machine.quiet_threads()
        self._how = torch.device(machine.choose_device("auto")), machine.usable_cpus()

    def result(self, method: str, **options: Any) -> Result:
        """A preset, or an ablation of ``balanced``, in memory.

        Args:
            method: by the name it has in ``METHODS``. options: further settings of a preset.

        Raises:
            SlideError: there is no tissue.
        """
        if BY_NAME[method].family == "ablation":
            return self._ablation(method.removeprefix(ABLATION))
        if method == "balanced" and not options:
            return _result(render(self.balanced, *self._how))
        return _result(render(solve(self._context(method, **options), *self._how), *self._how))

    @cached_property
    def balanced(self) -> Solved:
        """``balanced`` before its render: context, prior, fits and fields."""
        solved = solve(self._context("balanced"), *self._how, self.prior)
        self.prior = solved.prior
        return solved

    def run(self, preset: str, scene: Scene, folder: Path) -> tuple[Result, dict[str, Any]]:
        """Deconvolve a phantom's file as a user would, and read the layers back.

        Returns:
            The result, and the seam step of each stain as the run itself measures it.
        """
        out = folder / f"{preset}.ome.zarr"
        keeper = _Keeper(out)
        made = scene.made
        asked: dict[str, Any] = {"stains": str(made.stains), "preset": preset, "progress": keeper}
        summary = deconvolve_slide(made.truth.path, out, mpp="native", **asked)
        if preset == "balanced":
            self.prior = keeper.prior
        layers = open_layers(out)
        maps, fields = layers.read(0, 0, *layers.grid.shape), layers.fields
        result = Result(maps, fields.tile_stain_matrix, fields.tile_background)
        return result, summary.seam_step_od

    def _ablation(self, name: str) -> Result:
        """A picture deconvolved with one part of the method taken away, or put back.

        * ``no-blending``: every tile is rendered under its own parameters, constant over the tile.
        * ``no-data-consistency``: the network's maps are the result (Lambda 100).
        * ``no-glass``: B is 0.
        * ``no-stain-prior``: the slide's own vectors give way to the library's, and the fields come
          from the tiles' parameters, not from their statistics.
        * ``no-slide-prior``: each tile is a picture of its own, in the closed form.
        * ``no-network``: the closed form under the same fields (Lambda 0).

        Two put back what ``balanced`` does without: ``exclusion`` adds the exclusion loss to the
        training of the slide's network, ``pgdips-loss`` that and the reconstruction of real pixels.

        The prior of ``balanced``, where known, is used by those of ``SAME_PRIOR``.
        """
        if name == "no-slide-prior":
            return self._each_alone()
        context = self._context("balanced", **_SETTINGS.get(name, {}))
        if name == "no-glass":
            nothing = {part: np.zeros_like(getattr(context, part)) for part in ("background", "b0")}
            context = replace(context, **nothing, tissue=replace(context.tissue, raised=None))
        if name == "no-stain-prior":
            preset = replace(context.preset, field_source="parameters")
            context = replace(context, preset=preset)
        prior = self.prior if name in SAME_PRIOR else None
        prior = prior or calibrate(context, *self._how)
        if name == "no-stain-prior":
            prior = replace(prior, stain_matrix=self._stains.stain_matrix)
        if name in _PRIOR_WEIGHTS:
            weight = np.full(self._stains.n, _PRIOR_WEIGHTS[name], np.float32)
            prior = replace(prior, prior_weight=weight)
        solved = solve(context, *self._how, prior)
        return (
            self._unblended(solved)
            if name == "no-blending"
            else _result(render(solved, *self._how))
        )

    def _unblended(self, solved: Solved) -> Result:
        """Each tile under its own raw parameters; where it has none, under the slide's."""
        rows = _filled(solved.fields.raw_stain_matrix, solved.slide_matrix)
        background = _filled(solved.fields.raw_background, solved.context.b0)

        def constant(tile: tuple[int, int]) -> Fields:
            return replace(
                solved.fields,
                stain_matrix=np.broadcast_to(rows[tile], rows.shape),
                background=np.broadcast_to(background[tile], background.shape),
            )

        parts = [
            (replace(plan, render=(tile,), fraction=(share,)), constant(tile))
            for plan in solved.context.plans
            for tile, share in zip(plan.render, plan.fraction, strict=True)
        ]
        done = render(solved, *self._how, parts)
        return Result(done.concentration, rows, background, done.tissue)

    def _each_alone(self) -> Result:
        """Every tile from its own pixels alone; one without tissue of its own is not measured."""
        grid, n = self._source.grid, self._stains.n
        rows = np.empty((*grid.tile_grid, n, 3), np.float32)
        rows[:] = self._stains.stain_matrix
        background = np.zeros((*grid.tile_grid, 3), np.float32)
        q, tissue = np.full((n, *grid.shape), np.nan, np.float32), np.zeros(grid.shape, bool)
        for tile in np.ndindex(*grid.tile_grid):
            r = grid.tile_region(*tile)
            pixels = self._source.read(r.y, r.x, r.h, r.w)
            alone = ArraySource(pixels, mpp=grid.mpp, tile=grid.tile, block=grid.block)
            try:
                # a network of its own for every tile is more than anybody would pay
                done = Product(alone, self._stains, **self._usual).result("fast")
            except SlideError:  # nothing but glass
                continue
            q[:, *r.slices], tissue[r.slices] = done.maps, done.tissue
            rows[tile], background[tile] = done.stain_matrix[0, 0], done.background[0, 0]
        return Result(q, rows, background, tissue)

    def _context(self, preset: str, **options: Any) -> Context:
        return make_context(self._source, self._stains, self._settings(preset, **options))

    def _settings(self, preset: str, **options: Any) -> ScientificSettings:
        grid = self._source.grid
        fixed = {"tile": grid.tile, "block": grid.block, "mpp": "native"}
        return make_settings({"preset": preset, **fixed, **self._usual, **options}).science


class _Keeper(QuietProgress):
    """Takes the prior of a run out of its ledger, which is gone when the run is done."""

    def __init__(self, out: Path) -> None:
        self._ledger = Ledger(out)
        self.prior: SlidePrior | None = None

    def stage(self, name: str, total: int, unit: str) -> None:
        if name == "fit":
            self.prior = load_prior(self._ledger.prior)


def _result(done: Deconvolution) -> Result:
    fields = done.fields
    maps, tissue = done.concentration, done.tissue
    return Result(maps, fields.tile_stain_matrix, fields.tile_background, tissue)


def _filled(raw: FloatArray, instead: FloatArray) -> FloatArray:
    return np.where(np.isfinite(raw), raw, instead).astype(np.float32)
