"""A small made-up slide with tissue, unmeasured parts and a residual, and how to write it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers import pyramid
from wsi_pgdips.layers.schema import SCALE_FACTOR, residual_level
from wsi_pgdips.layers.store import Checksums, create_layers, write_block
from wsi_pgdips.records import BoolArray, FloatArray, StainSet


@dataclass(frozen=True)
class Scene:
    """A whole image's worth of what ``write_block`` takes, and its grid."""

    grid: OutputGrid
    q: FloatArray
    measured: BoolArray
    tissue: BoolArray
    residual_rms: pyramid.CodeArray
    residual_od: FloatArray

    @functools.cached_property
    def codes(self) -> pyramid.CodeArray:
        return pyramid.encode(self.q, self.measured)

    def block(self, by: int, bx: int, *, residual: bool = False) -> dict[str, Any]:
        """Arguments of ``write_block`` for one block."""
        r = self.grid.block_region(by, bx)
        cut = np.s_[..., r.y : r.stop_y, r.x : r.stop_x]
        side = 1 << residual_level(self.grid)
        coarse = np.s_[r.y // side : -(-r.stop_y // side), r.x // side : -(-r.stop_x // side)]
        return {
            "codes": self.codes[cut],
            "tissue": self.tissue[cut],
            "artifact": np.where(self.tissue[cut], 0, 3).astype(np.uint8),
            "residual_rms": self.residual_rms[coarse],
            "residual_od": self.residual_od[cut] if residual else None,
        }

    def write(
        self,
        path: Path,
        stains: StainSet,
        *,
        blocks: Iterable[tuple[int, int]] | None = None,
        residual: bool = False,
    ) -> Checksums:
        """Create the layers and write the blocks in the order given, raster order by default."""
        create_layers(path, self.grid, stains, name="scene", store_residual=residual)
        sums: Checksums = {}
        for by, bx in blocks or self.grid.blocks():
            sums |= write_block(path, self.grid, by, bx, **self.block(by, bx, residual=residual))
        return sums


@pytest.fixture(scope="session")
def stains() -> StainSet:
    return StainSet(
        "hdab",
        ("Hematoxylin", "DAB"),
        ("2B2B8C", "8c5a2b"),
        ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78)),
        "a textbook",
    )


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    @functools.cache
    def make(shape: tuple[int, int], *, block: int = 1024, mpp: float = 0.5) -> Scene:
        rng = np.random.default_rng(7)
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        centre = np.hypot(y - shape[0] / 2, x - shape[1] / 2)
        measured = np.asarray(centre < 0.45 * shape[1])
        q = np.stack([0.6 + 0.4 * np.sin(x / 60), 0.3 + 0.3 * np.cos(y / 45)])
        q = np.maximum(q + rng.normal(0, 0.03, q.shape), 0.001).astype(np.float32)
        od = rng.normal(0, 0.02, (3, *shape)).astype(np.float32)
        od[:, ~measured] = np.nan
        q[:, ~measured] = np.nan
        grid = OutputGrid(shape, 1.0, mpp, tile=256, block=block)
        side, (h, w) = 1 << residual_level(grid), grid.level_shape(residual_level(grid))
        cells = np.full((3, h * side, w * side), np.nan)
        cells[:, : shape[0], : shape[1]] = od
        cells = cells.reshape(3, h, side, w, side)
        power, known = (np.nansum(a, (0, 2, 4)) for a in (cells**2, np.isfinite(cells)))
        rms = np.maximum(np.sqrt(power / np.maximum(known, 1)) / SCALE_FACTOR, 1) * (known > 0)
        return Scene(
            grid,
            q,
            measured,
            np.asarray(centre < 0.4 * shape[1]),
            np.rint(rms).astype(np.uint16),
            od,
        )

    return make


@pytest.fixture
def digest() -> Callable[[Path], dict[str, str]]:
    def of(path: Path) -> dict[str, str]:
        """SHA-256 of every file below a folder."""
        return {
            file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in path.rglob("*")
            if file.is_file()
        }

    return of
