"""The same tissue twice, the tile grid shifted by half a tile: does the result depend on it?"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.cases import Case
from benchmarks.quality.linear import LinearMethods
from benchmarks.quality.methods import SHIFT, Method, fits
from benchmarks.quality.picture import read_picture
from benchmarks.quality.product import device_and_threads, run_in_memory, solve_in_memory
from benchmarks.quality.scene import open_scene
from benchmarks.records import Sheet
from wsi_pgdips.errors import SettingsError, WsiPgdipsError
from wsi_pgdips.optics.stains import load_stains, save_stains
from wsi_pgdips.phantom.make import richest_window
from wsi_pgdips.pipeline.image import Deconvolution, render
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, SlidePrior, StainSet
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.tiles.tissue import find_tissue

SLIDE_MPP = 0.5
SIDE = 3000  # largest part of a slide that is run, output pixels
Say = Callable[[str], None]


def measure_shift(
    case: Case,
    seed: int | None,
    methods: Sequence[Method],
    *,
    shape: tuple[int, int] | None = None,
    tile: int = 512,
    say: Say = lambda line: None,
) -> Sheet:
    """RMS difference of q between two runs, per stain, on pixels that are tissue in both.

    Both have white fill above and to the left, one by a tile, the other by half of one: so that
    nothing but the place of the tile grid differs, not what borders on the glass.

    Args:
        seed: of a phantom; None for a slide. shape: of a phantom, in place of its description's.

    Raises:
        SettingsError: neither a phantom nor a slide. SlideError: the slide cannot be read.
    """
    rgb, mpp, stains = _pixels(case, seed, shape)
    fills = (tile, tile // 2)
    pictures = [
        ArraySource(
            np.pad(rgb, ((fill, 0), (fill, 0), (0, 0)), constant_values=255),
            mpp=mpp,
            tile=tile,
            name=case.name,
        )
        for fill in fills
    ]
    sheet = Sheet(case.name, case.kind, seed)
    with tempfile.TemporaryDirectory(prefix="shift-") as name:
        file = Path(name) / "stains.toml"
        save_stains(stains, file)
        runs = [_Runs(p, stains, file, fill) for p, fill in zip(pictures, fills, strict=True)]
        for method in methods:
            if not fits(method, SHIFT, stains.n):
                continue
            begin = time.perf_counter()
            try:
                (q, tissue), (q_moved, tissue_moved) = (run(method) for run in runs)
            except (WsiPgdipsError, ValueError):
                sheet.add(method.name, "rmse_joint", float("nan"))
                say(f"  {method.name}: no result")
                continue
            seconds = time.perf_counter() - begin
            both = tissue & tissue_moved
            difference = q_moved[:, both] - q[:, both]
            rms = np.sqrt(np.nanmean(difference.astype(np.float64) ** 2, axis=1))
            sheet.add_each(method.name, "rmse", stains.labels, rms, seconds=seconds)
            joint = float(np.sqrt((rms**2).mean()))
            sheet.add(method.name, "rmse_joint", joint, seconds=seconds)
            say(f"  {method.name}: " + " ".join(f"{v:.4f}" for v in rms))
    return sheet


class _Runs:
    """Methods on one of the pictures; ablations of ``balanced`` take its prior."""

    def __init__(self, picture: ArraySource, stains: StainSet, file: Path, fill: int) -> None:
        self.picture, self.stains, self.name, self.fill = picture, stains, str(file), fill
        self._prior: SlidePrior | None = None

    def __call__(self, method: Method) -> tuple[FloatArray, BoolArray]:
        """q and tissue without the fill."""
        if method.family == "linear":
            linear = LinearMethods(read_picture(self.picture, self.stains.stain_matrix))
            q, tissue = linear.result(method.name).maps, linear.picture.tissue
        else:
            done = self._deconvolved(method)
            q, tissue = done.concentration, done.tissue
        return q[:, self.fill :, self.fill :], tissue[self.fill :, self.fill :]

    def _deconvolved(self, method: Method) -> Deconvolution:
        if method.name == "balanced":
            solved = solve_in_memory(method.name, self.picture, self.stains, self.name)
            self._prior = solved.prior
            return render(solved, *device_and_threads())
        done, _ = run_in_memory(method.name, self.picture, self.stains, self.name, self._prior)
        return done


def _pixels(
    case: Case, seed: int | None, shape: tuple[int, int] | None
) -> tuple[ByteArray, float, StainSet]:
    """All pixels of a phantom, or the part of a slide that holds most tissue."""
    if case.description is not None:
        with (
            tempfile.TemporaryDirectory(prefix="phantom-") as name,
            open_scene(case, seed or 0, Path(name), shape=shape) as scene,
        ):
            return scene.picture.rgb, scene.grid.mpp, scene.stains
    if case.slide is None or case.stains is None:
        raise SettingsError("a slide needs a file and its stains", where=case.name)
    with contextlib.closing(open_source(case.slide, mpp=SLIDE_MPP)) as source:
        part = richest_window(find_tissue(source), shape or (SIDE, SIDE))
        rgb = source.read(part.y, part.x, part.h, part.w)
        return rgb, source.grid.mpp, load_stains(case.stains)
