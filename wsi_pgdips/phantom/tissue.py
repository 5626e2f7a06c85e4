"""The tissue of a phantom, procedural or from a real slide: concentrations and a tissue mask.

A *cell* is a square of 512 level-0 pixels. It is always computed whole, so that a pixel has the
same value in any window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Protocol

import numpy as np
from scipy import ndimage

from wsi_pgdips.errors import StainError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.phantom.config import PhantomConfig
from wsi_pgdips.phantom.layout import Layout
from wsi_pgdips.phantom.sheets import (
    CELL_REACH_UM,
    MATRIX_PERIOD,
    CellAtlas,
    Offsets,
    padded,
    window,
)
from wsi_pgdips.phantom.textures import DEPOSIT_FOCUS, FRINGE_PERIOD, Stamp, texture_library
from wsi_pgdips.records import ByteArray, FloatArray

CELL = 512
_OPTICAL_TRUNCATE = 3.0
_PALEST = np.float32(0.06)  # OD of the palest tissue on a slide without glass
_POOL = 8  # side of the squares that are tissue or not; divides the side of a cell
_TISSUE_OD = 0.06
_Box = tuple[int, int, int, int]  # y, x, h, w of a window


class Tissue(Protocol):
    """A source of concentrations for a phantom."""

    def concentration(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """Return (N, h, w) concentrations before M, and the (h, w) tissue mask of 0 and 1."""
        ...


@dataclass(frozen=True)
class ProceduralTissue:
    """Tissue drawn from the textures of a seed by a layout; implements :class:`Tissue`."""

    config: PhantomConfig
    layout: Layout

    @cached_property
    def _extra(self) -> int:
        return CELL + 2 * (halo(self.config) + _optical_reach(self.config))

    @cached_property
    def _sheets(self) -> tuple[tuple[FloatArray, FloatArray], CellAtlas, FloatArray]:
        """The fibres, cells and fringe, padded for windows of one cell with its halo."""
        library, extra = texture_library(self.config.seed, self.config.mpp), self._extra
        first, second = (padded(f, extra) for f in library.fibres)
        return (first, second), library.cells.padded(extra), padded(library.fringe, extra)

    def concentration(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """See :meth:`Tissue.concentration`; the mask is not blurred."""
        reach = _optical_reach(self.config)
        q, tissue = self._drawn(y - reach, x - reach, h + 2 * reach, w + 2 * reach)
        if reach == 0:
            return q, tissue
        if tissue.any():
            for plane in q:
                plane[...] = ndimage.gaussian_filter(
                    plane, self.config.optical_sigma, truncate=_OPTICAL_TRUNCATE
                )
        inner = (slice(reach, reach + h), slice(reach, reach + w))
        return q[:, *inner], tissue[inner]

    def _drawn(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """Return concentrations and mask before the optics."""
        slow = self.layout.window
        box = (y, x, h, w)
        edge = slow(self.layout.edge, *box) + window(self._sheets[2], FRINGE_PERIOD, *box)
        tissue = np.clip(edge / 2.5 + 0.5, 0, 1)
        roles = {s.role: n for n, s in enumerate(self.config.stains)}
        q = np.zeros((len(roles), h, w), np.float32)
        if not tissue.any():
            return q, np.zeros((h, w), np.uint8)
        absent = np.array([s.absent_level for s in self.config.stains], np.float32)[:, None, None]
        level = absent + (1 - absent) * slow(self.layout.presence, *box)
        # nuclei that lack their stain displace nothing
        shade = level[roles["nuclear"]] if "nuclear" in roles else np.zeros((h, w), np.float32)
        maps = self._sheet(box, shade, roles.get("marker"))
        nuclear, counter, marker, cover = self._stamped(maps, box, shade, roles.get("marker"))
        tissue *= cover
        if "marker" in roles:
            marker *= level[roles["marker"]]
            q[roles["marker"]] = marker
        if "nuclear" in roles:
            q[roles["nuclear"]] += nuclear * level[roles["nuclear"]]
        if "counterstain" in roles:
            # dense chromogen keeps the counterstain out
            share = level[roles["counterstain"]] * np.clip(1.1 - 2 * marker, 0, 1)
            q[roles["counterstain"]] = counter * share
        else:
            # without a counterstain the matrix takes a little of the first stain, as in IHC
            host = roles.get("nuclear", 0)
            pale = 0.22 * np.maximum(counter - 0.12, 0) * np.clip(1 - 3 * marker, 0, 1)
            q[host] += pale * level[host]
        q *= tissue
        if not self.config.glass:
            base = roles.get("counterstain", 0)
            q[base] += np.maximum(_PALEST - q.sum(axis=0), 0)
        if self.config.saturated_fraction > 0:
            q *= slow(self.layout.fold, *box)
        return q, (tissue > 0.5).astype(np.uint8)

    def _at_centres(self, field: FloatArray, offset: Offsets, box: _Box) -> FloatArray:
        """Return the (h, w) values of a slow field at the centre of each pixel's cell."""
        y, x, h, w = box
        reach = int(CELL_REACH_UM / self.config.mpp)
        wide = self.layout.window(field, y - reach, x - reach, h + 2 * reach, w + 2 * reach)
        stride = w + 2 * reach
        start = (np.arange(h) + reach)[:, None] * stride + (np.arange(w) + reach)[None, :]
        flat = start.astype(np.int32)
        flat -= offset[0].astype(np.int32) * np.int32(stride)
        flat -= offset[1]
        return np.take(wide.ravel(), flat)

    def _sheet(self, box: _Box, shade: FloatArray, marker_index: int | None) -> list[FloatArray]:
        """Draw stroma, fibres and single cells: nuclear, counterstain, marker and cover maps.

        Args:
            shade: (h, w), 0 to 1: how far nuclei displace the counterstain.
        """
        slow, (fibres, cells, _) = self.layout.window, self._sheets
        weave = np.clip(0.5 + 1.2 * slow(self.layout.weave, *box), 0, 1)
        first, second = (window(f, MATRIX_PERIOD, *box) for f in fibres)
        counter = (second + weave * (first - second)) * slow(self.layout.thickness, *box)
        density = self.layout.density
        here = cells.window(*box)
        shown = self._at_centres(density, here.offset, box) > here.rank
        nuclear = here.nuclear * shown
        # crowded cells push the fibres aside
        counter *= 1.15 - 0.75 * slow(density, *box)
        counter *= 1 - shade * shown * (1 - here.under)
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
        box: _Box,
        shade: FloatArray,
        marker_index: int | None,
    ) -> list[FloatArray]:
        """Draw the glands, vessels and deposits that touch a window over its stroma."""
        nuclear, counter, marker, cover = maps
        for stamp, top, left, turn in self._placements(box, marker_index):
            part = np.rot90(stamp.maps, turn % 4, axes=(1, 2))
            if turn >= 4:
                part = part[:, :, ::-1]
            side = part.shape[-1]
            t, b = max(top, 0), min(top + side, box[2])
            le, r = max(left, 0), min(left + side, box[3])
            if t >= b or le >= r:
                continue
            here = (slice(t, b), slice(le, r))
            alpha, nuc, cou, mar, lumen, under = part[:, t - top : b - top, le - left : r - left]
            keep = 1 - alpha
            nuclear[here] = nuclear[here] * keep + nuc
            counter[here] = counter[here] * keep + cou * (1 - shade[here] * (1 - under))
            if marker_index is not None:
                at = (box[0] + top + side / 2, box[1] + left + side / 2)
                focus = self.layout.sample(self.layout.presence[marker_index], *at)
                marker[here] = marker[here] * keep + mar * np.float32(focus > stamp.focus_rank)
            if self.config.glass:
                cover[here] = cover[here] * keep + alpha * (1 - lumen)
            else:
                cover[here] = cover[here] * keep + alpha
                counter[here] += 0.14 * alpha * lumen  # secretion: no glass anywhere
        return [nuclear, counter, marker, cover]

    def _placements(self, box: _Box, marker_index: int | None) -> list[tuple[Stamp, int, int, int]]:
        """List stamps that may touch a window, in a fixed order.

        Each is a stamp, the row and column of its top left pixel in the window, and its turn.
        """
        y, x, h, w = box
        found = []
        library = texture_library(self.config.seed, self.config.mpp)
        for kind, pitch_um, code in (
            ("vessel", 330.0, 2),
            ("gland", 118.0, 1),
            ("deposit", 70.0, 3),
        ):
            if kind == "deposit" and marker_index is None:
                continue
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
                    if kind == "gland":
                        placed = zone > 0 and chance < 0.93 and depth > 0.25 * stamp.half
                    elif kind == "vessel":
                        placed = zone < 0.3 and chance < 0.8 and depth > stamp.half
                    else:
                        focus = self.layout.sample(self.layout.presence[marker_index], cy, cx)
                        placed = chance < 0.5 and depth > stamp.half and focus > DEPOSIT_FOCUS
                    if placed:
                        top, left = round(cy) - stamp.half - y, round(cx) - stamp.half - x
                        found.append((stamp, top, left, turn))
        return found


