"""The demonstration: a phantom slide through everything, and its errors against the truth."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.phantom.make import make_phantom
from wsi_pgdips.phantom.score import (
    background_error,
    concentration_error,
    stain_angles,
    windows_of,
)
from wsi_pgdips.phantom.truth import PhantomTruth
from wsi_pgdips.pipeline.record import RunSummary
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.report.overview import draw_overview
from wsi_pgdips.slide.reader import open_source


@dataclass(frozen=True)
class StainErrors:
    """How far one stain of a result is from the truth of its phantom.

    Attributes:
        rmse_od, bias_od: error of q on tissue, OD along the unit vector.
        angle_deg: mean angle of S(x) to the truth. library_deg: that of the vector started from.
    """

    label: str
    rmse_od: float
    bias_od: float
    angle_deg: float
    library_deg: float


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made; ``background_od`` is the RMS error of B(x) on tissue."""

    summary: RunSummary
    slide: Path
    figure: Path
    stains: tuple[StainErrors, ...]
    background_od: float


def run_demo(
    folder: Path,
    *,
    config: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> DemoResult:
    """Write a phantom into ``folder``, run it, draw ``overview.png``, compare with the truth.

    Args:
        folder: made if missing; earlier results of the demonstration in it are replaced.
        config: description of the phantom; without it that of the demonstration slide.
        options: settings of the run, such as ``preset`` and ``device``.

    Raises:
        WsiPgdipsError: the folder is not writable, or an option cannot be used.
    """
    progress = progress or QuietProgress()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("the folder cannot be made", where=folder, found=error.strerror) from None
    slide = folder / "phantom.tiff"
    made = make_phantom(slide, config=config, progress=progress)
    summary = deconvolve_slide(
        slide,
        folder / "phantom.ome.zarr",
        progress=progress,
        stains=str(made.stains),
        mpp="native",
        overwrite=True,
        **options,
    )
    layers = open_layers(summary.path, unfinished=True)
    with contextlib.closing(open_source(slide, mpp="native", tile=layers.grid.tile)) as source:
        figure = draw_overview(source, layers, folder / "overview.png")
    stains, background = compare(layers, made.truth)
    return DemoResult(summary, slide, figure, stains, background)


def compare(layers: Layers, truth: PhantomTruth) -> tuple[tuple[StainErrors, ...], float]:
    """Errors of layers at a phantom's own resolution: per stain, and RMS of B(x) in OD.

    Args:
        layers: of the phantom, with level 0 on the phantom's pixels and the truth's stain order.
    """
    grid = layers.grid
    q = concentration_error(
        lambda r: layers.read(r.y, r.x, r.h, r.w),
        lambda r: truth.concentration(r.y, r.x, r.h, r.w),
        lambda r: truth.tissue(r.y, r.x, r.h, r.w),
        windows_of(grid.shape),
        layers.stains.n,
    )
    yy = (np.arange(grid.tile_grid[0])[:, None] + 0.5) * grid.tile - 0.5
    xx = (np.arange(grid.tile_grid[1])[None, :] + 0.5) * grid.tile - 0.5
    true_s = _tile_axes_first(truth.stain_matrix_at(yy, xx), grid.tile_grid)
    true_b = _tile_axes_first(truth.background_at(yy, xx), grid.tile_grid)
    weight = _tissue_share(layers, truth)
    angles = stain_angles(layers.fields.tile_stain_matrix, true_s, weight)
    library = stain_angles(truth.library, true_s, weight)
    background = background_error(layers.fields.tile_background, true_b, weight)
    errors = tuple(
        StainErrors(label, *(float(v) for v in values))
        for label, *values in zip(truth.labels, q.rmse, q.bias, angles, library, strict=True)
    )
    return errors, background.rms


def _tile_axes_first(values: FloatArray, tile_grid: tuple[int, int]) -> FloatArray:
    """(..., GY, GX), either of them possibly 1, to (GY, GX, ...)."""
    whole = np.broadcast_to(values, (*values.shape[:-2], *tile_grid))
    return np.moveaxis(whole, (-2, -1), (0, 1))


def _tissue_share(layers: Layers, truth: PhantomTruth) -> FloatArray:
    """(GY, GX) true tissue pixels of each tile, over the pixels of a tile."""
    grid = layers.grid
    share = np.zeros(grid.tile_grid, np.float32)
    for ty, tx in np.ndindex(*grid.tile_grid):
        r = grid.tile_region(ty, tx)
        tissue: BoolArray = truth.tissue(r.y, r.x, r.h, r.w)
        share[ty, tx] = tissue.sum() / grid.tile**2
    return share
