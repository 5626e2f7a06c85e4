"""What is no stained tissue, laid on a phantom: ink, grains of carbon, tiles never written."""

from __future__ import annotations

import numpy as np
import tifffile
from scipy import ndimage

from wsi_pgdips.export.tiff import PyramidWriter
from wsi_pgdips.phantom.phantom import PhantomTruth
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

INK = np.array([0.1, 0.25, 0.75], np.float32)  # transmission of a blue pen
INK_SHARE = 0.1  # of the slide
GRAINS, GRAIN_PX = 1500, 3.0  # of carbon, and their largest radius
BLACK_TILES, BLACK_SIDE = 2, 256
MARGIN_PX = 64  # around it, no truth is compared with: ink is dilated, and light is scattered


def lay_on(truth: PhantomTruth, kind: str, seed: int) -> BoolArray:
    """Lay what is foreign on a phantom's file, at every level.

    Args:
        kind: ``ink``, ``carbon`` or ``black_tiles``.

    Returns:
        (H, W) the pixels without it, far enough from it for a comparison.
    """
    rgb = tifffile.imread(truth.path)
    light = _LIGHT[kind](rgb, np.random.default_rng(seed))
    # the pixels have been through the phantom's JPEG
    rewrite(truth, np.rint(rgb * light).astype(np.uint8), quality=0)
    return np.asarray(ndimage.distance_transform_edt(light.min(2) > 0.99) > _MARGINS[kind])


def rewrite(truth: PhantomTruth, rgb: ByteArray, quality: int) -> None:
    """Put other pixels into a phantom's file, at every level.

    Args:
        rgb: (H, W, 3) of level 0. quality: of its JPEG; 0 is lossless.
    """
    description = truth.config
    truth.path.unlink()
    with PyramidWriter(
        truth.path,
        description.shape,
        description.mpp,
        tile=description.tile,
        factor=description.level_factor,
        quality=quality,
        subsampling=description.jpeg_subsampling,
    ) as writer:
        writer.write(rgb)
        writer.close()


def _ink(rgb: ByteArray, rng: np.random.Generator) -> FloatArray:
    """A stroke across the slide, flat and with soft edges."""
    h, w = rgb.shape[:2]
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)
    middle = h * (rng.uniform(0.3, 0.7) + 0.08 * np.sin(2 * np.pi * (x / w + rng.random())))
    soft = np.clip((h * INK_SHARE / 2 - np.abs(y - middle)) / 12 + 0.5, 0, 1)
    return np.asarray(np.exp(soft[..., None] * np.log(INK)), np.float32)


def _carbon(rgb: ByteArray, rng: np.random.Generator) -> FloatArray:
    """Black grains in clumps, as in a lung."""
    h, w = rgb.shape[:2]
    centres = rng.random((GRAINS // 50, 2)) * (h, w)
    at = np.repeat(centres, 50, 0) + rng.normal(0, 30, (len(centres) * 50, 2))
    radius = np.zeros((h, w), np.float32)
    inside = np.clip(at, 0, (h - 1, w - 1)).astype(int)
    radius[inside[:, 0], inside[:, 1]] = rng.uniform(1, GRAIN_PX, len(inside))
    grown = ndimage.grey_dilation(radius, footprint=_disk(GRAIN_PX))
    distance = ndimage.distance_transform_edt(radius == 0)
    black = ndimage.gaussian_filter((distance <= grown).astype(np.float32), 0.7)
    return np.repeat((1 - 0.93 * black)[..., None], 3, 2)


def _black_tiles(rgb: ByteArray, rng: np.random.Generator) -> FloatArray:
    """Whole tiles of zeros, as of a file whose copy was cut short."""
    light = np.ones(rgb.shape, np.float32)
    rows, columns = (side // BLACK_SIDE for side in rgb.shape[:2])
    for tile in rng.choice(rows * columns, BLACK_TILES, replace=False):
        y, x = (int(at) * BLACK_SIDE for at in divmod(int(tile), columns))
        light[y : y + BLACK_SIDE, x : x + BLACK_SIDE] = 0
    return light


def _disk(radius: float) -> BoolArray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(y * y + x * x <= radius * radius)


_LIGHT = {"ink": _ink, "carbon": _carbon, "black_tiles": _black_tiles}
_MARGINS = {"ink": MARGIN_PX, "carbon": 4, "black_tiles": 16}
