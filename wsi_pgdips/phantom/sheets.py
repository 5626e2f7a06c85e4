"""Periodic sheets of procedural tissue: fibres and single cells.

All maps are float32 concentrations (OD along the unit vector) or shares in [0, 1]. Lengths in
micrometres become pixels by ``scale`` = 1 / mpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from wsi_pgdips.records import FloatArray

# incommensurate, so that overlaid textures do not repeat together
MATRIX_PERIOD = 1024
CELLS_PERIOD = 848
CELL_REACH_UM = 18.0  # no pixel of a cell lies further from its centre

Offsets = npt.NDArray[np.int16]


@dataclass(frozen=True)
class CellAtlas:
    """Periodic sheet of cells; each cell is drawn if slow fields exceed its thresholds.

    Attributes:
        nuclear: hematoxylin-like concentration. under: share of other stains left under nuclei.
        rank: a nucleus is drawn if the density field exceeds this (2: no nucleus).
        marker: concentration of a marker in the cell's body, membrane or nucleus.
        marker_rank: density rank of the marker's cell.
        focus_rank: the marker is drawn if its presence exceeds this.
        offset, marker_offset: (2, P, P) pixels from the cell's centre. The fields are read at the
            centre, so that a cell is drawn whole or not at all.
    """

    nuclear: FloatArray
    under: FloatArray
    rank: FloatArray
    offset: Offsets
    marker: FloatArray
    marker_rank: FloatArray
    focus_rank: FloatArray
    marker_offset: Offsets

    def padded(self, extra: int) -> CellAtlas:
        """Repeat the sheet over ``extra`` more rows and columns, for plain slicing."""
        return CellAtlas(**{k: padded(v, extra) for k, v in vars(self).items()})

    def window(self, y: int, x: int, h: int, w: int) -> CellAtlas:
        """Cut a window of a sheet that was padded by at least max(h, w)."""
        return CellAtlas(**{k: window(v, CELLS_PERIOD, y, x, h, w) for k, v in vars(self).items()})


def padded(atlas: npt.NDArray[Any], extra: int) -> npt.NDArray[Any]:
    """Repeat a periodic (..., P, P) sheet over ``extra`` more rows and columns."""
    gap = [(0, 0)] * (atlas.ndim - 2) + [(0, extra), (0, extra)]
    return np.pad(atlas, gap, mode="wrap")


def window(
    atlas: npt.NDArray[Any], period: int, y: int, x: int, h: int, w: int
) -> npt.NDArray[Any]:
    """Return a view of a padded sheet of the given period, at any position of the plane."""
    top, left = y % period, x % period
    return atlas[..., top : top + h, left : left + w]


def periodic_noise(
    rng: np.random.Generator, n: int, sigma: tuple[float, float], angle: float = 0.0
) -> FloatArray:
    """Draw (n, n) periodic Gaussian noise of zero mean and unit variance.

    Args:
        sigma: correlation lengths (along, across) a direction, pixels.
        angle: of the direction to the x axis, radians.
    """
    fy = fft.fftfreq(n)[:, None].astype(np.float32)
    fx = fft.rfftfreq(n)[None, :].astype(np.float32)
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    gain = np.exp(-2 * np.pi**2 * ((along * sigma[0]) ** 2 + (across * sigma[1]) ** 2))
    gain = gain.astype(np.float32)
    gain[0, 0] = 0
    out = fft.irfft2(fft.rfft2(rng.standard_normal((n, n), np.float32)) * gain, s=(n, n))
    return np.asarray(out / out.std(), np.float32)


def fibre_sheet(rng: np.random.Generator, scale: float, angle: float) -> FloatArray:
    """Draw (P, P) matrix concentration: wavy fibres at ``angle`` with pale slits, mean near 0.3."""
    n = MATRIX_PERIOD
    fine = periodic_noise(rng, n, (5 * scale, 0.45 * scale), angle)
    bundle = periodic_noise(rng, n, (15 * scale, 2.2 * scale), angle)
    slit = periodic_noise(rng, n, (11 * scale, 0.8 * scale), angle)
    wave = [periodic_noise(rng, n, (14 * scale, 14 * scale)) * 4.5 * scale for _ in range(2)]
    y, x = np.mgrid[:n, :n].astype(np.float32)
    where = np.stack([y + wave[0], x + wave[1]])
    fine, bundle, slit = (
        ndimage.map_coordinates(f, where, order=1, mode="grid-wrap") for f in (fine, bundle, slit)
    )
    cloud = periodic_noise(rng, n, (7 * scale, 7 * scale))
    grain = periodic_noise(rng, n, (0.4 * scale, 0.4 * scale))
    q = 0.30 + 0.038 * fine + 0.05 * bundle + 0.04 * cloud + 0.022 * grain
    q *= np.clip(1.0 - 0.75 * np.clip(slit + 0.35 * cloud - 1.25, 0, 1.3), 0.05, 1.0)
    return np.asarray(np.clip(q, 0.015, 0.85), np.float32)


def nucleus(
    rng: np.random.Generator, grain: FloatArray, a: float, b: float, angle: float, scale: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw one nucleus on a square grid: cover, concentration and normalised radius.

    Args:
        grain: texture of the chromatin. a, b: half axes, pixels. angle: of the long axis, radians.
    """
    half = int(np.ceil(1.75 * a)) + 2
    dy, dx = rng.uniform(-0.5, 0.5, 2)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    y, x = y + np.float32(dy), x + np.float32(dx)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    phi = np.arctan2(v, u)
    wobble = (
        1 + 0.07 * np.cos(2 * phi + rng.uniform(0, 6)) + 0.05 * np.cos(3 * phi + rng.uniform(0, 6))
    )
    r = np.hypot(u / a, v / b) / wobble
    cover = np.clip((1 - r) * b / 1.3 + 0.5, 0, 1)
    top, left = rng.integers(0, grain.shape[0] - 2 * half - 1, 2)
    chromatin = grain[top : top + 2 * half + 1, left : left + 2 * half + 1]
    rim = np.exp(-(((1 - r) * b / (0.45 * scale)) ** 2))
    level = rng.uniform(0.45, 0.95)
    q = level * (0.82 + 0.16 * chromatin + 0.22 * rim)
    if rng.random() < 0.5:
        cy, cx = rng.uniform(-0.35, 0.35, 2) * b
        q += 0.3 * level * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (0.9 * scale) ** 2)
    cover, q, r = (m.astype(np.float32) for m in (cover, np.clip(q, 0.2, 1.25), r))
    return cover, q, r


