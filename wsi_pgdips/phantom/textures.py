"""All textures of a phantom, built once by seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wsi_pgdips.phantom.sheets import CellAtlas, cell_sheet, fibre_sheet, periodic_noise
from wsi_pgdips.phantom.stamps import Stamp, deposit_stamp, gland_stamp, vessel_stamp
from wsi_pgdips.records import FloatArray

FRINGE_PERIOD = 512


@dataclass(frozen=True)
class TextureLibrary:
    """All textures of a phantom: two fibre sheets, cells, the fringe of tissue edges (pixels of
    depth, periodic), and stamps by kind."""

    fibres: tuple[FloatArray, FloatArray]
    cells: CellAtlas
    fringe: FloatArray
    stamps: dict[str, tuple[Stamp, ...]]


@lru_cache(maxsize=1)
def texture_library(seed: int, mpp: float) -> TextureLibrary:
    """The textures of a seed; a second or two, so the last library is kept (about 50 MB)."""
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
