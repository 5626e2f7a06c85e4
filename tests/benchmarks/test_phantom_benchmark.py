"""The benchmark measures what it says: known order of methods, known tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import phantom_quality
import pytest
from phantom_report import render

from wsi_pgdips.slide.phantom import load_phantom_config

LABEL = "DAB"


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[dict]:
    config = load_phantom_config(phantom_quality.PHANTOMS / "single.toml")
    config = config.model_copy(update={"shape": (768, 1024), "seed": 5})
    return phantom_quality.measure(config, "small", tmp_path_factory.mktemp("phantom"), [])


def value(records: list[dict], method: str, metric: str, stain: str = LABEL) -> float:
    (found,) = (
        r["value"]
        for r in records
        if (r["method"], r["metric"], r["stain"]) == (method, metric, stain)
    )
    return found


def test_the_truth_beats_the_library_and_blur_costs(records):
    oracle, fixed, blurred = (
        value(records, m, "rmse") for m in ("oracle", "fixed, glass", "fixed, glass, blurred")
    )
    assert 0 < oracle < fixed < blurred
    assert value(records, "oracle", "rmse_ratio_to_oracle") == 1
    assert value(records, "fixed, glass", "rmse_ratio_to_oracle") == pytest.approx(
        fixed / oracle, rel=2e-3
    )
    assert value(records, "fixed", "angle_deg") >= 9
    glass = value(records, "fixed, glass", "background_od", "all")
    assert glass < value(records, "fixed", "background_od", "all")


def test_every_record_says_what_it_is(records):
    keys = {"case", "seed", "method", "stain", "metric", "value"}
    assert all(set(r) == keys and (r["case"], r["seed"]) == ("small", 5) for r in records)
    places = [(r["method"], r["metric"], r["stain"]) for r in records]
    assert len(places) == len(set(places))
    explained = (Path(__file__).parents[2] / "docs" / "results" / "README.md").read_text()
    assert all(f"`{r['metric']}`" in explained and f"`{r['method']}`" in explained for r in records)


def test_the_page_shows_means_over_seeds():
    def record(seed: int, metric: str, stain: str, value: float | None) -> dict:
        return {
            "case": "c",
            "seed": seed,
            "method": "m",
            "stain": stain,
            "metric": metric,
            "value": value,
        }

    rows = [record(s, "rmse", LABEL, v) for s, v in ((1, 0.1), (2, 0.2))]
    rows += [record(1, "seam_step_od", LABEL, None), record(2, "seam_step_od", LABEL, 0.0012)]
    page = render(rows, "x.json")
    spread = f"{np.std([0.1, 0.2], ddof=1):.4f}"
    assert f"| m | 0.1500 ± {spread} | - | - | - | 0.0012 |" in page
    assert "means over 2 seeds" in page


def test_an_unknown_phantom_is_refused(tmp_path, capsys):
    out = tmp_path / "x.json"
    assert phantom_quality.main(["--out", str(out), "--cases", "nosuch"]) == 2
    assert "known: " in capsys.readouterr().out
    assert not out.exists()


def test_kept_records_survive_a_run_of_another_case(tmp_path, monkeypatch):
    out = tmp_path / "x.json"
    monkeypatch.setattr(
        phantom_quality,
        "measure",
        lambda config, case, folder, presets: [{"case": case, "seed": config.seed}],
    )
    main = phantom_quality.main
    for case, keep in (("single", []), ("he_flat", ["--keep"]), ("he_flat", ["--keep"])):
        assert main(["--out", str(out), "--cases", case, "--seeds", "2", *keep]) == 0
    found = [(r["case"], r["seed"]) for r in json.loads(out.read_text())]
    assert found == [("single", 1), ("single", 2), ("he_flat", 1), ("he_flat", 2)]
    assert main(["--out", str(out), "--cases", "he_flat", "--seeds", "1"]) == 0
    assert len(json.loads(out.read_text())) == 1
