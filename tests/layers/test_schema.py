"""Metadata dicts; the validators see them in test_store."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import PurePosixPath

import numpy as np
import pytest

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers import schema
from wsi_pgdips.records import SlideMeta, SlidePrior, StainSet

GRID = OutputGrid((9000, 20001), 2.0, 0.4, block=4096)


def test_every_level_is_in_micrometres_with_the_half_pixel_shift(stains: StainSet) -> None:
    datasets = schema.ome_image(GRID, stains, "x")["multiscales"][0]["datasets"]
    assert [d["path"] for d in datasets] == [str(k) for k in range(GRID.n_levels)]
    for level, dataset in enumerate(datasets):
        scale, shift = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [1.0, 0.4 * 2**level, 0.4 * 2**level]}
        # where the first coarse pixel's centre lies, from the centres of those it averages
        centre = np.mean(np.arange(2**level)) * 0.4
        assert shift["type"] == "translation"
        assert shift["translation"] == pytest.approx([0, centre, centre])


def test_channels_carry_label_colour_and_a_fixed_window(stains: StainSet) -> None:
    omero = schema.ome_image(GRID, stains, "x")["omero"]
    assert [c["label"] for c in omero["channels"]] == ["Hematoxylin", "DAB"]
    for channel in omero["channels"]:
        # neither validator looks at this
        assert re.fullmatch("[0-9A-F]{6}", channel["color"])
        assert channel["window"] == {"min": 0, "max": 65535, "start": 0, "end": 2000}
    assert omero["rdefs"] == {"model": "color", "defaultT": 0, "defaultZ": 0}


@pytest.mark.parametrize(
    ("path", "classes"),
    [("labels/tissue", ["tissue"]), ("labels/artifact", ["fill", "ink", "foreign", "saturated"])],
)
def test_labels_have_the_levels_of_the_image_and_name_their_classes(
    path: str, classes: list[str]
) -> None:
    label = schema.ome_label(GRID, path)
    assert len(label["multiscales"][0]["datasets"]) == GRID.n_levels
    assert label["image-label"]["source"] == {"image": "../../"}
    assert [p["class"] for p in label["image-label"]["properties"]] == classes


@pytest.mark.parametrize(
    ("shape", "block", "level"),
    [
        ((30000, 30000), 4096, 3),
        ((30000, 30000), 1024, 1),
        ((1000, 900), 4096, 1),
        ((9, 9), 1024, 0),
    ],
)
def test_residual_level(shape: tuple[int, int], block: int, level: int) -> None:
    grid = OutputGrid(shape, 1.0, 0.5, tile=256, block=block)
    assert schema.residual_level(grid) == level
    paths = [d["path"] for d in schema.ome_residual_rms(grid)["multiscales"][0]["datasets"]]
    assert paths == [str(k) for k in range(level, grid.n_levels)]


def test_provenance_is_plain_json_without_paths_or_nan() -> None:
    prior = SlidePrior(
        stain_matrix=np.eye(2, 3, dtype=np.float32),
        spectral_correction=np.ones(2, np.float32),
        background=np.array([0.01, 0.02, 0.03], np.float32),
        presence=np.full(2, 0.1, np.float32),
        noise_od=0.01,
        pooled_noise_od=0.005,
        prior_weight=np.array([0.0, 0.5], np.float32),
        measured=np.array([True, False]),
        flags=("no_glass",),
    )
    meta = SlideMeta("s", "aperio", (10, 10), 0.25, 40.0, ((10, 10),), None, False, "abc")
    block = schema.provenance_block(
        software={"numpy": "2"},
        settings={"seed": 3, "preset": "fast"},
        slide=asdict(meta) | {"file": PurePosixPath("/home/someone/case 12/s.svs")},
        prior=prior,
        extra={"device_class": "cpu"},
    )
    text = json.dumps(block, allow_nan=False)
    assert "someone" not in text
    assert block["slide"]["file"] == "s.svs"
    assert block["prior"]["loss"] is None  # NaN: not fitted
    assert block["prior"]["prior_weight"] == [0.0, 0.5]
    assert block["seeds"]["seed"] == 3
    assert block["device_class"] == "cpu"
