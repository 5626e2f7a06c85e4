"""The look of a slide, measured on its own pixels: what references are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, uniform_filter

from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.looks.hashed import Json
from wsi_pgdips.looks.pixels import planes_od, unmixed
from wsi_pgdips.looks.reference import Reference, numbers, rows_of, triple
from wsi_pgdips.optics.foreign import is_carbon, is_foreign
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.optics.physics import light_to_od, unit_rows
from wsi_pgdips.records import BoolArray, Fields, FloatArray, Pixels

if TYPE_CHECKING:
    from wsi_pgdips.layers.reader import Layers

# about four million pixels are read, whole tiles where there are few
_TILES, _SMALLEST_SIDE = 64, 256
_PIXELS = _TILES * _SMALLEST_SIDE**2
_FINEST_UM = 1.0  # pixels are thinned to about this, after a blur that all scanners resolve
_BLUR_UM = 1.5
_POOL = 4  # pixels, over which a colour is judged foreign
# paler pixels may be glass; relative to the 95th percentile of density, as scanners differ in gain
_PALE, _LEAST_OD = 0.05, 0.005
_MIN_PIXELS = 500
# ranks between which colours are averaged: of density, and of the share of red where density is
# middling, as the darkest loses its hue. Ranks tell parts of a tissue apart on any scanner.
DENSITY_RANKS = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.96, 0.995)
HUE_RANKS = (0.005, 0.05, 0.15, 0.35, 0.65, 0.85, 0.95, 0.995)
_MIDDLING = (0.4, 0.9)  # ranks of density
TEXTURE_UM = (3.0, 6.0, 12.0, 24.0)  # sigma of Gaussians
MEASURES = (len(DENSITY_RANKS) + len(HUE_RANKS) - 2, len(TEXTURE_UM))  # of colours and textures
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
    measured = own.get("look") or {}
    if "tissue_od" not in measured:
        measured = {}
    if not measured and source is not None:
        tissue = layers.tissue()
        index = (layers.tiles[name].to_pylist() for name in ("tile_y", "tile_x"))
        measured = measure_look(
            source,
            layers.grid,
            layers.fields,
            np.asarray(own["stain_matrix"], np.float32),
            lambda r: np.asarray(tissue[r.slices].compute(), bool),
            sorted(zip(*index, strict=True)),
            saturates=layers.fields.brown.size > 0,
        )
    return look_of(
        str(slide.get("name", layers.path.name)),
        layers.stains.labels,
        layers.stains.colors,
        np.asarray(own["stain_matrix"], np.float32),
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


def look_of(
    name: str,
    labels: Sequence[str],
    colors: Sequence[str],
    stain_matrix: FloatArray,
    background: FloatArray,
    spectral_correction: FloatArray,
    measured: Mapping[str, Any],
    source: Json,
) -> Reference:
    """Return the look of one slide, from its parameters and measurements of its pixels.

    Args:
        stain_matrix: (N, 3). background: (3,) OD. spectral_correction: (N,) M, OD.
        measured: result of :func:`measure_look`; empty if nothing was measured.
        source: the entry of ``Reference.sources``.
    """
    raised = np.asarray(measured.get("raised_od") or (0.0, 0.0, 0.0))
    return Reference(
        name,
        tuple(labels),
        tuple(colors),
        rows_of(unit_rows(stain_matrix)),
        triple(background - raised),
        bool(measured.get("glass_measured", True)),
        numbers(spectral_correction),
        rows_of(measured.get("tissue_od") or ()),
        numbers(measured.get("texture") or ()),
        sources=(source,),
    )


def measure_look(
    source: Pixels,
    grid: OutputGrid,
    fields: Fields,
    slide_matrix: FloatArray,
    tissue: Callable[[Region], BoolArray],
    tiles: Sequence[_TileIndex],
    *,
    raised: FloatArray | None = None,
    glass_measured: bool = True,
    saturates: bool = False,
) -> dict[str, Any]:
    """Measure the look of a slide on the middle of up to 64 of its tiles.

    What the stain field adds to the slide's constant stain vectors is taken off each pixel. A tile
    that cannot be read is left out.

    Args:
        source: the slide's pixels on ``grid``. fields: S and B of the slide.
        slide_matrix: (N, 3) stain vectors of the slide as a whole.
        tissue: returns the (h, w) tissue mask of a region.
        tiles: (ty, tx) of tiles with tissue, sorted; some are picked, spread evenly.
        raised: (3,) the part of B that only lifts it to a floor; a look does without it.
        glass_measured: whether the slide shows its glass.
        saturates: whether one of the stains does, as DAB.

    Returns:
        JSON-ready: that of :func:`measure_sample`, ``raised_od`` and ``glass_measured``.
    """
    picked = np.unique(np.linspace(0, len(tiles) - 1, _TILES).astype(int)) if tiles else ()
    step = max(round(_FINEST_UM / grid.mpp), 1)
    windows: list[tuple[FloatArray, BoolArray]] = []
    floor = np.zeros(3, np.float32) if raised is None else raised
    for region in _middles(grid, [tiles[i] for i in picked]):
        try:
            rgb = source.read(region.y, region.x, region.h, region.w)
        except WsiPgdipsError:
            continue
        middle = Region(region.y + region.h // 2, region.x + region.w // 2, 1, 1)
        s = interpolate(fields.stain_matrix, grid, middle)[..., 0, 0]
        b = interpolate(fields.background, grid, region)[:, ::step, ::step] - floor[:, None, None]
        # a stain that saturates loses its colour: black is neither its look nor another's
        known = tissue(region)[::step, ::step] & ~_foreign(
            planes_od(rgb), b, s, step, saturates=saturates
        )
        sigma = _BLUR_UM / grid.mpp
        soft = gaussian_filter(rgb[..., :3].astype(np.float32), (sigma, sigma, 0))
        od = light_to_od(soft[::step, ::step].transpose(2, 0, 1))
        y = np.einsum("ij,jhw->ihw", drift_map(s, slide_matrix), od - b)
        windows.append((np.asarray(y, np.float32), known))
    return {
        **measure_sample(windows, grid.mpp * step),
        "raised_od": [round(float(v), 6) for v in floor],
        "glass_measured": glass_measured,
    }


def drift_map(
    here: npt.NDArray[np.floating], slide: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return (..., 3, 3) D: D y is what y would be under the slide's constant stain vectors.

    D y = y + sum_n q_n (S0_n - S_n), with q of least squares under the vectors ``here``.

    Args:
        here: (..., N, 3) unit rows S(x). slide: (N, 3) unit rows S0.
    """
    s = np.asarray(here, np.float64)
    dual = np.linalg.pinv(np.swapaxes(s, -1, -2), rcond=0.1)  # (..., N, 3): q = dual y
    return np.asarray(np.eye(3) + np.swapaxes(slide - s, -1, -2) @ dual, np.float64)


