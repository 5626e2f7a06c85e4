"""RGB pictures as OME-Zarr, of either version, written block by block like the layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_pgdips.export import ngff04
from wsi_pgdips.geometry import CHUNK, OutputGrid, Region
from wsi_pgdips.layers import schema
from wsi_pgdips.layers.pyramid import quad_sum
from wsi_pgdips.layers.schema import OWN_KEY, Json
from wsi_pgdips.layers.store import zarr_session
from wsi_pgdips.records import ByteArray, StainSet

Version = Literal["0.4", "0.5"]
WHITE = 255  # what was never written
_AXES = ("c", "y", "x")
_CHANNELS = StainSet(
    "rgb",
    ("Red", "Green", "Blue"),
    ("FF0000", "00FF00", "0000FF"),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
)


class RgbStore:
    """A (3, H, W) uint8 OME-Zarr that is being written, one block after the other.

    Args:
        path: folder to make. grid: of the picture; blocks are written in any order.
        version: 0.5 (Zarr v3, sharded) or 0.4 (Zarr v2, unsharded). own: under our own key.

    Raises:
        OutputError: not writable.
    """

    def __init__(
        self, path: Path, grid: OutputGrid, version: Version, own: Mapping[str, Any]
    ) -> None:
        import zarr

        self.path, self.grid = path, grid
        ome = ome_rgb(grid)
        old = version == ngff04.VERSION
        described = ngff04.attributes_04(ome) if old else {"ome": ome}
        with zarr_session(path):
            group = zarr.open_group(
                path,
                mode="w",
                zarr_format=2 if old else 3,
                attributes={**described, OWN_KEY: dict(own)},
            )
            make = _array_04 if old else _array_05
            self._levels = [make(group, grid, level) for level in range(grid.n_levels)]

    def write(self, by: int, bx: int, rgb: ByteArray) -> None:
        """Write block (by, bx), (h, w, 3), on all levels that it owns."""
        r = self.grid.block_region(by, bx)
        planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
        with zarr_session(self.path):
            for level in range(self.grid.owned_levels):
                self._put(level, r.y >> level, r.x >> level, planes)
                planes = mean_2x2(planes)

    def finish(self) -> None:
        """Write the levels that no block owns, each from the one below, part by part."""
        with zarr_session(self.path):
            for level in range(self.grid.owned_levels, self.grid.n_levels):
                side, (height, width) = self.grid.shard(level), self.grid.level_shape(level)
                for y in range(0, height, side):
                    for x in range(0, width, side):
                        finer = Region(2 * y, 2 * x, 2 * side, 2 * side).slices
                        planes = np.asarray(self._levels[level - 1][:, *finer])
                        self._put(level, y, x, mean_2x2(planes))

    def _put(self, level: int, y: int, x: int, planes: ByteArray) -> None:
        self._levels[level][:, y : y + planes.shape[1], x : x + planes.shape[2]] = planes


def ome_rgb(grid: OutputGrid) -> Json:
    """The ``ome`` value of an RGB root."""
    ome = schema.ome_image(grid, _CHANNELS, "rgb")
    ome["multiscales"][0]["metadata"] = {"description": "2x2 mean"}
    for channel in ome["omero"]["channels"]:
        channel["window"] = {"min": 0, "max": 255, "start": 0, "end": 255}
    return ome


def mean_2x2(planes: ByteArray) -> ByteArray:
    """(3, H, W) -> (3, ceil(H / 2), ceil(W / 2)), rounded half up; edges by what there is."""
    total = quad_sum(planes, np.uint16)
    count = quad_sum(np.ones(planes.shape[1:], np.uint8), np.uint16)
    return np.asarray((total + count // 2) // count, np.uint8)


def _array_04(group: Any, grid: OutputGrid, level: int) -> Any:
    shape = (3, *grid.level_shape(level))
    return ngff04.create_array_04(group, str(level), shape, "uint8", WHITE, {})


def _array_05(group: Any, grid: OutputGrid, level: int) -> Any:
    from zarr.codecs import BloscCodec

    side = grid.shard(level)
    return group.create_array(
        str(level),
        shape=(3, *grid.level_shape(level)),
        dtype="uint8",
        chunks=(1, CHUNK, CHUNK),
        shards=(3, side, side),
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
        fill_value=WHITE,
        dimension_names=_AXES,
    )
