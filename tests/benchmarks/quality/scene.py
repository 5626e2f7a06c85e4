"""A phantom with its exact truth, all of it in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.quality.cases import Case
from benchmarks.quality.foreign import lay_on, rewrite
from benchmarks.quality.methods import CLOSED
from benchmarks.quality.picture import Picture, Result, read_picture, unmix_od
from benchmarks.quality.spectral import CAMERAS, LinearFit, fit_linear, load_spectra
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.optics.stain_files import load_stains, save_stains
from wsi_pgdips.phantom.make import MadePhantom, make_phantom
from wsi_pgdips.phantom.phantom import PhantomTruth
from wsi_pgdips.records import BoolArray, FloatArray, StainSet
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.slide.source import PyramidSource

REAL_SHAPE = (1536, 1536)


@dataclass(frozen=True, eq=False)
class Scene:
    """A written phantom, open.

    Attributes:
        made: its files, what the product is run on, and its truth. stains: its set, loaded.
        q: (N, H, W) true concentrations. tissue: (H, W) true tissue, less what is
            foreign and its surroundings.
        linear: of a camera with known spectra: what stands for the true S and B, constants.
    """

    made: MadePhantom
    stains: StainSet
    source: PyramidSource
    picture: Picture
    q: FloatArray
    tissue: BoolArray
    linear: LinearFit | None = None

    @property
    def grid(self) -> OutputGrid:
        return self.source.grid

    @property
    def labels(self) -> tuple[str, ...]:
        return self.made.truth.labels

    @cached_property
    def reference(self) -> FloatArray:
        """(N, H, W) of ``closed-constant``: what a seam step is measured against."""
        return self.picture.result(CLOSED).maps

    @cached_property
    def weight(self) -> FloatArray:
        """(GY, GX) share of true tissue in each tile."""
        share = np.zeros(self.grid.tile_grid, np.float32)
        for tile in np.ndindex(*share.shape):
            r = self.grid.tile_region(*tile)
            share[tile] = self.tissue[r.slices].mean()
        return share

    @cached_property
    def tile_fields(self) -> tuple[FloatArray, FloatArray]:
        """True (GY, GX, N, 3) S and (GY, GX, 3) B at tile centres."""
        gy, gx = self.grid.tile_grid
        y = ((np.arange(gy) + 0.5) * self.grid.tile - 0.5)[:, None]
        x = ((np.arange(gx) + 0.5) * self.grid.tile - 0.5)[None, :]
        rows = np.moveaxis(self.made.truth.stain_matrix_at(y, x), (0, 1), (2, 3))
        return rows, np.moveaxis(self.made.truth.background_at(y, x), 0, -1)

    def pixel_fields(self) -> tuple[FloatArray, FloatArray]:
        """True (N, 3, H, W) S and (3, H, W) B at the pixels; made anew, they are large."""
        yy, xx = np.arange(self.grid.shape[0])[:, None], np.arange(self.grid.shape[1])[None, :]
        return self.made.truth.stain_matrix_at(yy, xx), self.made.truth.background_at(yy, xx)

    def oracle(self, *, constant: bool = False) -> Result:
        """The closed form under the true fields at each pixel, or under their means over tissue."""
        rows, background = self.pixel_fields()
        if not constant:
            return Result(unmix_od(self.picture.od, rows, background), *self.tile_fields)
        mean_rows = unit_rows(rows[:, :, self.tissue].mean(-1))
        return self.picture.unmixed(mean_rows, background[:, self.tissue].mean(-1))


@contextlib.contextmanager
def open_scene(
    case: Case, seed: int, folder: Path, shape: tuple[int, int] | None = None
) -> Iterator[Scene]:
    """Write a phantom of a case into a folder, and open it.

    Args:
        shape: (height, width) in place of the description's.

    Raises:
        SettingsError: no true vectors exist for this seed. SlideError: the real slide cannot be
            read or has no tissue.
    """
    made = make_phantom(
        folder / f"{case.name}.tif",
        config=case.description,
        seed=seed,
        shape=shape or (REAL_SHAPE if case.description is None else None),
        texture=case.slide,
        stains=None if case.spectra else case.stains,
    )
    truth, stains = made.truth, load_stains(made.stains)
    if case.foreign == "carbon":  # told from DAB only where DAB may be black, as in the set hdab
        stains = replace(stains, saturating=truth.labels.index("DAB"))
        save_stains(stains, made.stains)
    clean = lay_on(truth, case.foreign, seed) if case.foreign else np.ones(truth.shape, bool)
    linear = _photograph(truth, case, seed) if case.spectra else None
    if linear is not None:
        # methods start from what a user would give for an unknown scanner
        made, stains = replace(made, truth=_under(truth, linear)), load_stains(case.stains or "he")
        save_stains(stains, made.stains)
    with contextlib.closing(open_source(truth.path, mpp="native")) as source:
        picture = read_picture(source, stains.stain_matrix)
        q, tissue = truth.concentration(0, 0, *truth.shape), truth.tissue(0, 0, *truth.shape)
        yield Scene(made, stains, source, picture, q, tissue & clean, linear)


def _photograph(truth: PhantomTruth, case: Case, seed: int) -> LinearFit:
    """Put what a case's camera sees into a phantom's file."""
    assert case.spectra is not None
    camera, spectra = CAMERAS[case.name], load_spectra(case.spectra, truth.labels)
    whole = (0, 0, *truth.shape)
    q = truth.concentration(*whole)
    rewrite(truth, camera.picture(q, spectra, seed), camera.quality)
    return fit_linear(camera, q, spectra, truth.tissue(*whole))


def _under(truth: PhantomTruth, linear: LinearFit) -> PhantomTruth:
    """A phantom's truth under other vectors and another glass, both constant."""
    fields = replace(
        truth.fields,
        stain_matrix=tuple(map(tuple, unit_rows(linear.vectors).tolist())),
        stain_drift_deg=0.0,
        background=tuple(linear.background.tolist()),
        background_drift=(0.0, 0.0, 0.0),
    )
    return replace(truth, fields=fields)
