"""Layers as SpatialData, with the real library where it is installed.

It cannot be installed beside what this project's own environment holds (docs/adapters.md says
which versions clash), so that these tests mostly run in an environment of their own.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.adapter_case import Case
from wsi_pgdips.adapters.spatial import to_spatialdata
from wsi_pgdips.errors import OutputError, SettingsError

INSTALLED = importlib.util.find_spec("spatialdata") is not None
needed = pytest.mark.skipif(
    not INSTALLED, reason="spatialdata is not installed here (extra `spatial`, docs/adapters.md)"
)


@pytest.fixture(autouse=True)
def quiet() -> Generator[None, None, None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spatialdata's dependencies deprecate each other
        yield


@pytest.fixture(scope="module")
def made(case: Case) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_spatialdata(case.layers)


@pytest.mark.skipif(INSTALLED, reason="spatialdata is installed here")
def test_without_the_library_it_says_how_to_get_it(case: Case) -> None:
    with pytest.raises(SettingsError, match=r"wsi-pgdips\[spatial\]"):
        to_spatialdata(case.layers)


def test_levels_must_ascend(case: Case) -> None:
    with pytest.raises(SettingsError, match="ascend"):
        to_spatialdata(case.layers, levels=[1, 0])


@needed
def test_holds_every_level_as_stored_and_reads_none_of_them_yet(case: Case, made: Any) -> None:
    import dask.array as da

    layers = case.opened()
    image, tissue = made["concentration"], made["tissue"]
    assert len(image) == len(tissue) == layers.grid.n_levels
    for level in range(layers.grid.n_levels):
        data, mask = (tree[f"scale{level}"]["image"] for tree in (image, tissue))
        assert isinstance(data.data, da.Array)
        assert isinstance(mask.data, da.Array)
        assert data.coords["c"].values.tolist() == list(layers.stains.labels)
        np.testing.assert_array_equal(data.values, layers.concentration(level).compute())
        np.testing.assert_array_equal(mask.values == 1, layers.tissue(level).compute())
        # centres of pixels in those of the finest level
        np.testing.assert_allclose(np.diff(data.coords["x"].values), 2**level)


@needed
def test_all_elements_lie_over_each_other_in_every_coordinate_system(made: Any, case: Case) -> None:
    import spatialdata

    grid = case.opened().grid
    for system, scale in {"global": 1, "micrometer": grid.mpp, "level_0": grid.factor}.items():
        extent = spatialdata.get_extent(made["tissue"], coordinate_system=system)
        for axis, size in zip(("y", "x"), grid.shape, strict=True):
            assert extent[axis] == pytest.approx((0, size * scale))
        tiles = spatialdata.transform(made["tiles"], to_coordinate_system=system)
        table = made["tile_table"].obs
        np.testing.assert_allclose(tiles.bounds["minx"], table["x"] * scale)
        np.testing.assert_allclose(tiles.bounds["maxy"], (table["y"] + table["height"]) * scale)


@needed
def test_a_tiles_row_says_what_its_pixels_say(made: Any, case: Case) -> None:
    layers, table = case.opened(), made["tile_table"]
    assert table.n_obs == layers.tiles.num_rows
    assert table.var_names.tolist() == list(layers.stains.labels)
    q = layers.concentration().compute()
    for row, obs in zip(table.X, table.obs.itertuples(), strict=True):
        own = q[:, obs.y : obs.y + obs.height, obs.x : obs.x + obs.width]
        np.testing.assert_allclose(row, np.nanmean(own, (1, 2)), atol=2e-3)
    centre = table.obsm["spatial"][0] / layers.grid.mpp
    first = table.obs.iloc[0]
    assert centre.tolist() == [first.x + first.width / 2, first.y + first.height / 2]


@needed
def test_coarse_levels_alone_keep_their_place(case: Case) -> None:
    import spatialdata

    coarse = to_spatialdata(case.layers, levels=[1, 2])
    grid = case.opened().grid
    extent = spatialdata.get_extent(coarse["concentration"], coordinate_system="global")
    assert extent["x"] == pytest.approx((0, 2 * grid.level_shape(1)[1]))
    with pytest.raises(OutputError, match="no such level"):
        to_spatialdata(case.layers, levels=[99])


@needed
def test_written_and_read_again(made: Any, tmp_path: Path) -> None:
    import spatialdata

    if version("spatialdata") == "0.7.0":
        pytest.skip("spatialdata 0.7.0 cannot write chunks under dask of 2026.7")
    made.write(tmp_path / "again.zarr")
    again = spatialdata.read_zarr(tmp_path / "again.zarr")
    for scale, node in made["concentration"].items():
        np.testing.assert_array_equal(
            again["concentration"][scale]["image"].values, node["image"].values
        )
    np.testing.assert_array_equal(again["tile_table"].X, made["tile_table"].X)
    for system in ("global", "micrometer", "level_0"):
        wanted = spatialdata.get_extent(made["concentration"], coordinate_system=system)
        found = spatialdata.get_extent(again["concentration"], coordinate_system=system)
        assert found["x"] == pytest.approx(wanted["x"])
