"""The tissue of a phantom: layout, concentrations and mask of any cell of the slide.

A *cell* is a square of 512 level-0 pixels, always computed whole, so that a pixel has the same
value whichever window asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy import ndimage

from wsi_pgdips.records import ByteArray, FloatArray
from wsi_pgdips.slide.phantom_config import PhantomConfig
from wsi_pgdips.slide.textures import (
    CELL_REACH_UM,
    FRINGE_PERIOD,
    MATRIX_PERIOD,
    CellAtlas,
    Offsets,
    Stamp,
    padded,
    texture_library,
    window,
)

CELL = 512
STEP = 32  # pixels between the samples of the layout's slow fields
_PALEST = np.float32(0.06)  # OD of the palest tissue on a slide without glass
_MARGIN = 8  # samples around the slide, for halos


class Tissue(Protocol):
    """Where a phantom's concentrations come from."""

    def concentration(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """(N, h, w) concentration before M, and (h, w) tissue mask of 0 and 1."""
        ...


def _lattice(config: PhantomConfig) -> tuple[int, int]:
    return (
        -(-config.shape[0] // STEP) + 2 * _MARGIN + 20,
        -(-config.shape[1] // STEP) + 2 * _MARGIN + 20,
    )


def _slow_noise(rng: np.random.Generator, lattice: tuple[int, int], sigma_px: float) -> FloatArray:
    """Smooth noise of zero mean and unit variance over the slide's lattice."""
    field = ndimage.gaussian_filter(rng.standard_normal(lattice), sigma_px / STEP, mode="reflect")
    return np.asarray((field - field.mean()) / max(field.std(), 1e-9), np.float32)


@dataclass(frozen=True)
class Layout:
    """Slow fields on the lattice of the slide, sample (i, j) at pixel ((i - margin) * STEP, ...).

    Attributes:
        edge: signed distance-like depth in the tissue, pixels. glands: > 0 in glandular zones.
        density: nuclei shown, 0 to 1. thickness: factor on the matrix. weave: choice of fibres.
        presence: (N, ...) share of each stain, 0 to 1. fold: gain of dark folds, >= 1.
    """

    edge: FloatArray
    glands: FloatArray
    density: FloatArray
    thickness: FloatArray
    weave: FloatArray
    presence: FloatArray
    fold: FloatArray

    def sample(self, field: FloatArray, y: float, x: float) -> float:
        """Nearest sample of a field at a pixel."""
        i = min(max(round(y / STEP) + _MARGIN, 0), field.shape[0] - 1)
        j = min(max(round(x / STEP) + _MARGIN, 0), field.shape[1] - 1)
        return float(field[i, j])

    def window(self, field: FloatArray, y: int, x: int, h: int, w: int) -> FloatArray:
        """(..., h, w) bilinear values of a (..., I, J) field."""
        (i0, rows), (j0, cols) = _weights(y, h), _weights(x, w)
        part = field[..., i0 : i0 + rows.shape[1], j0 : j0 + cols.shape[1]]
        return np.asarray(rows @ part @ cols.T, np.float32)


def _weights(start: int, count: int) -> tuple[int, FloatArray]:
    """First sample and (count, samples) interpolation weights of a run of pixels."""
    at = np.arange(start, start + count) / STEP + _MARGIN
    first = int(np.floor(at[0]))
    low = np.floor(at).astype(int) - first
    weights = np.zeros((count, int(low[-1]) + 2), np.float32)
    share = (at - np.floor(at)).astype(np.float32)
    weights[np.arange(count), low] = 1 - share
    weights[np.arange(count), low + 1] += share
    return first, weights


def _tissue_edge(config: PhantomConfig, rng: np.random.Generator) -> FloatArray:
    lattice, scale = _lattice(config), 1 / config.mpp
    rough = _slow_noise(rng, lattice, 90 * scale) * 42 * scale
    rough += _slow_noise(rng, lattice, 28 * scale) * 9 * scale
    holes = _slow_noise(rng, lattice, 40 * scale)
    if not config.glass:
        return np.full(lattice, 1e4, np.float32)
    height, width = config.shape
    yy = (np.arange(lattice[0])[:, None] - _MARGIN) * STEP
    xx = (np.arange(lattice[1])[None, :] - _MARGIN) * STEP
    along_x = width >= height
    edge = np.full(lattice, -np.inf)
    for k in range(config.pieces):
        share = (k + 0.5) / config.pieces
        cy, cx = (0.5, share) if along_x else (share, 0.5)
        cy, cx = cy + rng.uniform(-0.03, 0.03), cx + rng.uniform(-0.03, 0.03) / config.pieces
        ry, rx = (0.43, 0.43 / config.pieces) if along_x else (0.43 / config.pieces, 0.43)
        u, v = (yy / height - cy) / ry, (xx / width - cx) / rx
        # superellipse: a tissue piece fills more of its box than an ellipse
        r = (np.abs(u) ** 2.6 + np.abs(v) ** 2.6) ** (1 / 2.6)
        edge = np.maximum(edge, (1 - r) * min(ry * height, rx * width))
    edge = edge + rough
    return np.asarray(np.minimum(edge, (2.1 - holes) * 40 * scale), np.float32)


def make_layout(config: PhantomConfig) -> Layout:
    """Slow fields of a slide, by seed."""
    rng = np.random.default_rng([config.seed, 202])
    lattice, scale = _lattice(config), 1 / config.mpp
    edge = _tissue_edge(config, rng)
    inside = np.zeros(lattice, bool)
    inside[
        _MARGIN : _MARGIN + -(-config.shape[0] // STEP),
        _MARGIN : _MARGIN + -(-config.shape[1] // STEP),
    ] = True
    inside &= edge > 0
    size = min(config.shape)
    presence = []
    for stain in config.stains:
        field = _slow_noise(rng, lattice, 0.09 * size)
        if stain.presence >= 1 or not inside.any():
            presence.append(np.ones(lattice, np.float32))
            continue
        threshold = np.quantile(field[inside], 1 - stain.presence)
        share = np.clip((field - threshold) / 0.3 + 0.5, 0, 1)
        presence.append(share.astype(np.float32))
    fold = np.ones(lattice, np.float32)
    crease = np.abs(_slow_noise(rng, lattice, 0.11 * size))
    if config.saturated_fraction > 0 and inside.any():
        width = np.quantile(crease[inside], config.saturated_fraction)
        fold += (4.5 * np.clip((width - crease) / (0.35 * width) + 0.5, 0, 1)).astype(np.float32)
    follicles = _slow_noise(rng, lattice, 48 * scale)
    patches = _slow_noise(rng, lattice, 20 * scale)
    return Layout(
        edge=edge,
        glands=_slow_noise(rng, lattice, 130 * scale) + 0.25,
        density=np.clip(
            0.2 + 0.05 * patches + 0.75 * np.clip(follicles - 0.85, 0, 0.9), 0.04, 0.95
        ).astype(np.float32),
        thickness=np.clip(
            1 + 0.16 * _slow_noise(rng, lattice, 110 * scale) + 0.05 * patches, 0.5, 1.5
        ),
        weave=_slow_noise(rng, lattice, 55 * scale),
        presence=np.stack(presence),
        fold=fold,
    )


@dataclass(frozen=True)
class ProceduralTissue:
    """Tissue made of the textures of ``textures`` by a layout; implements :class:`Tissue`."""

    config: PhantomConfig
    layout: Layout

    @cached_property
    def _extra(self) -> int:
        return CELL + 2 * halo(self.config)

    @cached_property
    def _sheets(self) -> tuple[tuple[FloatArray, FloatArray], CellAtlas, FloatArray]:
        """Fibres, cells and fringe, padded for windows of one cell with its halo."""
        library, extra = texture_library(self.config.seed, self.config.mpp), self._extra
        first, second = (padded(f, extra) for f in library.fibres)
        return (first, second), library.cells.padded(extra), padded(library.fringe, extra)

    def concentration(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """See :meth:`Tissue.concentration`."""
        slow = self.layout.window
        box = (y, x, h, w)
        edge = slow(self.layout.edge, *box) + window(self._sheets[2], FRINGE_PERIOD, *box)
        tissue = np.clip(edge / 2.5 + 0.5, 0, 1)
        roles = {s.role: n for n, s in enumerate(self.config.stains)}
        q = np.zeros((len(roles), h, w), np.float32)
        if not tissue.any():
            return q, np.zeros((h, w), np.uint8)
        presence = slow(self.layout.presence, *box)
        maps = self._sheet(box, roles.get("marker"))
        maps = self._stamped(maps, box, roles.get("marker"))
        nuclear, counter, marker, cover = maps
        tissue *= cover
        if "counterstain" in roles:
            # dense chromogen keeps the counterstain out
            q[roles["counterstain"]] = counter * np.clip(1.1 - 2 * marker, 0, 1)
        else:
            # without a counterstain the matrix takes a little of the first stain, as in IHC
            host = q[roles["nuclear"]] if "nuclear" in roles else q[0]
            host += 0.22 * np.maximum(counter - 0.12, 0) * np.clip(1 - 3 * marker, 0, 1)
        if "nuclear" in roles:
            q[roles["nuclear"]] += nuclear
        if "marker" in roles:
            q[roles["marker"]] += marker
        for n, stain in enumerate(self.config.stains):
            if stain.presence < 1:
                q[n] *= stain.absent_level + (1 - stain.absent_level) * presence[n]
        q *= tissue
        if not self.config.glass:
            base = roles.get("counterstain", 0)
            q[base] += np.maximum(_PALEST - q.sum(axis=0), 0)
        if self.config.saturated_fraction > 0:
            q *= slow(self.layout.fold, *box)
        return q, (tissue > 0.5).astype(np.uint8)

    def _at_centres(
        self, field: FloatArray, offset: Offsets, box: tuple[int, int, int, int]
    ) -> FloatArray:
        """(h, w) values of a slow field at the centre of the cell each pixel belongs to."""
        y, x, h, w = box
        reach = int(CELL_REACH_UM / self.config.mpp)
        wide = self.layout.window(field, y - reach, x - reach, h + 2 * reach, w + 2 * reach)
        stride = w + 2 * reach
        start = (np.arange(h) + reach)[:, None] * stride + (np.arange(w) + reach)[None, :]
        flat = start.astype(np.int32)
        flat -= offset[0].astype(np.int32) * np.int32(stride)
        flat -= offset[1]
        return np.take(wide.ravel(), flat)

    def _sheet(self, box: tuple[int, int, int, int], marker_index: int | None) -> list[FloatArray]:
        """Nuclear, counterstain, marker and cover of stroma: fibres and single cells."""
        slow, (fibres, cells, _) = self.layout.window, self._sheets
        weave = np.clip(0.5 + 1.2 * slow(self.layout.weave, *box), 0, 1)
        first, second = (window(f, MATRIX_PERIOD, *box) for f in fibres)
        counter = (second + weave * (first - second)) * slow(self.layout.thickness, *box)
        density = self.layout.density
        here = cells.window(*box)
        shown = self._at_centres(density, here.offset, box) > here.rank
        nuclear = here.nuclear * shown
        # crowded cells push the fibres aside
        counter *= np.where(shown, here.under, np.float32(1)) * (1.15 - 0.75 * slow(density, *box))
        marker = np.zeros_like(counter)
        if marker_index is not None:
            offset, focus = here.marker_offset, self.layout.presence[marker_index]
            positive = self._at_centres(density, offset, box) > here.marker_rank
            positive &= self._at_centres(focus, offset, box) > here.focus_rank
            marker = here.marker * positive
        return [nuclear, counter, marker, np.ones_like(counter)]

    def _stamped(
        self,
        maps: list[FloatArray],
        box: tuple[int, int, int, int],
        marker_index: int | None,
    ) -> list[FloatArray]:
        """Lay the glands and vessels that touch a window over its stroma."""
        nuclear, counter, marker, cover = maps
        for stamp, top, left, turn in self._placements(box):
            part = np.rot90(stamp.maps, turn % 4, axes=(1, 2))
            if turn >= 4:
                part = part[:, :, ::-1]
            side = part.shape[-1]
            t, b = max(top, 0), min(top + side, box[2])
            le, r = max(left, 0), min(left + side, box[3])
            if t >= b or le >= r:
                continue
            here = (slice(t, b), slice(le, r))
            alpha, nuc, cou, mar, lumen = part[:, t - top : b - top, le - left : r - left]
            keep = 1 - alpha
            nuclear[here] = nuclear[here] * keep + nuc
            counter[here] = counter[here] * keep + cou
            if marker_index is not None:
                focus = self.layout.sample(
                    self.layout.presence[marker_index],
                    box[0] + top + side / 2,
                    box[1] + left + side / 2,
                )
                marker[here] = marker[here] * keep + mar * np.float32(focus > stamp.focus_rank)
            if self.config.glass:
                cover[here] = cover[here] * keep + alpha * (1 - lumen)
            else:
                cover[here] = cover[here] * keep + alpha
                counter[here] += 0.14 * alpha * lumen  # secretion: no glass anywhere
        return [nuclear, counter, marker, cover]

    def _placements(self, box: tuple[int, int, int, int]) -> list[tuple[Stamp, int, int, int]]:
        """Stamps that may touch a window with their top left in it, in one fixed order."""
        y, x, h, w = box
        found = []
        library = texture_library(self.config.seed, self.config.mpp)
        for kind, pitch_um, code in (("vessel", 330.0, 2), ("gland", 118.0, 1)):
            stamps, pitch = library.stamps[kind], pitch_um / self.config.mpp
            reach = max(s.half for s in stamps) + 0.3 * pitch
            for i in range(int((y - reach) // pitch), int((y + h + reach) // pitch) + 1):
                for j in range(int((x - reach) // pitch), int((x + w + reach) // pitch) + 1):
                    rng = np.random.default_rng([self.config.seed, code, i + 9999, j + 9999])
                    cy = (i + 0.5 + rng.uniform(-0.16, 0.16)) * pitch
                    cx = (j + 0.5 + 0.5 * (i % 2) + rng.uniform(-0.16, 0.16)) * pitch
                    chance = rng.random()
                    stamp = stamps[int(rng.integers(len(stamps)))]
                    turn = int(rng.integers(8))
                    zone = self.layout.sample(self.layout.glands, cy, cx)
                    depth = self.layout.sample(self.layout.edge, cy, cx)
                    if kind == "gland" and not (
                        zone > 0 and chance < 0.93 and depth > 0.25 * stamp.half
                    ):
                        continue
                    if kind == "vessel" and not (
                        zone < 0.3 and chance < 0.8 and depth > stamp.half
                    ):
                        continue
                    found.append(
                        (stamp, round(cy) - stamp.half - y, round(cx) - stamp.half - x, turn)
                    )
        return found


def halo(config: PhantomConfig) -> int:
    """Pixels around a cell that its defocus blur reads."""
    return int(np.ceil(4 * config.defocus_sigma))
