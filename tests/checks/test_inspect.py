"""``info``: facts on slides and on outputs in every state a run can leave them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_pgdips.checks.info import describe, inspect, inspect_layers
from wsi_pgdips.errors import OutputError, SlideError
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.layers import provenance, store
from wsi_pgdips.layers.schema import OWN_KEY
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.ledger import Ledger

GRID = OutputGrid((1500, 2600), 1.0, 0.5, tile=512, block=1024)
RECORD = {
    "tiles": 9,
    "tiles_fitted": 7,
    "tiles_inherited": 2,
    "failed_tiles": 0,
    "failed_blocks": 0,
    "flags": ["no_glass"],
    "seam_step_od": {"Hematoxylin": 0.0012, "DAB": None},
    "wall_s": {"fit": 10.25, "render": 2.0},
    "peak_rss_mb": 1234.5,
    "device": "cpu",
    "workers": 2,
}


@pytest.fixture
def created(tmp_path: Path) -> Path:
    """Layers as a run leaves them that was stopped after planning."""
    path = tmp_path / "a.ome.zarr"
    store.create_layers(path, GRID, load_stains("hdab"), name="a", store_residual=False)
    own = {"settings": {"preset": "fast", "seed": 4}}
    provenance.write_metadata(path, {OWN_KEY: own})
    Ledger(path).make_folders()
    return path


@pytest.fixture
def ended(created: Path) -> Path:
    """Layers with what the end of a run adds, but for its record."""
    own = {
        "slide": {"name": "a"},
        "software": {"wsi-pgdips": "0.1.0"},
        "stain_matrix": load_stains("hdab").stain_matrix,
        "background": np.array([0.01, 0.02, 0.03]),
    }
    provenance.write_metadata(created, {OWN_KEY: own})
    return created


def rows(facts: dict[str, Any]) -> dict[str, str]:
    return dict(describe(facts))


def test_finished_layers_say_all_there_is(ended: Path) -> None:
    provenance.mark_done(ended, RECORD)
    facts = inspect(ended)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["kind"], facts["status"], facts["finished"]) == ("layers", "done", True)
    assert facts["stains"] == ["Hematoxylin", "DAB"]
    assert facts["shape"] == [1500, 2600]
    assert (facts["mpp"], facts["preset"], facts["seed"]) == (0.5, "fast", 4)
    np.testing.assert_allclose(facts["stain_matrix"], load_stains("hdab").stain_matrix)
    for key, value in RECORD.items():
        assert facts[key] == value

    said = rows(facts)
    assert said["status"] == "finished"
    assert said["size"] == "2600 x 1500, 4 levels"
    assert said["tiles"] == "9, 7 fitted on their own, 2 inherited"
    assert said["DAB vector"] == "0.268, 0.570, 0.776"
    assert said["background"] == "0.010, 0.020, 0.030 OD"
    assert said["seam step, Hematoxylin"] == "0.0012 OD"
    assert said["seam step, DAB"].startswith("not judged")
    assert said["seconds"] == "fit 10.2, render 2.0, in all 12.2"
    assert said["peak memory"] == "1234 MB"
    assert not {"failed", "rendered"} & said.keys()


def test_the_verdict_and_what_was_asked_of_vectors_are_told(ended: Path) -> None:
    verdict = {"status": "review", "reasons": ["much is black", "no glass"], "figures": {}}
    asked = [{"stain": "DAB", "asked": "refine within 3 degrees", "used": "the slide's own"}]
    provenance.write_metadata(ended, {OWN_KEY: {"stain_vectors": asked}})
    provenance.mark_done(ended, {**RECORD, "verdict": verdict})
    facts = inspect(ended)
    assert facts["verdict"] == verdict
    assert facts["stain_vectors"] == asked
    said = describe(facts)
    assert ("verdict", "review") in said
    assert [text for name, text in said if name == "because"] == ["much is black", "no glass"]
    assert dict(said)["DAB vector asked"] == "refine within 3 degrees"


def test_the_lattice_that_the_network_wrote_is_told_by_stain(ended: Path) -> None:
    lattice = {
        "lattice_p999": {"Hematoxylin": 0.004, "DAB": None},
        "lattice_max": {"Hematoxylin": 0.0126, "DAB": None},
    }
    provenance.mark_done(ended, RECORD | lattice)
    facts = inspect(ended)
    assert {key: facts[key] for key in lattice} == lattice
    said = rows(facts)
    assert said["lattice, Hematoxylin"] == "0.004 OD at the 99.9th percentile, 0.013 at most"
    assert "lattice, DAB" not in said  # of `fast`, which has no network
    provenance.mark_done(ended, RECORD)
    facts = inspect(ended)  # of an earlier version
    assert facts["lattice_p999"] is None
    assert not any(name.startswith("lattice") for name in rows(facts))


def test_an_output_that_was_stopped_says_so_and_how_far_it_is(created: Path) -> None:
    folder = Ledger(created).render((0, 0)).parent
    for block in ((0, 0), (1, 2)):
        Ledger(created).render(block).write_bytes(b"")
    (folder / "0_1.npz.17.partial").write_bytes(b"")
    facts = inspect(created)
    assert (facts["status"], facts["finished"]) == ("unfinished", False)
    assert (facts["blocks"], facts["blocks_rendered"]) == (6, 2)
    assert facts["wall_s"] is None
    assert facts["stain_matrix"] is None
    said = rows(facts)
    assert said["status"].startswith("unfinished")
    assert said["rendered"] == "2 blocks, of at most 6"
    assert not {"tiles", "seconds", "background"} & said.keys()


def test_an_output_broken_off_at_its_creation_is_unfinished_too(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    path.mkdir()
    group = {"zarr_format": 3, "node_type": "group", "attributes": {OWN_KEY: {}}}
    (path / "zarr.json").write_text(json.dumps(group))
    facts = inspect(path)
    assert (facts["kind"], facts["status"], facts["finished"]) == ("layers", "unfinished", False)
    assert rows(facts)["status"].startswith("unfinished")


def test_a_run_that_ended_with_failures_is_told_apart(ended: Path) -> None:
    record = {**RECORD, "status": "incomplete", "failed_tiles": 3, "failed_blocks": 1}
    provenance.write_json(ended / provenance.RUN_RECORD, record)
    facts = inspect(ended)
    assert (facts["status"], facts["finished"]) == ("incomplete", False)
    assert rows(facts)["status"].startswith("ended with failures")
    assert rows(facts)["failed"] == "3 tiles, 1 blocks"


def test_other_zarr_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    with pytest.raises(OutputError, match="not layers of wsi-pgdips"):
        inspect(tmp_path)
    with pytest.raises(OutputError, match="nothing"):
        inspect_layers(tmp_path / "nowhere.zarr")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Two full tiles of pink on the left of grey-white glass, 0.5 um/px, and a speck."""
    rgb = np.full((1024, 1536, 3), (240, 238, 241), np.uint8)
    rgb[:, :512] = (200, 120, 180)
    rgb[100:116, 1300:1316] = 90
    path = tmp_path / "p.png"
    Image.fromarray(rgb).save(path, dpi=(50800, 50800))
    return path


