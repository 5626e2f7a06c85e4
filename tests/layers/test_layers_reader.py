"""What was written comes back; what is not ours, or not finished, is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.provenance import mark_done, write_metadata
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.layers.schema import OWN_KEY, SCALE_FACTOR
from wsi_pgdips.layers.store import create_layers, finalize_levels
from wsi_pgdips.records import StainSet

MakeScene = Callable[..., Any]


@pytest.fixture(scope="module")
def scene(make_scene: MakeScene) -> Any:
    return make_scene((1500, 1100), mpp=0.2527)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory, scene: Any, stains: StainSet) -> Layers:
    out = tmp_path_factory.mktemp("layers") / "out"
    scene.write(out, stains, residual=True)
    finalize_levels(out, scene.grid)
    write_metadata(out, {OWN_KEY: {"slide": {"name": "s"}}})
    mark_done(out, {"host": "here"})
    return open_layers(out)


@pytest.fixture
def own_layers(tmp_path: Path, layers: Layers) -> Layers:
    """A copy that a test may damage."""
    return open_layers(shutil.copytree(layers.path, tmp_path / "out"))


def test_grid_and_stains_come_back_exactly(layers: Layers, scene: Any, stains: StainSet) -> None:
    assert layers.grid == scene.grid
    assert layers.stains == stains
    assert layers.provenance["slide"] == {"name": "s"}
    assert layers.provenance["schema"] == 1
    assert layers.finished
    assert layers.run_record == {"host": "here", "status": "done"}


def test_concentration_is_within_half_a_count(layers: Layers, scene: Any) -> None:
    lazy = layers.concentration()
    assert (lazy.shape, lazy.dtype) == ((2, 1500, 1100), np.float32)
    q = lazy.compute()
    np.testing.assert_array_equal(np.isnan(q), np.isnan(scene.q))
    assert np.nanmax(np.abs(q - scene.q)) <= 0.5 * SCALE_FACTOR + 1e-6
    np.testing.assert_array_equal(layers.codes(0)[...], scene.codes)


def test_read_is_a_window_on_a_level_and_nan_outside(layers: Layers) -> None:
    for level in range(layers.grid.n_levels):
        h, w = layers.grid.level_shape(level)
        whole = layers.concentration(level).compute()
        padded = np.full((2, h + 40, w + 40), np.nan, np.float32)
        padded[:, 20:-20, 20:-20] = whole
        np.testing.assert_array_equal(layers.read(-20, -20, h + 40, w + 40, level), padded)
        np.testing.assert_array_equal(
            layers.read(h // 2, w // 3, 33, 21, level),
            whole[:, h // 2 : h // 2 + 33, w // 3 : w // 3 + 21],
        )
    assert np.isnan(layers.read(5000, 0, 4, 4)).all()


def test_tissue_and_residuals(layers: Layers, scene: Any) -> None:
    np.testing.assert_array_equal(layers.tissue().compute(), scene.tissue)
    assert layers.tissue(1).dtype == bool
    signed = layers.residual().compute()
    assert np.nanmax(np.abs(signed - scene.residual_od)) <= 0.5 * SCALE_FACTOR + 1e-6
    assert list(layers.residual_levels) == [1, 2]
    rms = layers.residual_rms()
    assert rms.shape == layers.grid.level_shape(1)
    # residuals were drawn with a standard deviation of 0.02
    assert np.sqrt(np.nanmean(rms.compute() ** 2)) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.concentration(9), "no such level"),
        (lambda x: x.tissue(-1), "no such level"),
        (lambda x: x.residual_rms(0), "no residual is stored"),
        (lambda x: x.fields, "no parameter fields"),
        (lambda x: x.tiles, "tile table cannot be read"),
    ],
)
def test_what_is_not_there_is_said(
    layers: Layers, call: Callable[[Layers], object], message: str
) -> None:
    with pytest.raises(OutputError, match=message):
        call(layers)


def test_a_residual_that_was_not_stored(tmp_path: Path, scene: Any, stains: StainSet) -> None:
    create_layers(tmp_path, scene.grid, stains, name="scene")
    layers = open_layers(tmp_path, unfinished=True)
    assert not layers.has_residual
    with pytest.raises(OutputError, match="--store-residual"):
        layers.residual()


def test_a_missing_array_is_said(own_layers: Layers) -> None:
    (own_layers.path / "1" / "zarr.json").unlink()
    with pytest.raises(OutputError, match="missing or damaged"):
        own_layers.concentration(1)


def test_layers_travel_to_workers(layers: Layers) -> None:
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(layers)).read(700, 500, 9, 9), layers.read(700, 500, 9, 9)
    )


def test_unfinished_layers_are_refused_unless_asked_for(
    tmp_path: Path, scene: Any, stains: StainSet
) -> None:
    create_layers(tmp_path, scene.grid, stains, name="scene")
    with pytest.raises(OutputError, match="not finished"):
        open_layers(tmp_path)
    layers = open_layers(tmp_path, unfinished=True)
    assert not layers.finished
    assert np.isnan(layers.read(0, 0, 4, 4)).all()


def test_what_is_not_ours_is_refused(tmp_path: Path, own_layers: Layers) -> None:
    zarr.create_group(tmp_path / "foreign")
    (tmp_path / "file.svs").write_text("x")
    for name in ("foreign", "file.svs", "nothing"):
        with pytest.raises(OutputError, match="not layers of wsi-pgdips"):
            open_layers(tmp_path / name)

    root = own_layers.path / "zarr.json"
    good = json.loads(root.read_text())
    for own, message in (
        ({"schema": 2}, "another schema version"),
        ({"schema": 1, "grid": {"tile": 512}}, "description of these layers is damaged"),
    ):
        changed = {**good, "attributes": {**good["attributes"], OWN_KEY: own}}
        root.write_text(json.dumps(changed))
        with pytest.raises(OutputError, match=message):
            open_layers(own_layers.path)
    root.write_text("{")
    with pytest.raises(OutputError, match="is damaged"):
        open_layers(own_layers.path)


def test_colours_written_without_hash(tmp_path: Path, scene: Any, stains: StainSet) -> None:
    create_layers(tmp_path, scene.grid, replace(stains, colors=("#2b2b8c", "8C5A2B")), name="scene")
    channels = zarr.open_group(tmp_path, mode="r").attrs["ome"]["omero"]["channels"]
    assert [c["color"] for c in channels] == ["2B2B8C", "8C5A2B"]
