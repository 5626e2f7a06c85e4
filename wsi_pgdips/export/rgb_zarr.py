"""RGB pictures as OME-Zarr 0.5 or 0.4, written block by block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from wsi_pgdips.export import ngff04
from wsi_pgdips.export.place import EXPORT, exporting
from wsi_pgdips.export.source import check_option, mpp_of, provenance, read_large, squares
from wsi_pgdips.geometry import BLOCK_SIZES, CHUNK, OutputGrid, Region
from wsi_pgdips.layers import schema
from wsi_pgdips.layers.pyramid import quad_sum
from wsi_pgdips.layers.schema import OWN_KEY, Json
from wsi_pgdips.layers.store import zarr_session
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import ByteArray, StainSet

if TYPE_CHECKING:
    from openslide import AbstractSlide

Version = Literal["0.4", "0.5"]
_WHITE = 255  # pixels that were never written
_CHANNELS = StainSet(
    "rgb",
    ("Red", "Green", "Blue"),
    ("FF0000", "00FF00", "0000FF"),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
)


def export_rgb_zarr(
    reader: AbstractSlide,
    path: Path,
    *,
    progress: Progress | None = None,
    version: Version = "0.5",
    overwrite: bool = False,
) -> None:
    """Write an RGB OME-Zarr (uint8, axes c, y, x) of level 0 and its 2x2 means.

    It is streamed: memory is that of a block of 4096 x 4096 pixels.

    Args:
        reader: anything with OpenSlide's interface, thread-safe. Transparent pixels become white.
        path: folder to write. overwrite: replace an earlier export.
        version: ``0.5`` (Zarr v3, sharded), or ``0.4`` (Zarr v2, unsharded) for older readers.

    Raises:
        OutputError: ``path`` is taken or not writable.
        SlideError: mpp is not known, or the slide cannot be read.
        SettingsError: another version.
    """
    allowed = get_args(Version)
    check_option(version in allowed, "--ngff", " or ".join(reversed(allowed)), version)
    progress = progress or QuietProgress()
    width, height = reader.dimensions
    grid = OutputGrid((height, width), 1.0, mpp_of(reader), block=BLOCK_SIZES[-1])
    own = {EXPORT: "rgb", **provenance(reader)}
    blocks = [grid.block_region(by, bx) for by, bx in grid.blocks()]
    with exporting(path, overwrite=overwrite) as partial, zarr_session(partial):
        levels = _create_levels(partial, grid, version, own)
        progress.stage("export", sum(len(squares(block)) for block in blocks), "regions")
        for block in blocks:
            rgb = read_large(reader, block, progress.advance)
            planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
            for level in range(grid.owned_levels):
                _put(levels[level], block.y >> level, block.x >> level, planes)
                planes = mean_2x2(planes)
        for level in range(grid.owned_levels, grid.n_levels):
            for part in squares(Region(0, 0, *grid.level_shape(level)), grid.shard(level)):
                finer = Region(2 * part.y, 2 * part.x, 2 * part.h, 2 * part.w).slices
                planes = np.asarray(levels[level - 1][:, *finer])
                _put(levels[level], part.y, part.x, mean_2x2(planes))


def mean_2x2(planes: ByteArray) -> ByteArray:
    """Halve (3, H, W) uint8 to (3, ceil(H / 2), ceil(W / 2)), rounding half up.

    The last row or column of an odd size is the mean of the pixels that it has.
    """
    total = quad_sum(planes, np.uint16)
    count = quad_sum(np.ones(planes.shape[1:], np.uint8), np.uint16)
    return np.asarray((total + count // 2) // count, np.uint8)


def _put(array: Any, y: int, x: int, planes: ByteArray) -> None:
    array[:, y : y + planes.shape[1], x : x + planes.shape[2]] = planes


def _create_levels(path: Path, grid: OutputGrid, version: Version, own: Json) -> list[Any]:
    """Create the group and one empty (3, H, W) ``zarr.Array`` a level."""
    import zarr
    from zarr.codecs import BloscCodec

    old = version == ngff04.VERSION
    ome = schema.ome_image(grid, _CHANNELS, "rgb")
    ome["multiscales"][0]["metadata"] = {"description": "2x2 mean"}
    for channel in ome["omero"]["channels"]:
        channel["window"] = {"min": 0, "max": 255, "start": 0, "end": 255}
    described = ngff04.attributes_04(ome) if old else {"ome": ome}
    attributes = {**described, OWN_KEY: own}
    group = zarr.open_group(path, mode="w", zarr_format=2 if old else 3, attributes=attributes)
    levels: list[Any] = []
    for level in range(grid.n_levels):
        shape, side = (3, *grid.level_shape(level)), grid.shard(level)
        if old:
            array = ngff04.create_array_04(group, str(level), shape, "uint8", _WHITE, {})
        else:
            array = group.create_array(
                str(level),
                shape=shape,
                dtype="uint8",
                chunks=(1, CHUNK, CHUNK),
                shards=(3, side, side),
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
                fill_value=_WHITE,
                dimension_names=("c", "y", "x"),
            )
        levels.append(array)
    return levels
