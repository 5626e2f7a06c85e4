"""One render under three pairs of fields: what blended fields are worth, and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_pgdips.bench.linear import Result
from wsi_pgdips.bench.picture import unmix_od
from wsi_pgdips.bench.scene import Scene
from wsi_pgdips.field.windows import interpolate
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.density import rgb_to_od
from wsi_pgdips.records import Fields, FloatArray, SlidePrior, TileSource

if TYPE_CHECKING:
    from wsi_pgdips.run.context import Context


def render_under(
    source: TileSource,
    context: Context | None,
    prior: SlidePrior | None,
    stain_field: FloatArray,
    background_field: FloatArray,
) -> FloatArray:
    """Maps of a whole slide under given fields, by one and the same render.

    Plain non-negative least squares per pixel; a render that needs more of the slide finds it in
    ``context`` and ``prior``.

    Args:
        context, prior: of the slide's solved run; not needed by the closed form.
        stain_field: (N, 3), or (N, 3, H, W) at the pixels. background_field: (3,) or (3, H, W).

    Returns:
        (N, H, W) float32 q.
    """
    od = rgb_to_od(source.read(0, 0, *source.grid.shape)).transpose(2, 0, 1)
    return unmix_od(od, stain_field, background_field)


def fields_result(
    name: str,
    scene: Scene,
    blended: Fields | None,
    context: Context | None = None,
    prior: SlidePrior | None = None,
) -> Result:
    """The result of ``fields-constant``, ``fields-oracle`` or ``fields-blended``.

    Args:
        blended: the product's fields of this phantom; for ``fields-blended`` only.
    """
    if name == "fields-constant":
        rows, background = scene.linear.rays, scene.picture.glass
        maps = render_under(scene.source, context, prior, rows, background)
        return Result(maps, rows, background)
    if name == "fields-oracle":
        maps = render_under(scene.source, context, prior, *scene.pixel_fields())
        return Result(maps, *scene.tile_fields)
    if blended is None:
        raise ValueError("fields-blended needs the fields of a run")
    whole = Region(0, 0, *scene.grid.shape)
    s = interpolate(blended.stain_matrix, scene.grid, whole)
    s /= np.maximum(np.sqrt((s * s).sum(1, keepdims=True)), 1e-6)
    b = interpolate(blended.background, scene.grid, whole)
    maps = render_under(scene.source, context, prior, s, b)
    return Result(maps, blended.stain_matrix, blended.background)


def gap_closed(constant: float, blended: float, oracle: float) -> float:
    """Share of the way from the constant fields' error to the true fields' that is gone; 1 is all.

    NaN where the true fields are no better than the constant.
    """
    return (constant - blended) / (constant - oracle) if constant > oracle else float("nan")
