"""Phantom slides as the command line makes them: procedural, or from a real slide's tissue."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.stains import load_stains, make_stain_set, save_stains
from wsi_pgdips.phantom.config import (
    PhantomConfig,
    default_config,
    load_phantom_config,
    make_phantom_config,
)
from wsi_pgdips.phantom.real_tissue import RealTissue
from wsi_pgdips.phantom.truth import PhantomTruth
from wsi_pgdips.phantom.writer import write_phantom
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import FloatArray, StainSet, TileSource
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import TissueMap, find_tissue

_ROLES = ("nuclear", "counterstain", "marker")


@dataclass(frozen=True)
class MadePhantom:
    """A phantom on disk: its truth, and the stain file to run it with."""

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
        out: the slide, a TIFF; replaced where it exists.
        config: description of the phantom; without it that of the demonstration slide.
        seed, shape: in place of the description's; shape is (height, width) in pixels.
        texture: a real slide whose unmixed tissue takes the place of the procedural one; the part
            of it that holds most tissue is used, mirrored where it is smaller than the phantom.
        stains: stain set to unmix ``texture`` with; without ``config`` also the phantom's stains.

    Raises:
        SettingsError: a description or combination that cannot be used.
        StainError: unknown stains, or another number of them than the description's.
        SlideError: the real slide cannot be read or has no tissue.
        OutputError: not writable.
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
            truth = write_phantom(description, out, texture=tissue, progress=_Strips(progress))
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
            # roles do not act on real tissue, but each may be taken once
            for label, row, role in zip(stains.labels, stains.matrix, _ROLES, strict=False)
        )
    if seed is not None:
        changes["seed"] = seed
    if shape is not None:
        changes["shape"] = shape
    return _changed(description, **changes)


def _changed(description: PhantomConfig, **changes: Any) -> PhantomConfig:
    """The description with other values, checked again (``model_copy`` would not)."""
    return make_phantom_config({**description.model_dump(), **changes}, description.name)


def _real_tissue(
    source: TileSource, stain_matrix: FloatArray, shape: tuple[int, int]
) -> RealTissue:
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
    """The window of at most ``shape`` output pixels with most tissue; the first of equals."""
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
    path = truth.path.with_suffix(".stains.toml")
    stains = make_stain_set(
        truth.config.name,
        truth.labels,
        truth.library,
        source="library vectors of a phantom; its true ones differ by its tilt and drift",
    )
    save_stains(stains, path)
    return path


class _Strips:
    """Strips of a phantom, counted on a progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._begun = progress, False

    def __call__(self, done: int, total: int) -> None:
        if not self._begun:
            self._progress.stage("phantom", total, "strips")
            self._begun = True
        self._progress.advance()
