"""The file of records, the tables made of them, and the names of methods and cases."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quality import cases, methods
from benchmarks.records import (
    KEYS,
    Records,
    check_places,
    kept_records,
    load_records,
    lookup,
    number,
    only,
    write_page,
)
from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.phantom.config import load_phantom_config

ROOT = Path(__file__).parents[2]
PAGES = {
    "quality": "quality.md",
    "speed": "speed.md",
    "looks": "looks.md",
    "cohort": "cohort-bench.md",
}


def sheet(method: str, value: float = 1.0, *, case: str = "he", seed: int | None = 1) -> Records:
    made = Records("quality", {"case": case, "kind": "phantom", "seed": seed})
    made.add({"rmse": value}, method=method)
    return made


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A copy of the committed records and figures, as they lie in ``docs``."""
    for folder in ("results", "images"):
        shutil.copytree(ROOT / "docs" / folder, tmp_path / folder)
    return tmp_path


@pytest.mark.parametrize("benchmark", KEYS)
def test_committed_records_give_the_committed_page(benchmark, committed):
    page = PAGES[benchmark]
    write_page(benchmark, committed / "results" / f"{benchmark}.json", committed / page)
    assert (committed / page).read_text() == (ROOT / "docs" / page).read_text()


def test_the_program_runs_from_anywhere(committed, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    program = [sys.executable, ROOT / "tests" / "benchmarks", "page", "cohort"]
    subprocess.run([*program, "results/cohort.json", "page.md"], cwd=committed, check=True)
    assert (committed / "page.md").read_text() == (ROOT / "docs" / PAGES["cohort"]).read_text()


def test_a_record_says_what_it_is():
    made = sheet("fast", 0.0123456)
    for stain, value in (("A", math.nan), ("B", -1e-7), ("C", 12345)):
        where = {"stain": stain, "blur_px": 2, "seconds": 12.3456}
        made.at(**where).add({"bias": value}, method="fast")
    assert all(tuple(r) == KEYS["quality"] for r in made.rows)
    # four digits, null where nothing is known, counts as they are
    assert [r["value"] for r in made.rows] == [0.01235, None, -1e-7, 12345]
    assert made.rows[1] | {"value": 0} == {
        "case": "he",
        "kind": "phantom",
        "seed": 1,
        "method": "fast",
        "blur_px": 2,
        "stain": "A",
        "metric": "bias",
        "value": 0,
        "seconds": 12.3,
    }


def test_records_take_the_place_of_their_own_methods_only(tmp_path):
    path = tmp_path / "r.json"
    kept = kept_records("quality", path)
    for made in (sheet("fast"), sheet("oracle"), sheet("fast", seed=2), sheet("fast", 3.0)):
        kept.put(made, "case", "seed", "method")
        kept.save(path)
    again = kept_records("quality", path)
    assert [(r["method"], r["seed"], r["value"]) for r in again.rows] == [
        ("oracle", 1, 1),
        ("fast", 2, 1),
        ("fast", 1, 3),
    ]
    assert again.rows == kept.rows
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert len(path.read_text().splitlines()) == 5  # a line a record, and brackets
    assert kept_records("quality", path, keep=False).rows == []


def test_figures_are_found_by_their_keys():
    made = sheet("fast", math.nan)
    for seed, value in ((2, 0.5), (3, 0.7)):
        made.rows += sheet("fast", value, seed=seed).rows
    made.add({"rmse": 0.3}, method="oracle")
    assert len(only(made.frame, method="fast", seed=(1, 2))) == 2
    value = lookup(made.frame, "method", "metric")
    assert value("fast", "rmse") == 0.5  # the first that is known
    assert value("oracle", "rmse") == 0.3
    assert math.isnan(value("oracle", "bias"))
    assert math.isnan(lookup(Records("speed").frame, "case")("x"))


@pytest.mark.parametrize("benchmark", KEYS)
@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '[{"case": "he", "device": "x"}]'])
def test_other_files_are_refused(tmp_path, benchmark, text):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=r"r\.json"):
        load_records(benchmark, path)
    with pytest.raises(SettingsError, match=r"r\.json"):
        write_page(benchmark, path, tmp_path / "page.md")
    assert text is None or path.read_text() == text


