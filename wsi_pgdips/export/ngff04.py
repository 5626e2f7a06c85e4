"""OME-Zarr 0.4 (Zarr v2, unsharded, ``/`` between indices), for readers that know no newer one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips import __version__
from wsi_pgdips.export.place import EXPORT, exporting
from wsi_pgdips.export.source import squares
from wsi_pgdips.geometry import CHUNK, Region
from wsi_pgdips.layers import schema
from wsi_pgdips.layers.schema import OWN_KEY, Json
from wsi_pgdips.layers.store import zarr_session
from wsi_pgdips.progress import Progress, QuietProgress

if TYPE_CHECKING:
    from wsi_pgdips.layers.reader import Layers

VERSION = "0.4"
_SIDE = 4 * CHUNK  # pixels that are copied at once


def attributes_04(ome: Mapping[str, Any]) -> Json:
    """Translate the ``ome`` value of a 0.5 root into the attributes of a 0.4 root."""
    return {
        "multiscales": [{"version": VERSION, **image} for image in ome["multiscales"]],
        "omero": {"version": VERSION, "id": 1, **ome["omero"]},
    }


def create_array_04(
    group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: int, attributes: Json
) -> Any:
    """Create an empty (C, H, W) ``zarr.Array`` in chunks of one channel."""
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


def export_concentration(
    layers: Layers, path: Path, *, progress: Progress | None = None, overwrite: bool = False
) -> None:
    """Write the concentrations as OME-Zarr 0.4 (``ngff04``), for QuPath, OMERO and Bio-Formats.

    All levels hold the uint16 codes of the layers: OD = code / 1000, and 0 is not measured. Axes
    are c (one channel a stain), y, x.

    Args:
        path: folder to write. overwrite: replace an earlier export.

    Raises:
        OutputError: ``path`` is taken or not writable, or the layers are damaged.
    """
    import zarr

    progress = progress or QuietProgress()
    grid, known = layers.grid, layers.provenance
    own = {
        EXPORT: "concentration",
        "software": f"wsi-pgdips {__version__}",
        "layers": known.get("identity"),
        "stains": list(layers.stains.labels),
        **{key: known.get(key) for key in ("stain_matrix", "background", "encoding")},
    }
    attributes = attributes_04(schema.ome_image(grid, layers.stains, "concentration"))
    parts = [squares(Region(0, 0, *grid.level_shape(k)), _SIDE) for k in range(grid.n_levels)]
    with exporting(path, overwrite=overwrite) as partial, zarr_session(partial):
        progress.stage("export", sum(map(len, parts)), "regions")
        group = zarr.open_group(
            partial, mode="w", zarr_format=2, attributes={**attributes, OWN_KEY: own}
        )
        for level, regions in enumerate(parts):
            codes = layers.codes(level)
            copy = create_array_04(
                group, str(level), codes.shape, "uint16", schema.FILL, schema.od_attributes()
            )
            for region in regions:
                window = (slice(None), *region.slices)
                copy[window] = np.asarray(codes[window])
                progress.advance()
