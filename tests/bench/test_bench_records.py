"""The file of records, and the names of methods and cases."""

from __future__ import annotations

import math

import pytest

from benchmarks.quality import cases, methods
from benchmarks.records import KEYS, Sheet, load_records, open_results, select
from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.phantom.config import load_phantom_config


def sheet(method: str, value: float = 1.0, *, case: str = "he", seed: int | None = 1) -> Sheet:
    made = Sheet(case, "phantom", seed)
    made.add(method, "rmse", value)
    return made


def test_a_record_says_what_it_is():
    made = sheet("fast", 0.0123456)
    made.add_each("fast", "bias", ("A", "B"), (math.nan, -1e-7), blur_px=2, seconds=12.3456)
    assert all(tuple(r) == KEYS for r in made.records)
    assert [r["value"] for r in made.records] == [0.01235, None, -1e-7]
    assert made.records[1] | {"value": 0} == {
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


def test_a_sheet_takes_the_place_of_its_own_methods_only(tmp_path):
    path = tmp_path / "r.json"
    results = open_results(path, keep=True)
    for made in (sheet("fast"), sheet("oracle"), sheet("fast", seed=2), sheet("fast", 3.0)):
        results.merge(made)
    again = open_results(path, keep=True)
    assert [(r["method"], r["seed"], r["value"]) for r in again.records] == [
        ("oracle", 1, 1),
        ("fast", 2, 1),
        ("fast", 1, 3),
    ]
    assert again.methods("phantom", "he", 1) == {"oracle", "fast"}
    assert again.methods("paired", "he", 1) == set()
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert open_results(path, keep=False).records == []
    assert len(select(again.records, method="fast", seed=2)) == 1


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"case": "he"}]'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"r\.json"):
        load_records(path)


def test_results_need_a_folder(tmp_path):
    with pytest.raises(OutputError, match="folder"):
        open_results(tmp_path / "no" / "r.json", keep=False)


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
        assert load_phantom_config(case.description).name == case.name
        assert cases.stains_of(case) in (1, 2, 3)
        assert cases.group_of(case.name) == case.group
    assert {case.name for case in there if case.kind == "consistency"} == {
        f"shift_{case.name}" for case in phantoms if case.group == "drift"
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
    assert known["A"].truths == (("Hematoxylin", "DAPI", tmp_path / "truth" / "A_DAPI.png"),)
    assert "B" not in known  # nothing to compare it with
    assert known["1"].kind == "semisynthetic"
    assert known["from_x"].stains == "he"
    assert "real_he" not in known
    assert [c.name for c in cases.choose(list(known.values()), ["1", "he"])] == ["he", "1"]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="semisynthetic"):
        cases.all_cases(tmp_path / "no")
    with pytest.raises(SettingsError, match=r"x\.svs"):
        cases.all_cases(None, (tmp_path / "x.svs", "he"))
    with pytest.raises(SettingsError, match="single_stain"):
        cases.choose(cases.all_cases(None), ["nosuch"])
