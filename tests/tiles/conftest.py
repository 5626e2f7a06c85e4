"""Slides in memory: an overview painted by hand, and pixels that know where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, SlideMeta

SCALE, MPP = 16, 0.5  # overview pixels of 8 um
STAIN = np.array([0.65, 0.70, 0.29])


@dataclass(frozen=True)
class FakeSource:
    """A :class:`TileSource` whose overview is given and whose pixels are its nearest upsampling."""

    grid: OutputGrid
    meta: SlideMeta
    thumbnail: ByteArray

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        rows = np.clip(np.arange(y, y + h) // SCALE, 0, self.thumbnail.shape[0] - 1)
        columns = np.clip(np.arange(x, x + w) // SCALE, 0, self.thumbnail.shape[1] - 1)
        return self.thumbnail[np.ix_(rows, columns)]

    def overview(self, mpp: float, part: Region | None = None) -> tuple[ByteArray, float]:
        return self.thumbnail, float(SCALE)

    def close(self) -> None:
        return None


@pytest.fixture
def as_source() -> Callable[[ByteArray], FakeSource]:
    """An (H, W, 3) overview of 8 um pixels made a slide of 0.5 um pixels, 1024 px blocks."""

    def make(overview: ByteArray) -> FakeSource:
        shape = overview.shape[0] * SCALE, overview.shape[1] * SCALE
        meta = SlideMeta("fake", "none", shape, MPP, None, (shape,), None, False, "0" * 64)
        return FakeSource(OutputGrid(shape, 1.0, MPP, 256, 1024), meta, overview)

    return make


@dataclass(frozen=True)
class Scene:
    """An overview with its truth: (H, W) tissue, of it ``pale``; (H, W, 3) background OD."""

    rgb: ByteArray
    tissue: BoolArray
    pale: BoolArray
    background: FloatArray


@pytest.fixture
def paint() -> Callable[..., Scene]:
    """A disk of textured tissue with a pale centre on glass of a colour that may drift."""

    def make(
        glass: tuple[int, int, int] = (240, 240, 240),
        drift: float = 0.0,
        shape: tuple[int, int] = (240, 320),
        seed: int = 0,
    ) -> Scene:
        from scipy import ndimage

        rng = np.random.default_rng(seed)
        y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None] - 0.5
        tissue = (y**2 + x**2) < 0.33**2
        pale = (y**2 + x**2) < 0.14**2
        texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
        texture /= texture.std()
        amount = np.where(pale, 0.06 + 0.02 * texture, 0.35 + 0.10 * texture).clip(0) * tissue
        background = -np.log10(np.array(glass) / 255.0) + drift * (x + 0.5 * y)[..., None]
        od = amount[..., None] * STAIN + background
        noisy = od_to_rgb(od).astype(float) + rng.normal(0, 0.4, od.shape)
        rgb = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return Scene(rgb, tissue, pale, np.maximum(background, 0).astype(np.float32))

    return make
