"""Stain vectors and references, measured on slides for use on other slides.

A stain vector is the colour of a region that holds one stain. A look comes from finished layers, or
from a quick run of a slide.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips.errors import OutputError, SettingsError, SlideError, StainError
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.physics import angle_deg, rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains, save_stains
from wsi_pgdips.optics.stains import fit_single_stain, make_stain_set
from wsi_pgdips.progress import Progress
from wsi_pgdips.records import FloatArray, StainSet, Vector
from wsi_pgdips.slide.reader import fallback_mpp, open_source
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import find_tissue

if TYPE_CHECKING:
    from wsi_pgdips.looks.reference import Reference

MAX_SIDE = 4096

_PARTS = 4  # of a region, down and across
LEAST_UNCERTAINTY_DEG = 1.0  # two regions of one stain never agree better


@dataclass(frozen=True)
class FittedStain:
    """A stain vector, and how it was found.

    Attributes:
        vector: (3,) unit OD vector. background: (3,) OD of glass that was subtracted.
        has_glass: False where the slide shows no glass, so that ``background`` is zero.
        uncertainty_deg: by how much the vectors of parts of the region differ from it.
    """

    vector: FloatArray
    background: FloatArray
    has_glass: bool
    uncertainty_deg: float = LEAST_UNCERTAINTY_DEG


def fit_stain(slide: Path, region_l0: Region, *, mpp_source: float | None = None) -> FittedStain:
    """Fit the vector of a region that holds one stain, corrected by the slide's glass.

    Args:
        slide: any slide or image. region_l0: at most 4096 x 4096 level-0 pixels inside it.
        mpp_source: micrometres per level-0 pixel, in place of the file's.

    Raises:
        SettingsError: the region is not inside the slide, or too large.
        SlideError: the slide cannot be read, or has no mpp or no tissue.
        StainError: the region is too pale.
    """
    with contextlib.closing(open_source(slide, mpp="native", mpp_source=mpp_source)) as source:
        grid = source.grid  # native: output pixels are level-0 pixels
        _check_region(region_l0, grid.shape)
        rgb = source.read(region_l0.y, region_l0.x, region_l0.h, region_l0.w)
        tissue = find_tissue(source)
        field, _, _ = background_field(tissue, grid)  # (CY, CX, 3)
    centre_y, centre_x = region_l0.y + region_l0.h // 2, region_l0.x + region_l0.w // 2
    background = field[centre_y // grid.cell, centre_x // grid.cell]
    od = rgb_to_od(rgb)
    vector = fit_single_stain(od.reshape(-1, 3), background)
    spread = _spread_deg(od, background, vector)
    return FittedStain(vector, background, bool(tissue.glass.any()), spread)


def _spread_deg(od: FloatArray, background: FloatArray, vector: FloatArray) -> float:
    """The root mean square angle between the vector and those of parts of the region, degrees."""
    angles = []
    for rows in np.array_split(od, _PARTS, axis=0):
        for part in np.array_split(rows, _PARTS, axis=1):
            with contextlib.suppress(StainError):  # a part may be too pale
                own = fit_single_stain(part.reshape(-1, 3), background)
                angles.append(float(angle_deg(own, vector)))
    if not angles:
        return LEAST_UNCERTAINTY_DEG
    return max(float(np.sqrt(np.mean(np.square(angles)))), LEAST_UNCERTAINTY_DEG)


def save_fitted(
    fitted: FittedStain,
    out: Path,
    *,
    label: str,
    color: str | None = None,
    source: str = "",
    add: bool = False,
) -> StainSet:
    """Write a fitted stain to a stain file, alone or added to the stains of an existing file.

    Raises:
        OutputError: the file exists and ``add`` is not set, or it cannot be written.
        SettingsError: not a .toml name.
        StainError: the stains of the file do not go together, a malformed colour.
    """
    if out.suffix.lower() != ".toml":
        raise SettingsError(
            "stain files are TOML", expected="a name that ends in .toml", found=out.name
        )
    labels, colors, rows, sources = [label], [color], [fitted.vector], [source]
    freedom = [round(fitted.uncertainty_deg, 2)]
    alternatives: list[tuple[Vector, ...]] = [()]
    saturating = 0 if label.strip().lower() == "dab" else -1
    name = out.name.removesuffix(out.suffix)
    if out.exists():
        if not add:
            raise OutputError(
                "the stain file exists",
                where=out,
                hint="give --add to add this stain to it, or another name",
            )
        old = load_stains(out)
        name = old.name
        labels, colors = [*old.labels, label], [*old.colors, color]
        rows, sources = [*old.stain_matrix, fitted.vector], [old.source, source]
        freedom = [*map(float, old.freedom), *freedom]
        alternatives = [*old.alternatives, ()]
        saturating = old.n if saturating == 0 else old.saturating
    stains = make_stain_set(
        name,
        labels,
        np.stack(rows),
        colors=colors,
        source="; ".join(dict.fromkeys(s for s in sources if s)),
        freedom_deg=freedom,
        alternatives=alternatives,
        saturating=saturating,
        where=out,
    )
    save_stains(stains, out)
    return stains


def stains_toml(stains: StainSet) -> str:
    """Return the text of a stain file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stains.toml"
        save_stains(stains, path)
        return path.read_text(encoding="utf-8")


