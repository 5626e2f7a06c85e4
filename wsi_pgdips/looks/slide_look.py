"""The look of a slide, measured on its own pixels: what references are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.looks.pixels import planes_od, unmixed
from wsi_pgdips.looks.reference import PERCENTILES, Reference, look_of, triple
from wsi_pgdips.optics.foreign import is_carbon, is_foreign
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.records import BoolArray, Fields, FloatArray, Pixels

if TYPE_CHECKING:
    from wsi_pgdips.layers.reader import Layers

# about four million pixels are read, whole tiles where there are few; a quarter of them is used
_TILES, _SMALLEST_SIDE, _STRIDE = 64, 256, 2
_PIXELS = _TILES * _SMALLEST_SIDE**2
# a stain's own pixels are those of which it makes up more than half, except those with less than
# a quarter of the 95th percentile of all such pixels (decision 36)
_OWN_SHARE = 0.5
_OWN_AMOUNT, _OWN_PERCENTILE = 0.25, 95.0
_MIN_OWN_PIXELS = 200
# the palest tissue, without its gaps: those are paler than a share of what is dark
_PALEST_PERCENTILE = 15.0
_GAP_SHARE, _DARK_PERCENTILE = 0.1, 95.0
_AROUND_UM = 4.0  # sigma of the Gaussian that finds gaps
_SPREAD = (16.0, 84.0)  # percentiles: one standard deviation to each side, whatever the tails
_POOL = 4  # pixels
_TileIndex = tuple[int, int]


def slide_look(layers: Layers, source: Pixels | None = None) -> Reference:
    """Return the look of a slide, from its layers.

    Layers of early versions hold no measured look: it is measured now if the slide is given. Else
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
        index = (layers.tiles[name].to_pylist() for name in ("tile_y", "tile_x"))
        measured = measure_look(
            source,
            layers.grid,
            layers.fields,
            matrix,
            lambda r: np.asarray(tissue[r.slices].compute(), bool),
            sorted(zip(*index, strict=True)),
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


def measure_look(
    source: Pixels,
    grid: OutputGrid,
    fields: Fields,
    slide_matrix: FloatArray,
    tissue: Callable[[Region], BoolArray],
    tiles: Sequence[_TileIndex],
    presence: FloatArray,
) -> dict[str, Any]:
    """Measure the look of a slide on the middle of up to 64 of its tiles.

    What the stain field adds to the slide's constant stain vectors is taken off each pixel. A tile
    that cannot be read is left out.

    Args:
        source: the slide's pixels on ``grid``. fields: S and B of the slide.
        slide_matrix: (N, 3) stain vectors of the slide as a whole.
        tissue: returns the (h, w) tissue mask of a region.
        tiles: (ty, tx) of tiles with tissue, sorted; some are picked, spread evenly.
        presence: (N,) OD, see :func:`measure_sample`.

    Returns:
        See :func:`measure_sample`.
    """
    picked = np.unique(np.linspace(0, len(tiles) - 1, _TILES).astype(int)) if tiles else ()
    od, q = ([np.zeros((k, 0), np.float32)] for k in (3, len(slide_matrix)))
    around = [np.zeros(0, np.float32)]
    for region in _middles(grid, [tiles[i] for i in picked]):
        try:
            rgb = source.read(region.y, region.x, region.h, region.w)
        except WsiPgdipsError:
            continue
        inside = tissue(region)[::_STRIDE, ::_STRIDE]
        s = interpolate(fields.stain_matrix, grid, region)[..., ::_STRIDE, ::_STRIDE][..., inside]
        b = interpolate(fields.background, grid, region)[:, ::_STRIDE, ::_STRIDE][:, inside]
        whole = planes_od(rgb)
        # a stain that saturates loses its colour: black is neither its look nor another's
        told = ~_foreign(whole, s, b, inside, saturates=fields.brown.size > 0)
        inside[inside] = told
        s, b = s[..., told], b[:, told]
        y = whole[:, ::_STRIDE, ::_STRIDE][:, inside] - b
        near = gaussian_filter(whole.mean(0), _AROUND_UM / grid.mpp)[::_STRIDE, ::_STRIDE][inside]
        around.append(near - b.mean(0))
        q.append(unmixed(y, s, np.zeros(3, np.float32)))
        od.append(y - np.einsum("np,ncp->cp", q[-1], s - slide_matrix[..., None]))
    return measure_sample(
        np.concatenate(od, 1), np.concatenate(q, 1), presence, np.concatenate(around)
    )


def _foreign(
    od: FloatArray, s: FloatArray, b: FloatArray, inside: BoolArray, *, saturates: bool
) -> BoolArray:
    """Find foreign pixels by their means over 4x4 pixels, and black where a stain saturates: (P,).

    Args:
        od: (3, h, w). s: (N, 3, P), b: (3, P) at the P pixels of ``inside``, on the stride.
    """
    pooled = uniform_filter(od, (0, _POOL, _POOL), mode="nearest")[:, ::_STRIDE, ::_STRIDE]
    y = np.asarray(pooled[:, inside] - b, np.float32)
    q = unmixed(y, s, np.zeros(3, np.float32))
    outside = y - np.einsum("np,ncp->cp", q, s)
    length, off = (np.sqrt((v * v).sum(0)) for v in (y, outside))
    found = is_foreign(length, off)
    if saturates:
        found = found | is_carbon(y, length)
    return np.asarray(found, bool)


def _middles(grid: OutputGrid, tiles: Sequence[_TileIndex]) -> Iterator[Region]:
    """Yield the middle of each tile, larger where there are few tiles."""
    side = max(int((_PIXELS / max(len(tiles), 1)) ** 0.5), _SMALLEST_SIDE)
    for tile in tiles:
        r = grid.tile_region(*tile)
        h, w = min(side, r.h), min(side, r.w)
        yield Region(r.y + (r.h - h) // 2, r.x + (r.w - w) // 2, h, w)


def measure_sample(
    od: FloatArray, q: FloatArray, presence: FloatArray, around: FloatArray
) -> dict[str, Any]:
    """Measure typical colours, the palest tissue, and percentiles of a sample of tissue pixels.

    A typical colour is a median and not a stain's vector, because vectors are edges of the cone of
    colours: noise and sharpening of a camera move them, and most pixels never reach them. It is
    taken over the stain's own pixels, because how much of a slide a stain covers is no part of its
    look.

    Args:
        od: (3, n) OD - B, the residual included. q: (N, n) OD along the unit vectors.
        presence: (N,) OD; a stain whose 99.5th percentile lies below it is absent.
        around: (n,) mean OD - B around each pixel, by a Gaussian of 4 um.

    Returns:
        JSON-ready: ``typical_od``, one row or None a stain, ``palest_od``, ``off_plane_od``,
        ``percentiles`` of q.
    """
    typical: list[tuple[float, float, float] | None] = []
    total = q.sum(0)
    top = np.percentile(q, 99.5, axis=1) if q.shape[1] else np.zeros(len(q))
    for k, amount in enumerate(q):
        # what is paler than presence is glass and noise, and of no stain
        own = (amount > _OWN_SHARE * total) & (amount > presence[k])
        if own.any():
            own &= amount > _OWN_AMOUNT * np.percentile(amount[own], _OWN_PERCENTILE)
        enough = top[k] > presence[k] and own.sum() >= _MIN_OWN_PIXELS
        typical.append(triple(np.median(od[:, own], 1)) if enough else None)
    palest = None
    if around.size:
        solid = around > _GAP_SHARE * np.percentile(around, _DARK_PERCENTILE)
        if solid.sum() >= _MIN_OWN_PIXELS:
            palest = list(triple(np.percentile(od[:, solid], _PALEST_PERCENTILE, axis=1)))
    values = np.percentile(q, PERCENTILES, axis=1) if q.shape[1] else np.zeros((0, len(q)))
    return {
        "typical_od": [None if row is None else list(row) for row in typical],
        "palest_od": palest,
        "off_plane_od": _off_plane(od, typical),
        "percentiles": {
            f"{p:g}": [round(float(v), 6) for v in row]
            for p, row in zip(PERCENTILES, values, strict=False)
        },
    }


def _off_plane(od: FloatArray, typical: list[tuple[float, float, float] | None]) -> float | None:
    """Spread of (3, n) OD perpendicular to two typical colours; None if there are not two."""
    rows = [row for row in typical if row is not None]
    if len(typical) != 2 or len(rows) != 2 or od.shape[1] < _MIN_OWN_PIXELS:
        return None
    normal = np.cross(np.asarray(rows[0]), np.asarray(rows[1]))
    length = float(np.linalg.norm(normal))
    if length < 1e-9:
        return None
    low, high = np.percentile((normal / length) @ od, _SPREAD)
    return round(float(high - low) / 2, 6)
