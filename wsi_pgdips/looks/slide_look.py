"""The look of a slide, measured on its own pixels under its fields: what a reference is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.looks.measure import AROUND_UM, measure
from wsi_pgdips.looks.pixels import planes_od
from wsi_pgdips.looks.reference import Reference, look_of
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.records import BlockFit, BoolArray, Fields, FloatArray, Pixels, SlidePrior

if TYPE_CHECKING:
    from wsi_pgdips.layers.reader import Layers
    from wsi_pgdips.stages.context import Context

# some four million pixels are read, of whole tiles where there are few; a quarter is looked at
TILES, SMALLEST_SIDE, STRIDE = 64, 256, 2
PIXELS = TILES * SMALLEST_SIDE**2
TileIndex = tuple[int, int]


def look_in_run(
    context: Context,
    prior: SlidePrior,
    fields: Fields,
    slide_matrix: FloatArray,
    fits: Sequence[BlockFit],
    pixels: Pixels,
) -> dict[str, Any]:
    """``measure`` over tiles of a run, spread evenly over those with tissue.

    Args:
        pixels: of the slide.
    """
    tiles = sorted(
        (int(ty), int(tx))
        for fit in fits
        for (ty, tx), share in zip(fit.index, fit.tissue, strict=True)
        if share >= context.settings.min_tissue
    )
    return _measured(
        pixels,
        context.grid,
        fields,
        slide_matrix,
        lambda r: context.tissue.window(r.y, r.x, r.h, r.w),
        tiles,
        prior.presence,
    )


def slide_look(layers: Layers, source: Pixels | None = None) -> Reference:
    """The look of a slide by its layers.

    Layers of before looks were measured are measured now, where the slide is at hand; without it
    only vectors, background and M are known.

    Args:
        source: the slide's pixels on the layers' grid.
    """
    own = layers.provenance
    prior, slide = own.get("prior") or {}, own.get("slide") or {}
    matrix = np.asarray(own["stain_matrix"], np.float32)
    measured = own.get("look") or {}
    if not measured and source is not None:
        tissue = layers.tissue()
        tiles = sorted(
            (int(y), int(x))
            for y, x in zip(layers.tiles["tile_y"], layers.tiles["tile_x"], strict=True)
        )
        measured = _measured(
            source,
            layers.grid,
            layers.fields,
            matrix,
            lambda r: np.asarray(tissue[r.slices].compute(), bool),
            tiles,
            np.asarray(prior["presence"], np.float32),
        )
    return look_of(
        str(slide.get("name", layers.path.name)),
        layers.stains.labels,
        layers.stains.colors,
        matrix,
        np.asarray(own["background"], np.float32),
        np.asarray(prior["spectral_correction"], np.float32),
        measured,
        {
            "checksum": slide.get("checksum"),
            "mpp": layers.grid.mpp,
            "preset": (own.get("settings") or {}).get("preset"),
            "identity": own.get("identity"),
            "software": (own.get("software") or {}).get("wsi-pgdips"),
        },
    )


def _measured(
    source: Pixels,
    grid: OutputGrid,
    fields: Fields,
    slide_matrix: FloatArray,
    tissue: Callable[[Region], BoolArray],
    tiles: Sequence[TileIndex],
    presence: FloatArray,
) -> dict[str, Any]:
    """``measure`` on the middle of up to 64 tiles, pixels carried to the slide's constant S.

    A tile that cannot be read is left out.
    """
    picked = np.unique(np.linspace(0, len(tiles) - 1, TILES).astype(int)) if tiles else ()
    od, q, around = [], [], []
    for region in _middles(grid, [tiles[i] for i in picked]):
        try:
            rgb = source.read(region.y, region.x, region.h, region.w)
        except WsiPgdipsError:
            continue
        inside = tissue(region)[::STRIDE, ::STRIDE]
        s = interpolate(fields.stain_matrix, grid, region)[..., ::STRIDE, ::STRIDE][..., inside]
        b = interpolate(fields.background, grid, region)[:, ::STRIDE, ::STRIDE][:, inside]
        whole = planes_od(rgb)
        y = whole[:, ::STRIDE, ::STRIDE][:, inside] - b
        near = gaussian_filter(whole.mean(0), AROUND_UM / grid.mpp)[::STRIDE, ::STRIDE][inside]
        around.append(near - b.mean(0))
        amount = _unmixed(y, s)
        # what the field says beyond the slide's constant is taken off
        od.append(y - np.einsum("np,ncp->cp", amount, s - slide_matrix[..., None]))
        q.append(amount)
    none = [np.zeros((k, 0), np.float32) for k in (3, len(slide_matrix))]
    return measure(
        np.concatenate([none[0], *od], 1),
        np.concatenate([none[1], *q], 1),
        presence,
        np.concatenate([none[0][0], *around]),
    )


def _unmixed(y: FloatArray, s: FloatArray) -> FloatArray:
    import torch

    from wsi_pgdips.optics.unmix import unmix

    with torch.no_grad():
        found = unmix(
            torch.from_numpy(y), torch.from_numpy(np.ascontiguousarray(s)), torch.zeros(3)
        )
    return np.asarray(found.numpy(), np.float32)


def _middles(grid: OutputGrid, tiles: Sequence[TileIndex]) -> Iterable[Region]:
    side = max(int((PIXELS / max(len(tiles), 1)) ** 0.5), SMALLEST_SIDE)
    for tile in tiles:
        r = grid.tile_region(*tile)
        h, w = min(side, r.h), min(side, r.w)
        yield Region(r.y + (r.h - h) // 2, r.x + (r.w - w) // 2, h, w)