def test_a_slide_says_its_size_and_what_a_run_would_do(picture: Path) -> None:
    facts = inspect(picture)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["kind"], facts["vendor"], facts["shape"]) == ("slide", "png", [1024, 1536])
    assert facts["mpp"] == pytest.approx(0.5, abs=1e-3)
    assert facts["problem"] is None
    assert facts["output"] | {"mpp": 0.5} == {
        "mpp": 0.5,
        "shape": [1024, 1536],
        "tiles": 6,
        "tiles_with_tissue": 2,
        "blocks": 1,
    }
    said = rows(facts)
    assert said["size"] == "1536 x 1024"
    assert said["tiles"] == "6, about 2 with tissue"
    assert said["objective power"] == "not stated"


def test_a_slide_without_mpp_says_what_is_missing_and_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(np.full((600, 600, 3), 230, np.uint8)).save(path)
    facts = inspect(path)
    assert (facts["mpp"], facts["output"]) == (None, None)
    assert "--mpp-source" in facts["problem"]
    assert "--mpp-source" in rows(facts)["problem"]
    given = inspect(path, mpp_source=0.25)
    assert given["output"]["shape"] == [300, 300]
    assert given["problem"] is None


def test_what_is_not_a_slide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        inspect(tmp_path / "nowhere.svs")


@pytest.mark.realslide
def test_a_scanned_slide(data_dir: Path) -> None:
    facts = inspect(data_dir / "slides" / "CMU-1-Small-Region.svs")
    assert (facts["vendor"], facts["shape"]) == ("aperio", [2967, 2220])
    assert facts["mpp"] == pytest.approx(0.499)
    assert facts["objective_power"] == 20
    # the biopsy lies diagonally: neither nothing nor every tile
    assert 10 <= facts["output"]["tiles_with_tissue"] <= 25
    assert facts["output"]["tiles"] == 30
