"""The demonstration end to end: phantom, run, figure, errors, and what its output says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.phantom.make import DemoResult, run_demo
from wsi_pgdips.phantom.phantom import open_truth
from wsi_pgdips.phantom.score import score_layers
from wsi_pgdips.report.overview import field_at_level

TINY = Path(__file__).parents[1] / "phantoms" / "tiny.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo") / "new"
    return run_demo(
        folder, config=TINY, preset="fast", device="cpu", calibration_tiles=2, calibration_steps=3
    )


def test_a_slide_its_layers_and_a_figure_lie_in_the_folder(made: DemoResult) -> None:
    folder = made.slide.parent
    names = {p.name for p in folder.iterdir()}
    assert {"phantom.tiff", "phantom.stains.toml", "phantom.ome.zarr", "overview.png"} <= names
    assert made.figure == folder / "overview.png"
    assert made.figure.read_bytes().startswith(b"\x89PNG")
    assert open_layers(made.summary.path).finished
    assert made.summary.exit_code == 0
    assert made.summary.tiles == 4


def test_errors_are_small_and_the_stains_nearer_than_at_the_start(made: DemoResult) -> None:
    assert [e.label for e in made.stains] == ["Hematoxylin", "Eosin"]
    for e in made.stains:
        assert e.library_deg >= 9  # tilt of the phantom
        assert e.angle_deg < e.library_deg / 2
        assert 0 < e.rmse_od < 0.1
        assert abs(e.bias_od) < e.rmse_od
    assert 0 < made.background_od < 0.02


def test_errors_come_from_the_layers_alone(made: DemoResult) -> None:
    again, background = score_layers(open_layers(made.summary.path), open_truth(made.slide))
    assert again == made.stains
    assert background == made.background_od


def test_the_layers_can_be_inspected_and_run_again(
    made: DemoResult, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("info", made.summary.path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "done"
    assert (facts["tiles"], facts["preset"], facts["device"]) == (4, "fast", "cpu")
    assert np.shape(facts["stain_matrix"]) == (2, 3)
    assert set(facts["seam_step_od"]) == {"Hematoxylin", "Eosin"}
    assert {"calibrate", "fit", "render"} <= set(facts["wall_s"])
    assert facts["peak_rss_mb"] > 0

    stains = made.slide.with_suffix(".stains.toml")
    same = ("--stains", stains, "--mpp", "native", "--preset", "fast", "--device", "cpu")
    small = ("--calibration-tiles", 2, "--calibration-steps", 3)
    assert call("run", made.slide, made.summary.path, *same, *small) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_field_at_a_coarse_level_is_the_mean_of_its_pixels() -> None:
    rng = np.random.default_rng(1)
    field = rng.uniform(size=(3, 4, 2, 3)).astype(np.float32)
    fine = field_at_level(field, (96, 128), 32)
    assert fine.shape == (2, 3, 96, 128)
    coarse = field_at_level(field, (24, 32), 8)
    pooled = fine.reshape(2, 3, 24, 4, 32, 4).mean(axis=(3, 5))
    # linear inside; bends only where four tile centres meet
    np.testing.assert_allclose(coarse, pooled, atol=0.03)
    np.testing.assert_allclose(fine[..., 0, 0], field[0, 0], atol=1e-6)
