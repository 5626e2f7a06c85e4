"""Layers of a slide as a SpatialData object: images, labels, shapes and a table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.records import FloatArray

_MEAN_PIXELS = 16  # a tile's mean is taken at the level where its side has this many pixels


def to_spatialdata(
    layers: str | os.PathLike[str] | Layers, levels: Sequence[int] | None = None
) -> Any:
    """Return finished layers as a ``spatialdata.SpatialData``; pixels are read when needed.

    Elements:

    * images ``concentration``: (c, y, x) float32 OD, one channel a stain; NaN is not measured.
    * labels ``tissue``: (y, x) uint8, 1 on tissue.
    * shapes ``tiles``: the square of every tile.
    * table ``tile_table``: one row a tile. X is its mean concentration of each stain (OD), ``obs``
      holds the columns of ``tables/tiles.parquet``, ``obsm["spatial"]`` its centre, (x, y) in
      micrometres.

    Coordinate systems, all from the slide's top left corner: ``global``, pixels of the layers;
    ``micrometer``; and ``level_0``, pixels of the slide's own level 0.

    Args:
        layers: output of ``run``, or an open ``Layers``.
        levels: of the pyramid, finest first; by default all.

    Raises:
        SettingsError: spatialdata is not installed, or the levels do not ascend.
        OutputError: there are no finished layers, or no such level.
    """
    opened = layers if isinstance(layers, Layers) else open_layers(Path(layers))
    wanted = list(range(opened.grid.n_levels)) if levels is None else list(levels)
    if not wanted or any(b <= a for a, b in pairwise(wanted)):
        raise SettingsError("the levels must ascend", expected="e.g. 1, 2, 3", found=wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of spatialdata's own dependencies
            import spatialdata
            from spatialdata import models
    except ImportError as error:
        raise SettingsError(
            "spatialdata is not installed",
            found=error,
            hint="pip install 'wsi-pgdips[spatial]'; see docs/adapters.md for the versions",
        ) from error
    labels = list(opened.stains.labels)
    image = {k: opened.concentration(k) for k in wanted}
    tissue = {k: opened.tissue(k).astype(np.uint8) for k in wanted}
    return spatialdata.SpatialData(
        images={"concentration": _pyramid(models.Image2DModel, image, opened, c_coords=labels)},
        labels={"tissue": _pyramid(models.Labels2DModel, tissue, opened)},
        shapes={"tiles": _squares(models.ShapesModel, opened)},
        tables={"tile_table": _table(models.TableModel, opened)},
    )


def _systems(layers: Layers) -> dict[str, Any]:
    """Return the transformation from pixels of the layers to each coordinate system."""
    from spatialdata.transformations import Identity, Scale

    factors = {"micrometer": layers.grid.mpp, "level_0": layers.grid.factor}
    return {
        "global": Identity(),
        **{name: Scale([v, v], axes=("y", "x")) for name, v in factors.items()},
    }


def _pyramid(model: Any, stored: dict[int, Any], layers: Layers, **options: Any) -> Any:
    """Return a multiscale element of the stored levels; a parser would compute its own."""
    from spatialdata.transformations import Scale, Sequence, set_transformation
    from xarray import Dataset, DataTree

    scales = {}
    for index, (level, array) in enumerate(stored.items()):
        data = model.parse(array, dims=("c", "y", "x")[-array.ndim :], **options)
        # 2**level and not a ratio of shapes, because the last pixel of an odd level is whole
        to_base = Scale([2.0**level, 2.0**level], axes=("y", "x"))
        systems = {name: Sequence([to_base, t]) for name, t in _systems(layers).items()}
        set_transformation(data, systems, set_all=True)
        step = 2.0 ** (level - next(iter(stored)))
        centres = {axis: (np.arange(data.sizes[axis]) + 0.5) * step for axis in ("y", "x")}
        scales[f"scale{index}"] = Dataset({"image": data.assign_coords(centres)})
    tree = DataTree.from_dict(scales)
    model().validate(tree)
    return tree


def _squares(model: Any, layers: Layers) -> Any:
    import geopandas
    from shapely.geometry import box

    t = layers.tiles.to_pydict()
    corners = zip(t["x"], t["y"], t["width"], t["height"], strict=True)
    squares = geopandas.GeoDataFrame(geometry=[box(x, y, x + w, y + h) for x, y, w, h in corners])
    return model.parse(squares, transformations=_systems(layers))


def _table(model: Any, layers: Layers) -> Any:
    import anndata
    import pandas as pd

    obs = pd.DataFrame({n: layers.tiles[n].to_numpy() for n in layers.tiles.column_names})
    obs.index = obs.index.astype(str)
    obs["tile_id"] = np.arange(len(obs))
    obs["region"] = pd.Categorical(["tiles"] * len(obs))
    centre = obs[["x", "y"]].to_numpy() + obs[["width", "height"]].to_numpy() / 2
    table = anndata.AnnData(
        _tile_means(layers),
        obs=obs,
        var=pd.DataFrame(index=list(layers.stains.labels)),
        obsm={"spatial": centre * layers.grid.mpp},
    )
    return model.parse(table, region="tiles", region_key="region", instance_key="tile_id")


def _tile_means(layers: Layers) -> FloatArray:
    """Return the (T, N) mean OD over the measured part of each tile; NaN if there is none."""
    grid = layers.grid
    level = min((grid.tile // _MEAN_PIXELS).bit_length() - 1, grid.n_levels - 1)
    q = np.asarray(layers.concentration(level).compute(scheduler="synchronous"), np.float32)
    side = grid.tile >> level
    out = np.full((layers.tiles.num_rows, layers.stains.n), np.nan, np.float32)
    places = zip(*(layers.tiles[name].to_pylist() for name in ("tile_y", "tile_x")), strict=True)
    for row, (y, x) in zip(out, places, strict=True):
        own = q[:, y * side : (y + 1) * side, x * side : (x + 1) * side]
        measured = np.isfinite(own)
        count = measured.sum((1, 2))
        np.divide(np.where(measured, own, 0).sum((1, 2)), count, out=row, where=count > 0)
    return out
