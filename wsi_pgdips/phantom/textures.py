"""Textures of procedural tissue: glands, vessels and deposits as stamps, and all of a seed.

Units are those of ``sheets``: concentrations in OD, shares, and ``scale`` = 1 / mpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from wsi_pgdips.phantom.sheets import (
    CellAtlas,
    cell_sheet,
    chromatin_grain,
    fibre_sheet,
    nucleus,
    periodic_noise,
)
from wsi_pgdips.records import FloatArray

DEPOSIT_FOCUS = 0.8  # least presence of the marker for a deposit, so that it is dense
FRINGE_PERIOD = 512
_Grid = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Stamp:
    """One structure of tissue, to be drawn at many places.

    Attributes:
        maps: (6, s, s) cover, nuclear, counterstain, marker, lumen (share of glass), and under
            (share of the counterstain left under nuclei).
        focus_rank: the marker is drawn if its presence at the stamp's centre exceeds this.
    """

    maps: FloatArray
    focus_rank: float

    @property
    def half(self) -> int:
        """Pixels from the centre to each side."""
        return int(self.maps.shape[-1] // 2)


def _ellipse(half: int, squeeze: float, turn: float) -> tuple[_Grid, _Grid, _Grid, _Grid]:
    """Return y, x, angle and radius of the pixels of a square, about its centre.

    Angle and radius are those of a circle that is squeezed across, and turned.

    Args:
        half: pixels from the centre to each side. turn: radians.
    """
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    u, v = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / squeeze
    return y, x, np.arctan2(v, u), np.hypot(u, v)


def _on_ellipse(angle: float, radius: float, squeeze: float, turn: float) -> tuple[float, float]:
    """Return y and x of a point of the circle, as in :func:`_ellipse`."""
    u, v = radius * np.cos(angle), radius * np.sin(angle) * squeeze
    return u * np.sin(turn) + v * np.cos(turn), u * np.cos(turn) - v * np.sin(turn)


def _paste(
    maps: FloatArray, centre: tuple[float, float], part: FloatArray, q: FloatArray, left: float
) -> None:
    """Draw a nucleus into a stamp; it displaces counterstain and marker."""
    half, side = part.shape[0] // 2, maps.shape[-1]
    y, x = round(centre[0]) - half, round(centre[1]) - half
    if min(y, x) < 0 or max(y, x) + 2 * half + 1 > side:
        return
    box = (slice(y, y + 2 * half + 1), slice(x, x + 2 * half + 1))
    maps[1][box] = np.maximum(maps[1][box], part * q)
    maps[3][box] *= 1 - 0.7 * part
    maps[5][box] *= 1 - part * (1 - left)


def gland_stamp(rng: np.random.Generator, scale: float) -> Stamp:
    """Draw a gland cut across: columnar cells, basal nuclei, goblets, and a lumen of glass."""
    radius = rng.uniform(34, 62) * scale
    half = int(radius * 1.32) + 3
    squeeze, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    y, x, phi, r = _ellipse(half, squeeze, turn)
    phases = rng.uniform(0, 6, 3)

    def outline(angle: Any) -> Any:
        waves = zip((2, 3, 5), (0.06, 0.06, 0.03), phases, strict=True)
        return 1 + sum(amp * np.cos(k * angle + p) for k, amp, p in waves)

    r = r / (radius * outline(phi))
    lumen_r = rng.uniform(0.16, 0.42)
    inner = lumen_r * (1 + 0.15 * np.cos(3 * phi + phases[0]) + 0.1 * np.cos(5 * phi + phases[1]))
    depth = (r - inner) / (1 - inner)  # 0 at the lumen, 1 at the base
    grain = periodic_noise(rng, fft.next_fast_len(2 * half + 1), (1.0 * scale, 1.0 * scale))
    grain = grain[: 2 * half + 1, : 2 * half + 1]
    cells = max(int(2 * np.pi * radius * 0.8 / (6.0 * scale)), 8)
    border = np.abs(np.sin(phi * cells / 2 + 0.5 * np.sin(3 * phi))) * radius * r / cells
    cyto = rng.uniform(0.26, 0.46) * (1 + 0.16 * grain) + 0.09 * np.exp(-((border / 0.9) ** 2))
    cyto += 0.22 * np.exp(-((depth / 0.05) ** 2))  # apical border
    cover = np.clip((1 - r) * radius / 1.5 + 0.5, 0, 1)
    lumen = np.clip(-depth * radius / 2.0 + 0.5, 0, 1)
    membrane = np.exp(-(((r - 1) * radius / (1.0 * scale)) ** 2))
    maps = np.stack(
        [
            np.maximum(cover, 0.85 * membrane),
            0.05 * cover * np.clip(grain, 0, 2),
            np.maximum(cyto * cover, 0.4 * membrane),
            rng.uniform(0.3, 0.9)
            * cover
            * np.clip(0.35 + 0.65 * np.exp(-depth / 0.35), 0, 1)
            * (1 + 0.15 * grain),
            lumen,
            np.ones_like(r),
        ]
    ).astype(np.float32)
    _goblets(rng, maps, y, x, radius, squeeze, turn, lumen_r, scale)
    for layer in (1, 2, 3):
        maps[layer] *= 1 - lumen
    chromatin = chromatin_grain(rng, scale)
    for k in range(cells):
        angle = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / cells
        at = rng.uniform(0.78, 0.87) * radius * outline(angle)
        py, px = _on_ellipse(angle, at, squeeze, turn)
        b = rng.uniform(1.9, 2.6) * scale
        a = b * rng.uniform(1.4, 2.0)
        part, q, _ = nucleus(rng, chromatin, a, b, float(np.arctan2(py, px)), scale)
        left = 0.0 if rng.random() < 0.3 else float(rng.uniform(0.1, 0.4))
        _paste(maps, (half + py, half + px), part, q, left)
    return Stamp(maps, float(rng.uniform(0.0, 0.9)))


def _goblets(
    rng: np.random.Generator,
    maps: FloatArray,
    y: FloatArray,
    x: FloatArray,
    radius: float,
    squeeze: float,
    turn: float,
    lumen_r: float,
    scale: float,
) -> None:
    """Draw pale vacuoles of mucin between lumen and nuclei."""
    for _ in range(rng.integers(2, 12)):
        angle, at = rng.uniform(0, 2 * np.pi), rng.uniform(lumen_r + 0.14, 0.64) * radius
        py, px = _on_ellipse(angle, at, squeeze, turn)
        size = rng.uniform(2.6, 4.6) * scale
        d = np.hypot(y - py, x - px)
        pale = np.clip((size - d) / 1.6 + 0.5, 0, 1)
        maps[2] *= 1 - 0.82 * pale
        maps[3] *= 1 - 0.9 * pale
        maps[1] += 0.05 * pale * maps[0]


def vessel_stamp(rng: np.random.Generator, scale: float) -> Stamp:
    """Draw a vessel: muscular wall, endothelial nuclei, and red cells (pure eosin) in its lumen."""
    radius = rng.uniform(14, 40) * scale
    half = int(radius * 1.25) + 3
    squeeze, turn = rng.uniform(0.5, 1.0), rng.uniform(0, np.pi)
    y, x, phi, r = _ellipse(half, squeeze, turn)
    r = r / (radius * (1 + 0.05 * np.cos(3 * phi + rng.uniform(0, 6))))
    inner = rng.uniform(0.62, 0.85)
    cover = np.clip((1 - r) * radius * squeeze / 2 + 0.5, 0, 1)
    lumen = np.clip((inner - r) * radius * squeeze / 1.5 + 0.5, 0, 1)
    rings = np.sin(r * radius / (0.55 * scale) + 1.5 * np.sin(4 * phi))
    wall = (0.42 + 0.07 * rings) * cover * (1 - lumen)
    maps = np.stack([cover, 0 * r, wall, 0 * r, lumen, np.ones_like(r)]).astype(np.float32)
    for _ in range(int(rng.uniform(0.25, 1.0) * (inner * radius / (3.0 * scale)) ** 2 * squeeze)):
        angle, at = rng.uniform(0, 2 * np.pi), (inner - 0.04) * radius * np.sqrt(rng.uniform())
        py, px = _on_ellipse(angle, at, squeeze, turn)
        size = rng.uniform(2.8, 3.6) * scale
        d = np.hypot(y - py, (x - px) / rng.uniform(0.7, 1.0)) / size
        disc = np.clip((1 - d) * size / 1.3 + 0.5, 0, 1) * lumen
        level = rng.uniform(0.45, 0.75) * (1 - 0.3 * np.exp(-((d / 0.45) ** 2)))
        maps[2] = np.maximum(maps[2], level * disc)
        maps[4] *= 1 - disc
    chromatin = chromatin_grain(rng, scale)
    nuclei = max(int(2 * np.pi * radius * inner / (22 * scale)), 3)
    for k in range(nuclei):
        angle = 2 * np.pi * (k + rng.uniform(-0.4, 0.4)) / nuclei
        at = (inner + 0.03) * radius
        py, px = _on_ellipse(angle, at, squeeze, turn)
        a, b = rng.uniform(3.5, 5.0) * scale, rng.uniform(1.0, 1.4) * scale
        part, q, _ = nucleus(rng, chromatin, a, b, float(np.arctan2(px, -py)), scale)
        _paste(maps, (half + py, half + px), part, q, 0.2)
    return Stamp(maps, 2.0)


def deposit_stamp(rng: np.random.Generator, scale: float) -> Stamp:
    """Draw clumps and grains of chromogen or pigment that cover everything: pure marker."""
    half = int(19 * scale)
    side = 2 * half + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    fine, coarse = (
        periodic_noise(rng, fft.next_fast_len(side), (s * scale, s * scale))[:side, :side]
        for s in (0.5, 1.6)
    )
    cover, level = np.zeros_like(y), np.zeros_like(y)
    clumps, grains = int(rng.integers(1, 5)), int(rng.integers(6, 20))
    for k in range(clumps + grains):
        is_clump = k < clumps
        size = rng.uniform(3.0, 8.0) if is_clump else rng.uniform(0.5, 1.3)
        far = 8.0 * np.sqrt(rng.uniform()) if is_clump else rng.uniform(6.0, 16.0)
        angle, turn = rng.uniform(0, 2 * np.pi, 2)
        v, u = y - far * scale * np.sin(angle), x - far * scale * np.cos(angle)
        phi = np.arctan2(v, u) - turn
        lobes = 1 + 0.16 * np.cos(2 * phi) + 0.1 * np.cos(5 * phi + turn)
        depth = size * scale * lobes - np.hypot(u, v)
        if is_clump:
            depth += 0.7 * scale * coarse
        part = np.clip(depth / 1.5 + 0.5, 0, 1)
        level = np.where(part > cover, rng.uniform(0.5, 1.0), level)
        cover = np.maximum(cover, part)
    marker = cover * np.clip(level * (1 + 0.12 * fine + 0.14 * coarse), 0.3, 1.2)
    none = np.zeros_like(cover)
    maps = np.stack([cover, none, none, marker, none, none + 1]).astype(np.float32)
    return Stamp(maps, DEPOSIT_FOCUS)


@dataclass(frozen=True)
class TextureLibrary:
    """All textures of a phantom.

    Attributes:
        fibres: two sheets. cells: a sheet of cells. stamps: by kind.
        fringe: periodic sheet that roughens tissue edges, pixels of depth.
    """

    fibres: tuple[FloatArray, FloatArray]
    cells: CellAtlas
    fringe: FloatArray
    stamps: dict[str, tuple[Stamp, ...]]


@lru_cache(maxsize=1)
def texture_library(seed: int, mpp: float) -> TextureLibrary:
    """Return the textures of a seed.

    That takes a second or two, so the last result is kept (about 50 MB).
    """
    scale = 1 / mpp
    angle = float(np.random.default_rng([seed, 300]).uniform(0, np.pi))
    rng = [np.random.default_rng([seed, code]) for code in (301, 302, 303, 304, 305)]
    fringe = 2.2 * scale * periodic_noise(rng[2], FRINGE_PERIOD, (4 * scale, 4 * scale))
    fringe += 0.8 * scale * periodic_noise(rng[2], FRINGE_PERIOD, (1.2 * scale, 1.2 * scale))
    return TextureLibrary(
        fibres=(fibre_sheet(rng[0], scale, angle - 0.35), fibre_sheet(rng[0], scale, angle + 0.45)),
        cells=cell_sheet(rng[1], scale, angle),
        fringe=fringe,
        stamps={
            "gland": tuple(gland_stamp(rng[3], scale) for _ in range(14)),
            "vessel": tuple(vessel_stamp(rng[3], scale) for _ in range(6)),
            "deposit": tuple(deposit_stamp(rng[4], scale) for _ in range(12)),
        },
    )
