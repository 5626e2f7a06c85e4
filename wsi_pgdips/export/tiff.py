"""Tiled, pyramidal BigTIFF, written from top to bottom with the memory of a few strips."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips.export.place import exporting
from wsi_pgdips.export.source import check_option, export_threads, mpp_of, provenance, read_large
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.schema import OWN_KEY
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import ByteArray

if TYPE_CHECKING:
    from openslide import AbstractSlide

_SUBSAMPLING = {"4:4:4": ("444", (1, 1)), "4:2:2": ("422", (2, 1)), "4:2:0": ("420", (2, 2))}
_SHARPER = 5  # quality added for reduced levels, which lose more at the same quality


def export_tiff(
    reader: AbstractSlide,
    path: Path,
    *,
    progress: Progress | None = None,
    tile: int = 512,
    quality: int = 90,
    overwrite: bool = False,
) -> None:
    """Write a tiled, pyramidal BigTIFF (RGB, JPEG 4:4:4) of level 0 and its 2x2 means.

    It is streamed: memory is that of two rows of tiles.

    Args:
        reader: anything with OpenSlide's interface, thread-safe. Transparent pixels become white.
        path: file to write. overwrite: replace an earlier file.
        tile: side of a tile in pixels, a multiple of 16 up to 4096.
        quality: JPEG quality, 1 to 100.

    Raises:
        OutputError: ``path`` is taken or not writable.
        SlideError: mpp is not known, or the slide cannot be read.
        SettingsError: ``tile`` or ``quality`` is out of range.
    """
    check_option(16 <= tile <= 4096 and tile % 16 == 0, "--tile", "a multiple of 16 to 4096", tile)
    check_option(1 <= quality <= 100, "--quality", "1 to 100", quality)
    progress = progress or QuietProgress()
    width, height = reader.dimensions
    mpp, description = mpp_of(reader), json.dumps({OWN_KEY: provenance(reader)})
    with (
        exporting(path, overwrite=overwrite) as partial,
        PyramidWriter(
            partial,
            (height, width),
            mpp,
            tile=tile,
            quality=quality,
            reduced_quality=min(quality + _SHARPER, 100),
            subsampling="4:4:4",
            description=description,
            threads=export_threads(),
        ) as writer,
    ):
        progress.stage("export", -(-height // tile), "rows of tiles")
        for y in range(0, height, tile):
            writer.write(read_large(reader, Region(y, 0, min(tile, height - y), width)))
            progress.advance()
        progress.stage("assemble", 0, "")
        writer.close()


@dataclass
class _Level:
    """One level: its encoded tiles in a temporary file, and rows that wait for a full tile row.

    Attributes:
        sizes: bytes of each encoded tile. quality: of its JPEG, 0 for lossless deflate.
    """

    shape: tuple[int, int]
    spill: IO[bytes]
    pending: ByteArray
    quality: int
    sizes: list[int] = field(default_factory=list)

    def tiles(self) -> Iterator[bytes]:
        """Yield the encoded tiles, in raster order."""
        self.spill.seek(0)
        for size in self.sizes:
            yield self.spill.read(size)


class PyramidWriter:
    """Takes strips of RGB rows from top to bottom, then writes the TIFF on :meth:`close`.

    Use it as a context manager: it then releases its threads and files, closed or not.

    All levels are top-level IFDs (OpenSlide's ``generic-tiff`` reads no SubIFDs), reduced ones with
    ``NewSubfileType = 1``; resolution is in centimetres, which OpenSlide turns into mpp.

    Args:
        path: file to write. shape: (height, width) of level 0. mpp: micrometres per pixel.
        tile: side of a tile. factor: between levels, 2 or 4.
        quality: JPEG quality, or 0 for lossless deflate.
        reduced_quality: JPEG quality of reduced levels; by default the same.
        subsampling: of the JPEG's colour, ``4:4:4``, ``4:2:2`` or ``4:2:0``.
        description: text of the first IFD's ImageDescription tag.
        threads: how many encode; the file does not depend on it. Encoded tiles wait in unnamed
            temporary files beside ``path``.
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
            self.levels.append(_Level(shape, spill, np.empty((0, shape[1], 3), np.uint8), own))
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
        """Append (h, W, 3) uint8 rows; h must be a multiple of ``tile``, except for the last."""
        self._append(0, rows)

    def _append(self, level: int, rows: ByteArray) -> None:
        """Encode the full tile rows of a level, and keep the rest for later."""
        own = self.levels[level]
        rows = np.concatenate([own.pending, rows]) if len(own.pending) else rows
        whole = len(rows) // self.tile * self.tile
        self._encode(own, rows[:whole])
        # a copy, since a view would keep the whole strip in memory
        own.pending = rows[whole:].copy()
        if whole:
            self._reduce_into(level + 1, rows[:whole])

    def _reduce_into(self, level: int, rows: ByteArray) -> None:
        """Append the means of the next finer level's rows to a level, where there is one."""
        if level == len(self.levels):
            return
        f, width = self.factor, self.levels[level].shape[1]
        h = len(rows) // f
        part = rows[: h * f, : width * f]
        total = np.zeros((h, width, 3), np.uint16)
        for i in range(f):
            for j in range(f):
                total += part[i::f, j::f]
        self._append(level, ((total + f * f // 2) // (f * f)).astype(np.uint8))

    def _encode(self, level: _Level, rows: ByteArray) -> None:
        side = self.tile
        tiles = (
            rows[top : top + side, left : left + side]
            for top in range(0, len(rows), side)
            for left in range(0, level.shape[1], side)
        )
        for data in self._threads.map(lambda tile: self._encoded(tile, level.quality), tiles):
            level.spill.write(data)
            level.sizes.append(len(data))

    def _encoded(self, tile: ByteArray, quality: int) -> bytes:
        import imagecodecs

        side = self.tile
        if tile.shape[:2] != (side, side):
            gap = ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0))
            tile = np.pad(tile, gap, mode="edge")
        tile = np.ascontiguousarray(tile)
        if not quality:
            return bytes(imagecodecs.zlib_encode(tile.tobytes(), level=4))
        code = _SUBSAMPLING[self.subsampling][0]
        return bytes(imagecodecs.jpeg8_encode(tile, level=quality, subsampling=code))

    def close(self) -> None:
        """Encode the remaining rows and write the file."""
        import tifffile

        for k, level in enumerate(self.levels):
            rest, level.pending = level.pending, level.pending[:0]
            if len(rest):
                self._reduce_into(k + 1, rest)
            self._encode(level, rest)
        self._threads.shutdown()
        coding: dict[str, Any] = {"compression": "zlib", "photometric": "rgb"}
        if self.quality:
            coding = {
                "compression": "jpeg",
                "photometric": "ycbcr",
                "subsampling": _SUBSAMPLING[self.subsampling][1],
            }
        with tifffile.TiffWriter(self.path, bigtiff=True) as tiff:
            for k, level in enumerate(self.levels):
                mpp = self.mpp * self.levels[0].shape[1] / level.shape[1]
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
                    **coding,
                )
                level.spill.close()
