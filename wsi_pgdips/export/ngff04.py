"""OME-Zarr 0.4 (Zarr v2, unsharded, ``/`` between indices), for readers that know no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips.geometry import CHUNK
from wsi_pgdips.layers import schema
from wsi_pgdips.layers.schema import OWN_KEY, Json
from wsi_pgdips.layers.store import zarr_session

if TYPE_CHECKING:
    from wsi_pgdips.layers.reader import Layers

VERSION = "0.4"
_BAND = 4 * CHUNK  # pixels a side that are copied at once


def attributes_04(ome: Mapping[str, Any]) -> Json:
    """The attributes of a 0.4 root that say what ``ome`` of 0.5 says."""
    return {
        "multiscales": [{"version": VERSION, **image} for image in ome["multiscales"]],
        "omero": {"version": VERSION, "id": 1, **ome["omero"]},
    }


def create_array_04(
    group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: int, attributes: Json
) -> Any:
    """An empty (C, H, W) ``zarr.Array`` in chunks of one channel."""
    from numcodecs import Blosc  # type: ignore[import-untyped]

    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(1, CHUNK, CHUNK),
        compressors=Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE),
        fill_value=fill,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        attributes=attributes,
    )


def copy_concentration(
    layers: Layers, path: Path, own: Mapping[str, Any], advance: Callable[[], None]
) -> None:
    """Write the concentrations of all levels, the same codes, as OME-Zarr 0.4.

    Args:
        path: folder to make. own: what goes under our own key. advance: called once a band.

    Raises:
        OutputError: not writable, or the layers are damaged.
    """
    import zarr

    grid = layers.grid
    ome = schema.ome_image(grid, layers.stains, "concentration")
    with zarr_session(path):
        group = zarr.open_group(
            path, mode="w", zarr_format=2, attributes={**attributes_04(ome), OWN_KEY: dict(own)}
        )
        for level in range(grid.n_levels):
            codes = layers.codes(level)
            copy = create_array_04(
                group, str(level), codes.shape, "uint16", schema.FILL, schema.od_attributes()
            )
            for y, x in bands(grid.level_shape(level)):
                part = (slice(None), slice(y, y + _BAND), slice(x, x + _BAND))
                copy[part] = np.asarray(codes[part])
                advance()


def bands(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(y, x) of the parts in which a level is copied."""
    height, width = shape
    return [(y, x) for y in range(0, height, _BAND) for x in range(0, width, _BAND)]