def _check_region(region: Region, shape: tuple[int, int]) -> None:
    if region.h <= 0 or region.w <= 0 or region.clipped(shape) != region:
        raise SettingsError(
            "the region is not inside the slide",
            expected=f"x,y,w,h in level-0 pixels, inside {shape[1]} x {shape[0]}",
            found=f"{region.x},{region.y},{region.w},{region.h}",
            where="--region",
        )
    if max(region.h, region.w) > MAX_SIDE:
        raise SettingsError(
            "the region is too large for one stain",
            expected=f"at most {MAX_SIDE} x {MAX_SIDE} pixels",
            found=f"{region.w} x {region.h}",
            where="--region",
        )


def fit_reference(
    paths: Sequence[Path],
    name: str,
    *,
    tissue: Sequence[str | None] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Reference:
    """Measure the common look of slides, of finished layers, or of looks.

    Args:
        paths: slides, whose looks are measured; layers; or files of looks.
        name: of the group. tissue: what each shows; see ``pool_looks``. progress: is told of slides
            that have no say.
        settings: fields of ``ScientificSettings`` for slides, e.g. ``stains="hdab"``;
            ``mpp_source`` serves for the files that lack their own.

    Raises:
        SlideError, OutputError: something cannot be read, or every slide's verdict is ``fail``.
        SettingsError, StainError: tissues or stains do not go together.
    """
    from wsi_pgdips.looks.groups import check_tissues, pool_looks

    if tissue is not None:
        check_tissues(tissue, len(paths))
    looks, names, reason = [], [], ""
    for k, path in enumerate(paths):
        look, failed = _look_of_path(path, settings)
        if failed is None:
            looks.append(look)
            names.append(None if tissue is None else tissue[k])
            continue
        reason = f"{path.name}: {failed}"
        if progress is not None:
            progress.note(f"{path.name} has no say, its verdict is `fail`: {failed}")
    if not looks:
        raise SlideError(
            "no slide is fit for a reference",
            expected="at least one whose verdict is not `fail`",
            found=reason,
            hint="`wsi-pgdips info` on its layers lists all reasons",
        )
    return pool_looks(looks, name, None if tissue is None else names)


def _look_of_path(path: Path, settings: dict[str, Any]) -> tuple[Reference, str | None]:
    """Return the look of a path, and why it has no say."""
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.looks.files import load_reference
    from wsi_pgdips.looks.slide_look import slide_look
    from wsi_pgdips.pipeline.looks import measure_slide_look

    if path.suffix.lower() == ".json":
        return load_reference(path), None
    if (path / "zarr.json").is_file():
        layers = open_layers(path)
        verdict = layers.verdict
        return slide_look(layers), verdict.reasons[0] if verdict.status == "fail" else None
    mpp_source = fallback_mpp(path, settings.get("mpp_source"))
    return measure_slide_look(path, **{**settings, "mpp_source": mpp_source}), None
