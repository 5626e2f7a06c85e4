"""Methods that a slide's concentrations are compared with, on phantoms with exact truth.

All end in the same closed form (``optics.unmix``); they differ in where S and B come from. The
oracle is given the true fields, so its error is what noise, JPEG and saturation leave to no one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.optics.density import rgb_to_od
from wsi_pgdips.optics.stains import match_rows
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import ByteArray, FloatArray, TileSource
from wsi_pgdips.report.truth import windows_of
from wsi_pgdips.slide.phantom import PhantomTruth
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import find_tissue

BLUR_SIGMA = 2.0
MACENKO_STEP, VAHADANE_STEP = 2, 4  # every how-manieth pixel, in y and x, an extractor is shown
NOTHING = np.zeros(3, np.float32)


@dataclass(frozen=True)
class Estimate:
    """What a method says of S and B, and how it smooths its maps.

    Attributes:
        stain_matrix: (N, 3) for the whole slide, or None for the true field.
        background: (3,) for the whole slide, or None for the true field.
        blur: sigma in pixels of a Gaussian over the maps.
    """

    name: str
    stain_matrix: FloatArray | None
    background: FloatArray | None
    blur: float = 0.0


def baselines(source: TileSource, truth: PhantomTruth) -> Iterator[Estimate]:
    """The oracle, the library's vectors, and what Macenko and Vahadane make of the slide."""
    library = truth.library
    glass = background_field(find_tissue(source), source.grid)[2]
    yield Estimate("oracle", None, None)
    yield Estimate("fixed", library, NOTHING)
    yield Estimate("fixed, glass", library, glass)
    yield Estimate("fixed, glass, blurred", library, glass, BLUR_SIGMA)
    if len(library) != 2:  # both extractors know two stains only
        return
    for name, extract, step in (
        ("macenko-slide", _macenko, MACENKO_STEP),
        ("vahadane-slide", _vahadane, VAHADANE_STEP),
    ):
        rows = np.asarray(extract(every_pixel(source, step)), np.float64)
        rows = rows[match_rows(rows, library)[0]].astype(np.float32)
        yield Estimate(name, rows, NOTHING)
        yield Estimate(f"{name}, glass", rows, glass)


def concentration(
    estimate: Estimate, source: TileSource, truth: PhantomTruth, window: Region
) -> FloatArray:
    """(N, h, w) q of a window under an estimate."""
    halo = int(np.ceil(4 * estimate.blur))
    wide = window.grown(halo)
    yy = np.arange(wide.y, wide.stop_y)[:, None]
    xx = np.arange(wide.x, wide.stop_x)[None, :]
    rows, background = estimate.stain_matrix, estimate.background
    q = unmix_od(
        read_od(source, wide),
        truth.stain_matrix_at(yy, xx) if rows is None else rows,
        truth.background_at(yy, xx) if background is None else background,
    )
    if halo:
        q = np.stack([gaussian_filter(plane, estimate.blur, truncate=4) for plane in q])
        q = q[:, halo:-halo, halo:-halo]
    return q


def read_od(source: TileSource, window: Region) -> FloatArray:
    """(3, h, w) OD; what lies outside the slide is white."""
    rgb = source.read(window.y, window.x, window.h, window.w)
    return np.ascontiguousarray(rgb_to_od(rgb).transpose(2, 0, 1))


def unmix_od(od: FloatArray, stain_matrix: FloatArray, background: FloatArray) -> FloatArray:
    """``optics.unmix.unmix`` over numpy arrays."""
    tensors = (torch.from_numpy(np.ascontiguousarray(a)) for a in (od, stain_matrix, background))
    return np.asarray(unmix(*tensors).numpy())


def every_pixel(source: TileSource, step: int) -> ByteArray:
    """(H', W', 3) uint8: every ``step``-th pixel of the slide, not averaged."""
    height, width = source.grid.shape
    out = np.empty((-(-height // step), -(-width // step), 3), np.uint8)
    for window in windows_of(source.grid.shape):
        rgb = source.read(window.y, window.x, window.h, window.w)
        top, left = window.y // step, window.x // step  # windows start at multiples of 512
        part = rgb[::step, ::step]
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def tile_centres(grid: OutputGrid) -> tuple[np.ndarray, np.ndarray]:
    """(GY, 1) and (1, GX) positions of the tiles' centres, output pixels."""
    gy, gx = grid.tile_grid
    y = (np.arange(gy) + 0.5) * grid.tile - 0.5
    x = (np.arange(gx) + 0.5) * grid.tile - 0.5
    return y[:, None], x[None, :]


def _quietly(extract: Callable[[ByteArray], np.ndarray]) -> Callable[[ByteArray], np.ndarray]:
    def quiet(rgb: ByteArray) -> np.ndarray:
        # tiatoolbox warns of Vahadane's stability through the log, scikit-learn of convergence
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return extract(rgb)
        finally:
            logging.disable(logging.NOTSET)

    return quiet


@_quietly
def _macenko(rgb: ByteArray) -> np.ndarray:
    from tiatoolbox.tools.stainextract import MacenkoExtractor

    return np.asarray(MacenkoExtractor().get_stain_matrix(rgb))


@_quietly
def _vahadane(rgb: ByteArray) -> np.ndarray:
    from tiatoolbox.tools.stainextract import VahadaneExtractor

    return np.asarray(VahadaneExtractor().get_stain_matrix(rgb))
