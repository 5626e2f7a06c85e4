"""The two ways in: ``make_phantom`` writes a phantom slide, ``run_demo`` runs and scores one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.optics.stain_files import load_stains, save_stains
from wsi_pgdips.optics.stains import make_stain_set
from wsi_pgdips.phantom.config import (
    PhantomConfig,
    default_config,
    load_phantom_config,
    make_phantom_config,
)
from wsi_pgdips.phantom.phantom import PhantomTruth, write_phantom
from wsi_pgdips.phantom.score import StainErrors, score_layers
from wsi_pgdips.phantom.tissue import RealTissue
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import FloatArray, StainSet, TileSource
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import find_tissue
from wsi_pgdips.tiles.tissue_map import TissueMap

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.record import RunSummary

_ROLES = ("nuclear", "counterstain", "marker")


@dataclass(frozen=True)
class MadePhantom:
    """A phantom on disk.

    Attributes:
        truth: its truth, with the slide's path. stains: the stain file to run it with.
    """

    truth: PhantomTruth
    stains: Path


def make_phantom(
    out: Path,
    *,
    config: Path | None = None,
    seed: int | None = None,
    shape: tuple[int, int] | None = None,
    texture: Path | None = None,
    stains: str | None = None,
    progress: Progress | None = None,
) -> MadePhantom:
    """Write a phantom slide, its truth, and ``OUT.stains.toml`` with the vectors to start from.

    Args:
        out: the slide, a TIFF; it is replaced if it exists.
        config: description of the phantom; by default that of the demonstration slide.
        seed, shape: in place of the description's; shape is (height, width) in pixels.
        texture: a real slide whose unmixed tissue replaces the procedural one. The part with most
            tissue is used, and mirrored if it is smaller than the phantom.
        stains: stain set to unmix ``texture`` with; without ``config`` also the phantom's stains.
        progress: counts strips.

    Raises:
        SettingsError: a description or a combination of options that cannot be used.
        StainError: unknown stains, or another number of them than in the description.
        SlideError: the real slide cannot be read or has no tissue.
        OutputError: the slide cannot be written.
    """
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise SettingsError(
            "a phantom is written as a TIFF", expected="a name that ends in .tiff", found=out.name
        )
    if (texture is None) != (stains is None):
        raise SettingsError(
            "--from and --stains belong together",
            expected="both or neither",
            hint="--stains says what the slide of --from is stained with, as in --stains he",
        )
    progress = progress or QuietProgress()
    stain_set = None if stains is None else load_stains(stains)
    description = _describe(config, stain_set, seed, shape)
    with contextlib.ExitStack() as stack:
        tissue = None
        if texture is not None and stain_set is not None:
            progress.stage("texture", 0, "")
            source = stack.enter_context(
                contextlib.closing(open_source(texture, mpp=description.mpp))
            )
            tissue = _real_tissue(source, stain_set.stain_matrix, description.shape)
            description = _changed(description, mpp=source.grid.mpp)
        try:
            truth = write_phantom(description, out, texture=tissue, progress=progress)
        except OSError as error:
            raise OutputError(
                "the phantom cannot be written", where=out, found=error.strerror or error
            ) from None
    return MadePhantom(truth, _write_stains(truth))


def _describe(
    config: Path | None,
    stains: StainSet | None,
    seed: int | None,
    shape: tuple[int, int] | None,
) -> PhantomConfig:
    """Return the description, with other values where they are given."""
    description = default_config() if config is None else load_phantom_config(config)
    changes: dict[str, Any] = {}
    if config is None and stains is not None:
        if stains.n > len(_ROLES):
            raise SettingsError(
                "a phantom holds one to three stains", found=stains.n, where="--stains"
            )
        changes["name"] = stains.name
        changes["stains"] = tuple(
            {"label": label, "vector": tuple(max(v, 0.0) for v in row), "role": role}
            # roles have no effect on real tissue, but each may be taken only once
            for label, row, role in zip(stains.labels, stains.matrix, _ROLES, strict=False)
        )
    changes |= {k: v for k, v in (("seed", seed), ("shape", shape)) if v is not None}
    return _changed(description, **changes)


def _changed(description: PhantomConfig, **changes: Any) -> PhantomConfig:
    """Return the description with other values, which are validated (unlike ``model_copy``)."""
    return make_phantom_config({**description.model_dump(), **changes}, description.name)


def _real_tissue(
    source: TileSource, stain_matrix: FloatArray, shape: tuple[int, int]
) -> RealTissue:
    """Return the part of a real slide that holds most tissue."""
    tissue = find_tissue(source)
    _, _, background = background_field(tissue, source.grid)
    part = richest_window(tissue, shape)
    return RealTissue(
        lambda y, x, h, w: source.read(part.y + y, part.x + x, h, w),
        (part.h, part.w),
        stain_matrix,
        background,
    )


def richest_window(tissue: TissueMap, shape: tuple[int, int]) -> Region:
    """Return the window of at most ``shape`` output pixels with most tissue; the first of ties."""
    height, width = (min(a, b) for a, b in zip(shape, tissue.shape, strict=True))
    # as many overview pixels as fit, at least one
    h, w = (max(int(n / tissue.scale), 1) for n in (height, width))
    total = np.pad(tissue.core.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    held = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    row, column = np.unravel_index(int(held.argmax()), held.shape)
    y = min(int(row * tissue.scale), tissue.shape[0] - height)
    x = min(int(column * tissue.scale), tissue.shape[1] - width)
    return Region(y, x, height, width)


def _write_stains(truth: PhantomTruth) -> Path:
    """Write the stain file to run a phantom with."""
    path = truth.path.with_suffix(".stains.toml")
    source = "library vectors of a phantom; its true ones differ by its tilt and drift"
    name = truth.config.name
    save_stains(make_stain_set(name, truth.labels, truth.library, source=source), path)
    return path


@dataclass(frozen=True)
class DemoResult:
    """The results of the demonstration.

    Attributes:
        summary: of the run. slide: the phantom. figure: ``overview.png``.
        stains: errors of each stain. background_od: RMS error of B(x) on tissue.
    """

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
    """Write a phantom into ``folder``, run it, draw ``overview.png``, and compare with the truth.

    Args:
        folder: made if missing; earlier results of the demonstration in it are replaced.
        config: description of the phantom; by default that of the demonstration slide.
        options: settings of the run, such as ``preset`` and ``device``.

    Raises:
        WsiPgdipsError: the folder cannot be written, or an option cannot be used.
    """
    from wsi_pgdips.pipeline.slide import deconvolve_slide
    from wsi_pgdips.report.overview import draw_overview

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
    return DemoResult(summary, slide, figure, *score_layers(layers, made.truth))
