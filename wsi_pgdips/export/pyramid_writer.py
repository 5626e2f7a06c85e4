"""Streamed, tiled, pyramidal BigTIFF: strips in, all levels out, memory of a few strips."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from wsi_pgdips.records import ByteArray

_SUBSAMPLING = {"4:4:4": ("444", (1, 1)), "4:2:2": ("422", (2, 1)), "4:2:0": ("420", (2, 2))}


@dataclass
class _Level:
    """Encoded tiles of one level, spilled to a file, and rows waiting for a full tile row."""

    shape: tuple[int, int]
    spill: IO[bytes]
    sizes: list[int]
    pending: ByteArray
    quality: int

    def tiles(self) -> Iterator[bytes]:
        self.spill.seek(0)
        for size in self.sizes:
            yield self.spill.read(size)


class PyramidWriter:
    """Takes strips of RGB rows from top to bottom, then writes the TIFF on :meth:`close`.

    As a context manager it lets go of all it holds at the end, whether it was closed or not.

    All levels are top-level IFDs (OpenSlide's ``generic-tiff`` reads no SubIFDs), reduced ones with
    ``NewSubfileType = 1``; resolution is in centimetres, which OpenSlide turns into mpp.

    Args:
        quality: of JPEG, or 0 for lossless deflate. factor: between levels, 2 or 4.
        reduced_quality: of the JPEG of reduced levels, whose detail is denser; by default the same.
        threads: how many encode; the file is the same. Encoded tiles wait beside ``path`` in files
            that have no name.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        mpp: float,
        *,
        tile: int = 512,
        factor: int = 2,
        quality: int = 80,
        reduced_quality: int | None = None,
        subsampling: str = "4:2:0",
        description: str = "",
        threads: int = 1,
    ) -> None:
        self.path, self.mpp, self.tile, self.factor = path, mpp, tile, factor
        self.quality, self.subsampling, self.description = quality, subsampling, description
        self.levels: list[_Level] = []
        self._threads = ThreadPoolExecutor(threads)
        while True:
            spill = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - lives until close()
            own = reduced_quality if self.levels and quality and reduced_quality else quality
            self.levels.append(_Level(shape, spill, [], np.empty((0, shape[1], 3), np.uint8), own))
            if max(shape) <= tile or min(shape) < factor:
                break
            shape = (shape[0] // factor, shape[1] // factor)

    def __enter__(self) -> PyramidWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        for level in self.levels:
            level.spill.close()

    def write(self, rows: ByteArray) -> None:
        """Append (h, W, 3) uint8 rows; h is a multiple of ``tile`` but at the end."""
        self._append(0, rows)

    def _append(self, k: int, rows: ByteArray) -> None:
        level = self.levels[k]
        rows = np.concatenate([level.pending, rows]) if len(level.pending) else rows
        whole = len(rows) // self.tile * self.tile
        self._encode(level, rows[:whole])
        # kept as its own copy: a view would hold the whole strip alive
        level.pending = rows[whole:].copy()
        if k + 1 < len(self.levels) and whole:
            self._append(k + 1, self._reduced(rows[:whole], self.levels[k + 1].shape[1]))

    def _reduced(self, rows: ByteArray, width: int) -> ByteArray:
        f = self.factor
        h = len(rows) // f
        if h == 0:
            return np.empty((0, width, 3), np.uint8)
        part = rows[: h * f, : width * f]
        total = np.zeros((h, width, 3), np.uint16)
        for i in range(f):
            for j in range(f):
                total += part[i::f, j::f]
        return ((total + f * f // 2) // (f * f)).astype(np.uint8)

    def _encode(self, level: _Level, rows: ByteArray) -> None:
        side = self.tile
        tiles = (
            rows[top : top + side, left : left + side]
            for top in range(0, len(rows), side)
            for left in range(0, level.shape[1], side)
        )
        for data in self._threads.map(partial(self._encoded, quality=level.quality), tiles):
            level.spill.write(data)
            level.sizes.append(len(data))

    def _encoded(self, tile: ByteArray, *, quality: int) -> bytes:
        import imagecodecs

        side = self.tile
        if tile.shape[:2] != (side, side):
            gap = ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0))
            tile = np.pad(tile, gap, mode="edge")
        tile = np.ascontiguousarray(tile)
        if quality:
            return bytes(
                imagecodecs.jpeg8_encode(
                    tile, level=quality, subsampling=_SUBSAMPLING[self.subsampling][0]
                )
            )
        return bytes(imagecodecs.zlib_encode(tile.tobytes(), level=4))

    def close(self) -> None:
        """Encode what is left and write the file."""
        import tifffile

        for k, level in enumerate(self.levels):
            rest, level.pending = level.pending, level.pending[:0]
            if k + 1 < len(self.levels) and len(rest):
                self._append(k + 1, self._reduced(rest, self.levels[k + 1].shape[1]))
            self._encode(level, rest)
        self._threads.shutdown()
        with tifffile.TiffWriter(self.path, bigtiff=True) as tiff:
            for k, level in enumerate(self.levels):
                mpp = self.mpp * self.levels[0].shape[1] / level.shape[1]
                jpeg = {
                    "compression": "jpeg",
                    "photometric": "ycbcr",
                    "subsampling": _SUBSAMPLING[self.subsampling][1],
                }
                tiff.write(
                    level.tiles(),
                    shape=(*level.shape, 3),
                    dtype=np.uint8,
                    tile=(self.tile, self.tile),
                    subfiletype=1 if k else 0,
                    resolution=(1e4 / mpp, 1e4 / mpp),
                    resolutionunit="CENTIMETER",
                    description=self.description if k == 0 else None,
                    metadata=None,
                    **(jpeg if self.quality else {"compression": "zlib", "photometric": "rgb"}),
                )
                level.spill.close()