def _foreign(
    od: FloatArray, b: FloatArray, s: FloatArray, step: int, *, saturates: bool
) -> BoolArray:
    """Find foreign pixels by their means over 4x4 pixels, and black where a stain saturates.

    Args:
        od: (3, h, w). b: (3, h', w'), every ``step`` pixels. s: (N, 3).
    """
    pooled = uniform_filter(od, (0, _POOL, _POOL), mode="nearest")[:, ::step, ::step]
    y = np.asarray(pooled - b, np.float32)
    outside = y - np.einsum("nhw,nc->chw", unmixed(y, s, np.zeros(3, np.float32)), s)
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
    windows: Sequence[tuple[FloatArray, BoolArray]], mpp: float
) -> dict[str, list[Any]]:
    """Measure the mean colours of parts of the tissue, and its texture.

    Parts are told apart by rank: of density, and of the share of red. A texture is the standard
    deviation of ranks of density after a Gaussian, relative to that before it. Neither ranks nor
    texture depend on the scanner, so that like tissue on two scanners has like parts.

    Args:
        windows: (3, h, w) OD - B after a blur of 1.5 um, and (h, w) bool where it is tissue.
        mpp: micrometres per pixel of the windows.

    Returns:
        JSON-ready: ``tissue_od``, (14, 3) rows, and ``texture``; both empty for too few pixels.
    """
    known = [y.mean(0)[where] for y, where in windows]
    dark = np.percentile(np.concatenate(known), 95) if any(map(len, known)) else 0.0
    least = max(_PALE * float(dark), _LEAST_OD)
    inside = [where & (y.mean(0) > least) for y, where in windows]
    if sum(int(m.sum()) for m in inside) < _MIN_PIXELS:
        return {"tissue_od": [], "texture": []}
    y = np.concatenate([y[:, m] for (y, _), m in zip(windows, inside, strict=True)], 1)
    density = y.mean(0)
    rows = [*_means(y, density, DENSITY_RANKS)]
    low, high = np.quantile(density, _MIDDLING)
    middling = y[:, (density >= low) & (density <= high)]
    rows += _means(middling, middling[0] / middling.sum(0), HUE_RANKS)
    ordered, n = np.sort(density), len(density)
    square = np.zeros(len(TEXTURE_UM))
    for (window, _), m in zip(windows, inside, strict=True):
        rank = np.searchsorted(ordered, window.mean(0)) / n - 0.5
        flat, share = np.where(m, rank, 0).astype(np.float32), m.astype(np.float32)
        for k, um in enumerate(TEXTURE_UM):
            smooth, weight = (gaussian_filter(v, um / mpp) for v in (flat, share))
            square[k] += float(np.square(smooth[m] / np.maximum(weight[m], 1e-3)).sum())
    return {
        "tissue_od": [list(row) for row in rows_of(rows)],
        "texture": list(numbers(np.sqrt(12 * square / n))),  # 1/12: variance of ranks
    }


def _means(
    y: FloatArray, by: npt.NDArray[np.floating], ranks: Sequence[float]
) -> list[npt.NDArray[np.float64]]:
    """Average (3, n) colours between ranks of another number, (n,)."""
    ordered = y[:, np.argsort(by, kind="stable")]
    ends = [int(rank * ordered.shape[1]) for rank in ranks]
    return [
        np.asarray(ordered[:, a : max(b, a + 1)].mean(1, dtype=np.float64))
        for a, b in pairwise(ends)
    ]