def test_records_of_another_benchmark_are_refused():
    with pytest.raises(SettingsError, match="benchmark of speed"):
        load_records("speed", ROOT / "docs" / "results" / "looks.json")


def test_results_and_data_need_a_folder(tmp_path):
    check_places(tmp_path / "r.json", tmp_path)
    with pytest.raises(OutputError, match="folder"):
        check_places(tmp_path / "no" / "r.json")
    with pytest.raises(SettingsError, match="slides/"):
        check_places(tmp_path / "r.json", tmp_path, "slides")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (15.0, "15"),
        (0.99999, "1"),
        (999.7, "1000"),
        (11_400.4, "11400"),
        (8.77e-5, "0.0000877"),
        (0, "0"),
        (-0.00012, "-0.00012"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_numbers_have_no_exponent(value, text):
    assert number(value) == text


def test_methods_are_chosen_by_name():
    usual = {m.name for m in methods.choose()}
    assert {"oracle", "rays-slide", "balanced", "fast", "ablation-no-glass"} <= usual
    assert "paper" not in usual
    assert {m.name for m in methods.choose(None, ["paper"])} - usual == {"paper"}
    assert "balanced" not in {m.name for m in methods.choose(None, ["fast"])}
    assert [m.name for m in methods.choose(["fast", "fixed"], ["paper"])] == [
        "fixed",
        "paper",
        "fast",
    ]
    for names, presets, where in ((["fats"], None, "--methods"), (None, ["best"], "--preset")):
        with pytest.raises(SettingsError, match=where):
            methods.choose(names, presets)


def test_macenko_knows_two_stains():
    by_name = methods.BY_NAME
    assert methods.fits(by_name["macenko-slide"], methods.PHANTOM, 2)
    assert not methods.fits(by_name["macenko-slide"], methods.PHANTOM, 3)
    assert not methods.fits(by_name["oracle"], methods.PICTURE, 2)


def test_every_description_is_a_case_and_can_be_read():
    there = cases.all_cases(None)
    phantoms = [case for case in there if case.kind == "phantom"]
    assert set(cases.QUICK_CASES) <= {case.name for case in phantoms}
    for case in phantoms:
        on_it = load_phantom_config(case.description).name
        assert on_it != case.name if case.foreign else on_it == case.name
        assert cases.stains_of(case) in (1, 2, 3)
        assert cases.group_of(case.name) != "real"
    assert {case.name for case in there if case.kind == "consistency"} == {
        f"shift_{case.name}" for case in phantoms if cases.group_of(case.name) == "drift"
    }


def test_cases_are_what_the_folder_holds(tmp_path):
    for name in ("truth", "semisynthetic", "slides"):
        (tmp_path / name).mkdir()
    for name in ("truth/A_IHC.png", "truth/A_DAPI.png", "truth/B_IHC.png"):
        (tmp_path / name).touch()
    for name in ("semisynthetic/1_HE.jpg", "semisynthetic/1_mIF.tif", "slides/x.svs"):
        (tmp_path / name).touch()
    known = {
        case.name: case for case in cases.all_cases(tmp_path, (tmp_path / "slides/x.svs", "he"))
    }
    assert known["A"].truths == {"Hematoxylin:DAPI": tmp_path / "truth" / "A_DAPI.png"}
    assert "B" not in known  # nothing to compare it with
    assert known["1"].kind == "semisynthetic"
    assert known["from_x"].stains == "he"
    assert "real_he" not in known
    assert [c.name for c in cases.choose(list(known.values()), ["1", "he"])] == ["he", "1"]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"x\.svs"):
        cases.all_cases(None, (tmp_path / "x.svs", "he"))
    with pytest.raises(SettingsError, match="single_stain"):
        cases.choose(cases.all_cases(None), ["nosuch"])


def test_the_package_does_not_know_its_benchmarks():
    files = (ROOT / "wsi_pgdips").rglob("*.py")
    assert not [p for p in files if re.search(r"(import|from) benchmarks", p.read_text())]
