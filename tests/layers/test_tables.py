"""Fields, the tile table, root attributes, markers and unfinished files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from wsi_pgdips.disk import remove_partials, write_atomic
from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers.provenance import (
    is_done,
    mark_done,
    read_attributes,
    read_run_record,
    software_versions,
    write_metadata,
)
from wsi_pgdips.layers.store import create_layers
from wsi_pgdips.layers.tables import read_fields, read_tile_table, write_fields, write_tile_table
from wsi_pgdips.records import Fields, StainSet

GRID = OutputGrid((700, 1100), 1.0, 0.5, tile=256, block=1024)


@pytest.fixture
def store(tmp_path: Path, stains: StainSet) -> Path:
    create_layers(tmp_path / "out", GRID, stains, name="scene")
    return tmp_path / "out"


@pytest.fixture
def some_fields() -> Fields:
    rng = np.random.default_rng(5)
    gy, gx = GRID.tile_grid

    def draw(*shape: int, cells: int = 1) -> Any:
        return rng.random((cells * gy, cells * gx, *shape)).astype(np.float32)

    raw = draw(2, 3)
    raw[0, 1] = np.nan
    return Fields(
        stain_matrix=draw(2, 3, cells=2),
        spectral_correction=draw(2),
        background=draw(3, cells=2),
        raw_stain_matrix=raw,
        raw_spectral_correction=draw(2),
        raw_background=draw(3),
        confidence=draw(2),
        inherited=rng.random((gy, gx)) < 0.5,
        shrinkage={"stain_matrix": 0.25, "background": float("nan")},
    )


def test_fields_round_trip(store: Path, some_fields: Fields, stains: StainSet) -> None:
    write_fields(store, some_fields, GRID, stains)
    back = read_fields(store)
    for item in dataclass_fields(Fields):
        want, got = getattr(some_fields, item.name), getattr(back, item.name)
        if item.name == "shrinkage":
            assert got == pytest.approx(want, nan_ok=True)
        else:
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)
    group = zarr.open_group(store / "parameters", mode="r")
    assert group.attrs["tile"] == 256
    assert group["stain_matrix"].attrs["axes"] == ["cell_y", "cell_x", "stain", "rgb"]
    assert group["raw/stain_matrix"].attrs["axes"] == ["tile_y", "tile_x", "stain", "rgb"]
    assert group.attrs["cell"] == 128
    assert group["background"].attrs["units"] == "optical density"


def test_fields_are_replaced_and_their_bytes_repeat(
    store: Path,
    some_fields: Fields,
    stains: StainSet,
    digest: Callable[[Path], dict[str, str]],
) -> None:
    write_fields(store, some_fields, GRID, stains)
    before = digest(store)
    write_fields(store, some_fields, GRID, stains)
    assert digest(store) == before


def test_fields_cut_off_are_refused(store: Path, some_fields: Fields, stains: StainSet) -> None:
    write_fields(store, some_fields, GRID, stains)
    (store / "parameters" / "raw" / "background" / "zarr.json").unlink()
    with pytest.raises(OutputError, match="no parameter fields"):
        read_fields(store)


def test_tile_table_round_trip_with_equal_bytes(store: Path) -> None:
    columns = {
        "ty": np.arange(4, dtype=np.int32),
        "tissue": np.array([0, 0.5, np.nan, 1], np.float32),
        "fitted": np.array([True, False, True, True]),
        "state": np.array(["fit", "inherit", "fit", "fit"]),
    }
    write_tile_table(store, columns)
    file = store / "tables" / "tiles.parquet"
    first = file.read_bytes()
    write_tile_table(store, columns)
    assert file.read_bytes() == first
    table = read_tile_table(store)
    assert table.column_names == list(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    assert [f.name for f in file.parent.iterdir()] == ["tiles.parquet"]


@pytest.mark.parametrize("bad", [np.zeros((3, 2)), np.zeros(4)])
def test_tile_table_refuses_ragged_columns(store: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tile table"):
        write_tile_table(store, {"a": np.zeros(3), "b": bad})


def test_metadata_is_merged_beside_what_is_there(store: Path) -> None:
    before = read_attributes(store)
    write_metadata(
        store,
        {"wsi_pgdips": {"prior": {"background": np.array([0.1, np.nan])}}, "extra": np.int64(3)},
    )
    after = read_attributes(store)
    assert after["ome"] == before["ome"]
    assert after["wsi_pgdips"] == before["wsi_pgdips"] | {"prior": {"background": [0.1, None]}}
    assert after["extra"] == 3
    assert zarr.open_group(store, mode="r").attrs["extra"] == 3  # still a group for zarr
    with pytest.raises(OutputError, match="no layers in this folder"):
        write_metadata(store / "nowhere", {})


def test_done_marker(store: Path) -> None:
    assert not is_done(store)
    assert read_run_record(store) == {}
    mark_done(store, {"seconds": np.float32(1.5), "status": "ignored"})
    assert is_done(store)
    assert json.loads((store / "provenance" / "run.json").read_text()) == {
        "seconds": 1.5,
        "status": "done",
    }


def test_an_atomic_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, b"old")

    def broken(self: Path, other: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_partials_are_removed_and_nothing_else(store: Path) -> None:
    (store / "0" / "c" / "0").mkdir(parents=True)
    (store / "0" / "c" / "0" / "1.abc.partial").write_bytes(b"half")
    (store / "0" / "c" / "0" / "1").write_bytes(b"whole")
    assert remove_partials(store) == 1
    assert remove_partials(store) == 0
    assert (store / "0" / "c" / "0" / "1").read_bytes() == b"whole"


def test_versions_name_what_the_result_depends_on() -> None:
    versions = software_versions()
    assert {"wsi-pgdips", "python", "numpy", "zarr"} <= versions.keys()
