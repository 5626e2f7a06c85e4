"""Parameter fields and the tile table beside the image. Only the coordinator writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers.schema import to_json
from wsi_pgdips.layers.store import shared_store, zarr_session
from wsi_pgdips.records import Fields, StainSet

PARAMETERS = "parameters"
TILE_TABLE = "tables/tiles.parquet"

_DIMS = {
    "stain_matrix": ("cell_y", "cell_x", "stain", "rgb"),
    "spectral_correction": ("tile_y", "tile_x", "stain"),
    "background": ("cell_y", "cell_x", "rgb"),
    "confidence": ("tile_y", "tile_x", "stain"),
    "inherited": ("tile_y", "tile_x"),
    "raw/stain_matrix": ("tile_y", "tile_x", "stain", "rgb"),
    "raw/spectral_correction": ("tile_y", "tile_x", "stain"),
    "raw/background": ("tile_y", "tile_x", "rgb"),
}
_UNITS = {
    "stain_matrix": "unit vector in optical density",
    "spectral_correction": "optical density",
    "background": "optical density",
    "confidence": "1",
    "inherited": "boolean",
}


def write_fields(path: Path, fields: Fields, grid: OutputGrid, stains: StainSet) -> None:
    """Write ``parameters/`` (blended) and ``parameters/raw/`` (the tiles' own; NaN: not fitted).

    Arrays keep the shapes of ``Fields``; values belong to the centres of cells or tiles. An earlier
    group is replaced.

    Raises:
        OutputError: the group is not writable.
    """
    import zarr

    with zarr_session(path):
        root = zarr.open_group(shared_store(path), mode="r+")
        group = root.create_group(PARAMETERS, overwrite=True)
        group.create_group("raw")
        for name, dims in _DIMS.items():
            values: npt.NDArray[Any] = getattr(fields, _attribute(name))
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=values.shape,
                fill_value=np.nan if values.dtype.kind == "f" else False,
                dimension_names=dims,
                attributes={"axes": list(dims), "units": _UNITS[name.rpartition("/")[2]]},
            )
            array[...] = values
        # last, because these attributes mark the group as complete
        group.update_attributes(
            {
                "tile": grid.tile,
                "cell": grid.cell,
                "mpp": grid.mpp,
                "position": "values stand at centres of tiles or cells, (i + 0.5) side",
                "stains": list(stains.labels),
                "shrinkage": to_json(fields.shrinkage),
            }
        )


def _attribute(name: str) -> str:
    """The attribute of ``Fields`` that is stored in the array ``name``."""
    return name.replace("/", "_")


def read_fields(path: Path) -> Fields:
    """Read the fields of ``write_fields``.

    Raises:
        OutputError: they were not written, or not completely.
    """
    import zarr

    try:
        group: Any = zarr.open_group(path / PARAMETERS, mode="r")
        shrinkage: Any = group.attrs["shrinkage"]
        values = {_attribute(name): np.asarray(group[name][...]) for name in _DIMS}
    except (OSError, KeyError) as error:
        raise OutputError(
            "the layers have no parameter fields",
            where=path / PARAMETERS,
            hint="the run that writes them has not finished; repeat its command",
        ) from error
    return Fields(
        **values,
        shrinkage={k: float("nan") if v is None else v for k, v in shrinkage.items()},
    )


def write_tile_table(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write ``tables/tiles.parquet`` with one row per tile; equal columns give equal bytes.

    Args:
        columns: name -> (T,) array, in the order of the columns.

    Raises:
        OutputError: the file is not writable.
        ValueError: columns are not one-dimensional, or differ in length.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shapes = {name: np.shape(values) for name, values in columns.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"columns of the tile table must have one shape (T,), found {shapes}")
    table = pa.table({name: pa.array(np.asarray(v)) for name, v in columns.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", version="2.6")
    write_atomic(path / TILE_TABLE, buffer.getvalue())


def read_tile_table(path: Path) -> Any:
    """Read the table of ``write_tile_table`` as a ``pyarrow.Table``.

    Raises:
        OutputError: it is missing or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path / TILE_TABLE)
    except (OSError, pa.ArrowInvalid) as error:
        raise OutputError(
            "the tile table cannot be read",
            found="no file" if isinstance(error, FileNotFoundError) else error,
            where=path / TILE_TABLE,
            hint="the run that writes it has not finished; repeat its command",
        ) from error
