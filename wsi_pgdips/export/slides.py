"""Exports that other programs read: pyramidal TIFF, RGB OME-Zarr, concentrations as OME-Zarr 0.4.

All are streamed: a TIFF takes the memory of two rows of tiles, OME-Zarr that of a block.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_pgdips.export.ngff04 import bands, copy_concentration
from wsi_pgdips.export.place import EXPORT, exporting
from wsi_pgdips.export.pyramid_writer import PyramidWriter
from wsi_pgdips.export.rgb_zarr import RgbStore, Version
from wsi_pgdips.export.source import (
    check_option,
    export_threads,
    layers_provenance,
    mpp_of,
    provenance,
    read_rgb,
)
from wsi_pgdips.geometry import BLOCK_SIZES, OutputGrid, Region
from wsi_pgdips.layers.schema import OWN_KEY
from wsi_pgdips.machine import in_threads
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import ByteArray

if TYPE_CHECKING:
    from openslide import AbstractSlide

    from wsi_pgdips.layers.reader import Layers

VERSIONS: tuple[Version, ...] = ("0.5", "0.4")
_SHARPER = 5  # quality that reduced levels get on top: they lose more at the same one
_CELL = 1024  # pixels that are read at once: what a reader holds as optical densities


def export_tiff(
    reader: AbstractSlide,
    path: Path,
    *,
    progress: Progress | None = None,
    tile: int = 512,
    quality: int = 90,
    overwrite: bool = False,
) -> None:
    """A tiled, pyramidal BigTIFF (JPEG 4:4:4) of level 0 and its 2x2 means.

    Args:
        reader: anything with OpenSlide's interface, thread-safe. Transparent pixels become white.
        path: file to write. tile: side, a multiple of 16. quality: of JPEG, 1 to 100.

    Raises:
        OutputError: ``path`` is taken or not writable. SlideError: mpp not known, or unreadable.
        SettingsError: tile or quality that no TIFF has.
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
            writer.write(_read(reader, Region(y, 0, min(tile, height - y), width)))
            progress.advance()
        progress.stage("assemble", 0, "")
        writer.close()


def export_rgb_zarr(
    reader: AbstractSlide,
    path: Path,
    *,
    progress: Progress | None = None,
    version: Version = "0.5",
    overwrite: bool = False,
) -> None:
    """An RGB OME-Zarr (uint8, c y x) of level 0 and its 2x2 means.

    Args:
        reader: as for :func:`export_tiff`.
        path: folder to write. version: ``0.5``, or ``0.4`` for readers that know no other.

    Raises:
        OutputError: ``path`` is taken or not writable. SlideError: mpp not known, or unreadable.
        SettingsError: another version.
    """
    check_option(version in VERSIONS, "--ngff", " or ".join(VERSIONS), version)
    progress = progress or QuietProgress()
    width, height = reader.dimensions
    grid = OutputGrid((height, width), 1.0, mpp_of(reader), block=BLOCK_SIZES[-1])
    own = {EXPORT: "rgb", **provenance(reader)}
    with exporting(path, overwrite=overwrite) as partial:
        store = RgbStore(partial, grid, version, own)
        regions = [grid.block_region(by, bx) for by, bx in grid.blocks()]
        progress.stage("export", sum(len(_cells(r)) for r in regions), "regions")
        for (by, bx), region in zip(grid.blocks(), regions, strict=True):
            store.write(by, bx, _read(reader, region, progress))
        store.finish()


def export_concentration(
    layers: Layers, path: Path, *, progress: Progress | None = None, overwrite: bool = False
) -> None:
    """The concentrations as OME-Zarr 0.4, for QuPath, OMERO and Bio-Formats (``ngff04``).

    The same uint16 codes: OD = code / 1000, and 0 is not measured.

    Raises:
        OutputError: ``path`` is taken or not writable, or the layers are damaged.
    """
    progress = progress or QuietProgress()
    grid = layers.grid
    own = {EXPORT: "concentration", **layers_provenance(layers)}
    with exporting(path, overwrite=overwrite) as partial:
        count = sum(len(bands(grid.level_shape(k))) for k in range(grid.n_levels))
        progress.stage("export", count, "regions")
        copy_concentration(layers, partial, own, progress.advance)


def _read(reader: AbstractSlide, region: Region, progress: Progress | None = None) -> ByteArray:
    """(h, w, 3) of a region, its cells read by several threads."""
    out = np.empty((region.h, region.w, 3), np.uint8)

    def read(cell: Region) -> None:
        out[cell.within(region).slices] = read_rgb(reader, cell)

    for _ in in_threads(read, _cells(region), export_threads()):
        if progress is not None:
            progress.advance()
    return out


def _cells(region: Region) -> list[Region]:
    return [
        Region(y, x, min(_CELL, region.stop_y - y), min(_CELL, region.stop_x - x))
        for y in range(region.y, region.stop_y, _CELL)
        for x in range(region.x, region.stop_x, _CELL)
    ]