def halo(config: PhantomConfig) -> int:
    """Return how many pixels around a cell its defocus blur reads."""
    return int(np.ceil(4 * config.defocus_sigma))


def _optical_reach(config: PhantomConfig) -> int:
    """Return how many pixels around a window its optical blur reads."""
    return int(_OPTICAL_TRUNCATE * config.optical_sigma + 0.5)


@dataclass(frozen=True)
class RealTissue:
    """Unmixed pixels of a real slide; implements :class:`Tissue`.

    Attributes:
        read: (y, x, h, w) -> (h, w, 3) uint8 RGB, called only inside ``shape``.
        shape: (height, width) of the pixels to use; beyond them they are mirrored again and again.
        stain_matrix: (N, 3) unit rows to unmix with. background: (3,) OD of the slide's glass.

    Raises:
        StainError: the stain matrix has no three columns, or its rows depend on each other.
    """

    read: Callable[[int, int, int, int], ByteArray]
    shape: tuple[int, int]
    stain_matrix: FloatArray
    background: FloatArray

    def __post_init__(self) -> None:
        rows = np.asarray(self.stain_matrix)
        if rows.ndim != 2 or rows.shape[1] != 3 or np.linalg.matrix_rank(rows) < len(rows):
            raise StainError(
                "this stain matrix cannot unmix the texture of a phantom",
                expected="one to three independent rows (R, G, B)",
                found=rows.tolist(),
            )

    def concentration(self, y: int, x: int, h: int, w: int) -> tuple[FloatArray, ByteArray]:
        """See :meth:`Tissue.concentration`; the mask is made of 8 x 8 pixel squares."""
        rgb = np.empty((h, w, 3), np.uint8)
        for top, rows, sy, flip_y in _mirrored(y, h, self.shape[0]):
            for left, cols, sx, flip_x in _mirrored(x, w, self.shape[1]):
                part = self.read(sy, sx, rows, cols)
                part = part[::-1] if flip_y else part
                rgb[top : top + rows, left : left + cols] = part[:, ::-1] if flip_x else part
        od = np.maximum(rgb_to_od(rgb) - np.asarray(self.background, np.float32), 0)
        q = exact_unmix(od, np.asarray(self.stain_matrix, np.float32))
        total = q.sum(axis=0)
        gap = ((0, -h % _POOL), (0, -w % _POOL))
        pooled = np.pad(total, gap, mode="edge")
        pooled = pooled.reshape(pooled.shape[0] // _POOL, _POOL, -1, _POOL).mean(axis=(1, 3))
        mask = np.repeat(np.repeat(pooled > _TISSUE_OD, _POOL, axis=0), _POOL, axis=1)[:h, :w]
        return q * mask, mask.astype(np.uint8)


def _mirrored(start: int, count: int, size: int) -> Iterator[tuple[int, int, int, bool]]:
    """Yield the runs of a mirrored axis.

    Each is its offset in the window, its length, its first source index, and whether it is
    reversed.
    """
    done = 0
    while done < count:
        phase = (start + done) % (2 * size)
        flipped = phase >= size
        length = min(count - done, (2 * size if flipped else size) - phase)
        source = 2 * size - phase - length if flipped else phase
        yield done, length, source, flipped
        done += length


def exact_unmix(od: FloatArray, stain_matrix: FloatArray) -> FloatArray:
    """Solve non-negative least squares exactly, by trying all sets of stains, in float64.

    Args:
        od: (..., 3) OD over glass. stain_matrix: (N, 3) unit rows, N <= 3.

    Returns:
        (N, ...) float32 q >= 0 that minimises |od - q S|^2.
    """
    n, flat = len(stain_matrix), od.reshape(-1, 3).astype(np.float64)
    best = np.zeros((flat.shape[0], n))
    gain = np.zeros(flat.shape[0])  # how far the residual falls below |od|^2
    for size in range(1, n + 1):
        for support in combinations(range(n), size):
            part = stain_matrix[list(support)].astype(np.float64)
            q = flat @ np.linalg.pinv(part)
            explained = np.sum(q * (flat @ part.T), axis=1)
            better = (q >= 0).all(axis=1) & (explained > gain)
            gain[better] = explained[better]
            rows = np.flatnonzero(better)
            best[rows] = 0
            best[rows[:, None], list(support)] = q[rows]
    return np.asarray(best.T.reshape(n, *od.shape[:-1]), np.float32)