def chromatin_grain(rng: np.random.Generator, scale: float) -> FloatArray:
    """Draw the (256, 256) texture of chromatin."""
    fine = periodic_noise(rng, 256, (0.45 * scale, 0.45 * scale))
    coarse = periodic_noise(rng, 256, (1.1 * scale, 1.1 * scale))
    return np.asarray(0.7 * fine + 0.7 * coarse, np.float32)


def cell_sheet(rng: np.random.Generator, scale: float, angle: float) -> CellAtlas:
    """Draw a sheet of packed cells by rank: spindle nuclei along ``angle``, then round ones."""
    n = CELLS_PERIOD
    grain = chromatin_grain(rng, scale)
    empty, none = np.zeros((n, n), np.float32), np.zeros((2, n, n), np.int16)
    sheet = CellAtlas(
        empty.copy(), empty + 1, empty + 2, none, empty.copy(), empty + 2, empty + 2, none.copy()
    )
    cover = empty.copy()
    rows = round(n / (7.6 * scale))
    pitch = n / rows
    spots = rng.permutation(rows * rows)
    # by ascending rank, so that a cell is cut only by cells that are shown whenever it is
    for k, rank in zip(spots, np.linspace(0, 1, rows * rows), strict=True):
        centre = (np.array(divmod(k, rows)) + 0.5 + rng.uniform(-0.34, 0.34, 2)) * pitch
        if rank < 0.15:
            a, b = rng.uniform(3.8, 7.5) * scale, rng.uniform(1.1, 1.9) * scale
            turn = angle + rng.normal(0, 0.35)
        else:
            b = rng.uniform(2.5, 3.6) * scale
            a, turn = b * rng.uniform(1.0, 1.3), rng.uniform(0, np.pi)
        part, q, r = nucleus(rng, grain, a, b, turn, scale)
        half = part.shape[0] // 2
        reach = np.arange(-half, half + 1)
        down, across = reach[:, None], reach[None, :]
        at = np.ix_((int(centre[0]) + reach) % n, (int(centre[1]) + reach) % n)
        wins = part > cover[at]  # leaves no gap where soft edges meet
        left = 0.0 if rng.random() < 0.4 else rng.uniform(0.08, 0.35)
        for target, value in (
            (cover, part),
            (sheet.nuclear, part * q),
            (sheet.under, 1 - part * (1 - np.float32(left))),
            (sheet.rank, rank),
            (sheet.offset[0], down),
            (sheet.offset[1], across),
        ):
            target[at] = np.where(wins, value, target[at])
        marker = _marker(rng, part, r, b, grain)
        wins = (sheet.marker[at] < 0.02) & (marker > 0.005)
        for target, value in (
            (sheet.marker, marker),
            (sheet.marker_rank, rank),
            (sheet.focus_rank, rng.uniform(0.02, 1.15)),
            (sheet.marker_offset[0], down),
            (sheet.marker_offset[1], across),
        ):
            target[at] = np.where(wins, value, target[at])
    return sheet


def _marker(
    rng: np.random.Generator, part: FloatArray, r: FloatArray, b: float, grain: FloatArray
) -> FloatArray:
    """Draw the marker of one cell: in its nucleus, or in its cytoplasm and membrane."""
    level = rng.uniform(0.25, 1.0)
    texture = 1 + 0.14 * grain[: r.shape[0], : r.shape[1]]
    if rng.random() < 0.35:
        return np.asarray(level * part * texture, np.float32)
    membrane = np.exp(-(((r - 1.5) * b / 1.5) ** 2))
    body = np.clip((1.62 - r) * b / 1.4, 0, 1)
    return np.asarray(
        level * body * texture * (0.35 + 0.65 * membrane) * (1 - 0.85 * part), np.float32
    )
