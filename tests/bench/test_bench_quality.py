"""The order of work, what is kept, the page, and the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from benchmarks.commands import main
from benchmarks.quality import run as quality
from benchmarks.quality.methods import Method
from benchmarks.quality.page import render
from benchmarks.quality.run import run
from benchmarks.records import Records
from wsi_pgdips.errors import SettingsError


class FakeMeasure:
    """Takes the place of all measuring: remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None, tuple[str, ...]]] = []

    def __call__(self, case: Any, seed: int | None, methods: list[Method], *_: Any) -> Records:
        if case.name == "scarce" and seed == 2:
            raise SettingsError("no true stain vectors found for this phantom")
        self.asked.append((case.name, seed, tuple(m.name for m in methods)))
        made = Records("quality", {"case": case.name, "kind": case.kind, "seed": seed})
        for method in methods:
            made.add({"rmse_joint": 0.1}, method=method.name)
        return made


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program of the benchmarks in this process; returns its exit code."""

    def program(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return program


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> FakeMeasure:
    fake = FakeMeasure()
    monkeypatch.setattr(quality, "_measure", fake)
    return fake


def test_seed_by_seed_and_what_cannot_be_is_left_out(tmp_path, measure):
    said: list[str] = []
    chosen = {"methods": ("oracle", "macenko-tile"), "cases": ("three", "scarce")}
    results = run(tmp_path / "r.json", **chosen, seeds=2, say=said.append)
    assert measure.asked == [
        ("scarce", 1, ("oracle", "macenko-tile")),
        ("three", 1, ("oracle",)),  # Macenko knows two stains
        ("three", 2, ("oracle",)),
    ]
    assert any("left out: no true stain vectors" in line for line in said)
    assert json.loads((tmp_path / "r.json").read_text()) == results.rows


def test_a_kept_file_is_gone_on_with(tmp_path, measure):
    path = tmp_path / "r.json"
    first = {"methods": ("oracle", "fixed"), "cases": ("he",)}
    run(path, **first, seeds=1)
    run(path, **first, seeds=2, keep=True)
    assert [a[1] for a in measure.asked] == [1, 2]
    run(path, methods=("oracle", "fast"), cases=("he",), seeds=2, keep=True)
    assert measure.asked[2:] == [("he", 1, ("fast",)), ("he", 2, ("fast",))]
    found = json.loads(path.read_text())
    assert sorted((r["seed"], r["method"]) for r in found) == [
        (seed, name) for seed in (1, 2) for name in ("fast", "fixed", "oracle")
    ]
    run(path, **first, seeds=1)
    assert {r["seed"] for r in json.loads(path.read_text())} == {1}


def test_ablations_are_for_the_first_seed_unless_named(tmp_path, measure):
    run(tmp_path / "r.json", cases=("he",), seeds=2)
    named = [[m for m in methods if m.startswith("ablation")] for _, _, methods in measure.asked]
    assert named[0]
    assert not named[1]
    run(tmp_path / "r.json", cases=("he",), seeds=2, methods=("ablation-no-glass",))
    assert [a[2] for a in measure.asked[2:]] == [("ablation-no-glass",)] * 2


def test_figures_that_hang_together_are_measured_together(tmp_path, measure):
    (tmp_path / "truth").mkdir()
    for name in ("A_IHC.png", "A_H.png"):
        (tmp_path / "truth" / name).touch()
    path = tmp_path / "r.json"
    picture = {"data": tmp_path, "cases": ("A",), "keep": True}
    run(path, methods=("fixed",), **picture)
    run(path, methods=("fixed", "fast"), **picture)
    assert measure.asked[1] == ("A", None, ("fixed", "fast"))  # equal sharpness is over all
    fields = ("fields-constant", "fields-oracle", "fields-blended")
    run(path, methods=fields[:1], cases=("ramp_he",), seeds=1, keep=True)
    run(path, methods=fields, cases=("ramp_he", "he"), seeds=1, keep=True)
    assert set(measure.asked[-1][2]) == set(fields)  # the gap is over all
    assert measure.asked[-1][0] == "ramp_he"  # and there is none in he


def test_quick_is_a_fixed_slice(tmp_path, measure):
    run(tmp_path / "r.json", quick=True)
    assert [a[:2] for a in measure.asked] == [
        (c, 1) for c in ("he", "close", "scarce", "ramp_hdab")
    ]
    assert all({"oracle", "rays-slide", "balanced"} <= set(a[2]) for a in measure.asked)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"cases": ("nosuch",)}, "--cases"),
        ({"methods": ("nosuch",)}, "--methods"),
        ({"presets": ("nosuch",)}, "--preset"),
        ({"data": Path("nowhere")}, "nowhere"),
        ({"seeds": 0}, "--seeds"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(tmp_path, measure, change, part):
    with pytest.raises(SettingsError, match=part):
        run(tmp_path / "r.json", **change)
    assert not measure.asked
    assert not list(tmp_path.iterdir())


def figures() -> Records:
    """Two seeds of a phantom, a picture, a shifted grid and a time."""
    records = Records("quality")
    for seed, ours in ((1, 0.1), (2, 0.2)):
        made = records.at(case="ramp_he", kind="phantom", seed=seed)
        for method, joint in (("oracle", 0.1), ("rays-slide", 0.3), ("balanced", ours)):
            own = made.at(method=method)
            for blur in (0, 2):
                own.add({"rmse_joint": joint + blur}, blur_px=blur)
            leak = 0.02 if method == "balanced" else 0.07
            own.add({"rmse": joint, "crosstalk": 0.01}, stain="H")
            own.add({"rmse": joint / 2, "crosstalk": leak}, stain="E")
            own.add({"rmse": 0.2}, stain="H", blur_px=2)
        ours_at = made.at(method="balanced")
        ours_at.add({"rmse_joint_over_oracle": 2.0})
        step = float("nan") if seed == 1 else 0.0012
        seams = {"seam_step_od": step, "seam_control_od": 0.0011, "seam_own_od": 0.0003}
        ours_at.add(seams, stain="E")
        for name in ("fields-constant", "fields-oracle", "fields-blended"):
            made.add({"rmse_joint": ours}, method=name)
        made.add({"gap_closed": 0.75}, method="fields-blended")
    pair = records.at(case="A", kind="paired", stain="H:DAPI")
    pair.add({"shift_y_px": 3, "shift_x_px": 3}, method="registration")
    pair.add({"pcc_equal": 0.876}, method="fixed")
    shift = records.at(case="shift_ramp_he", kind="consistency", seed=1)
    shift.add({"rmse": 0.001}, method="balanced", stain="H")
    shift.add({"rmse": 0.002}, method="balanced", stain="E")
    shift.add({"rmse_joint": 0.0016}, method="balanced")
    shift.add({"rmse_joint": 0.008}, method="ablation-no-blending")
    timed = records.at(case="time_quality", kind="phantom", seed=1)
    timed.add({"seconds": 90.0}, method="paper")
    timed.add({"seconds_ratio": 45.0}, method="time-quality")
    return records


def test_the_page_shows_means_margins_and_all_kinds():
    page = render(figures().frame, "x.json", Path())
    for line in (
        "| ramp_he | drift | 0.1500 | 0.3000 (rays-slide, +100%) | 2.3000 (rays-slide, 2 px, "
        "+1433%) | 2.00 ± 0.00 | 0.020 | 0.070 (rays-slide) |",
        "| ramp_he | H | 0.2000 (rays-slide, 2 px, +0%) | 0.2000 | 0.1500 |",
        "| balanced | 0.1500 ± 0.0707 / 0.0750 ± 0.0354 | 2.00 ± 0.00 | 0.020 | - | - | "
        "0.0012 (0.0011) | 0.0003 |",
        "| balanced | 0.1500 ± 0.0707 | 2.1500 ± 0.0707 |",
        "| ramp_he | 0.1500 ± 0.0707 | 0.1500 ± 0.0707 | 0.1500 ± 0.0707 | 0.75 ± 0.00 | - |",
        "| fixed | 0.876 | - | - | - | - | - | - | - |",
        "| shift_ramp_he | H, E | 0.0010 / 0.0020 | - | 0.20 | - |",
        "| paper | 90.0 | - | - |",
    ):
        assert line in page
    assert "Moved by (y, x) (3, 3) pixels" in page
    assert "`x.json`" in page
    assert render(Records("quality").frame, "x", Path()).startswith("# Quality")


def test_the_command_measures_and_writes_the_page(bench, tmp_path, measure, capsys):
    out, page = tmp_path / "r.json", tmp_path / "p.md"
    chosen = ("--methods", "oracle, fixed", "--preset", "paper", "--cases", "he", "--seeds", 1)
    assert bench("quality", "--out", out, *chosen, "--page", page) == 0
    assert measure.asked == [("he", 1, ("oracle", "fixed", "paper"))]
    said = capsys.readouterr().out
    assert "[1/1] he, seed 1" in said
    assert "3 in" in said
    first = page.read_text()
    page.unlink()
    assert bench("page", "quality", out, page) == 0
    assert page.read_text() == first
    assert bench("quality", "--out", out, *chosen, "--quiet") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--cases", "nosuch"], "some of he,"),
        (["--from", "x.svs"], "--stains"),
        (["--data", "nowhere"], "semisynthetic/"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_the_command_says_what_is_wrong(bench, tmp_path, capsys, arguments, part):
    assert bench("quality", "--out", tmp_path / "r.json", *arguments) == 2
    said = capsys.readouterr().err
    assert part in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("benchmark", "options", "wanted"),
    [
        ("speed", {"--data": ".", "--device": "cpu", "--side": 9}, {"side": 9, "device": "cpu"}),
        ("looks", {"--data": ".", "--keep": None}, {"data": Path(), "keep": True}),
        ("cohort", {"--slides": 7, "--kills": 0}, {"slides": 7, "kills": 0}),
    ],
)
def test_options_reach_each_benchmark(bench, tmp_path, monkeypatch, benchmark, options, wanted):
    module = import_module(f"benchmarks.{benchmark}.run")
    known, asked = signature(module.run), {}

    def fake(*arguments: Any, **options: Any) -> Records:
        asked.update(known.bind(*arguments, **options).arguments)
        records = Records(benchmark)
        records.save(asked["out"])
        return records

    monkeypatch.setattr(module, "run", fake)
    out, page = tmp_path / "r.json", tmp_path / "p.md"
    given = [str(word) for pair in options.items() for word in pair if word is not None]
    assert bench(benchmark, "--out", out, "--page", page, "--quick", *given) == 0
    assert {**wanted, "out": out, "quick": True}.items() <= asked.items()
    assert page.read_text().startswith("# ")


def test_an_interrupted_benchmark_says_how_to_go_on(bench, tmp_path, monkeypatch, capsys):
    def interrupted(*_: Any) -> Records:
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "_measure", interrupted)
    assert bench("quality", "--out", tmp_path / "r.json", "--cases", "he") == 130
    assert "--keep" in capsys.readouterr().err


def test_kinds_of_scenes_reach_what_measures_them(monkeypatch, tmp_path):
    from benchmarks.quality import consistency, phantoms, pictures

    came: list[str] = []
    for module, name in (
        (consistency, "measure_shift"),
        (phantoms, "measure_phantom"),
        (pictures, "measure_picture"),
        (phantoms, "measure_time_quality"),
    ):

        def fake(*_: Any, label: str = name, **__: Any) -> Records:
            came.append(label)
            return Records("quality")

        monkeypatch.setattr(module, name, fake)
    (tmp_path / "truth").mkdir()
    for name in ("A_IHC.png", "A_H.png"):
        (tmp_path / "truth" / name).touch()
    cases = ("he", "A", "shift_ramp_he")
    names = ("fixed", "fast", "time-quality")
    run(tmp_path / "r.json", data=tmp_path, cases=cases, methods=names, seeds=1)
    assert came == ["measure_phantom", "measure_picture", "measure_shift", "measure_time_quality"]
