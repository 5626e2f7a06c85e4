"""One small phantom through the benchmark: known order of methods, records that are explained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.quality import consistency, phantoms, product
from benchmarks.quality.cases import all_cases, choose
from benchmarks.quality.methods import SHIFT, TIME_QUALITY
from benchmarks.quality.methods import choose as choose_methods
from benchmarks.records import Records, lookup

Value = Callable[..., float]
SHAPE = (768, 1024)
CHEAP = {"calibration_tiles": 2, "calibration_steps": 2}
METHODS = (
    "oracle",
    "oracle-constant",
    "fixed",
    "fixed-glass",
    "complement-glass",
    "macenko-tile-glass",
    "rays-slide",
    "closed-constant",
    "fast",
    "fields-constant",
    "fields-oracle",
    "fields-blended",
)


@pytest.fixture(scope="module", autouse=True)
def cheap() -> object:
    """Runs of the product with few steps."""
    with pytest.MonkeyPatch.context() as patch:
        real_run, real_settings = product.deconvolve_slide, product.make_settings

        def run(*arguments: object, **options: object) -> object:
            return real_run(*arguments, **{**options, "preset": "fast", **CHEAP})

        def settings(asked: dict[str, object]) -> object:
            return real_settings({**asked, **CHEAP})

        patch.setattr(product, "deconvolve_slide", run)
        patch.setattr(product, "make_settings", settings)
        yield


@pytest.fixture(scope="module")
def records() -> Records:
    (case,) = choose(all_cases(None), ["ramp_hdab"])
    return phantoms.measure_phantom(case, 3, choose_methods(METHODS), shape=SHAPE)


@pytest.fixture(scope="module")
def value(records: Records) -> Value:
    found = lookup(records.frame, "method", "metric", "stain", "blur_px")
    return lambda method, metric, stain="all", blur=0: found(method, metric, stain, blur)


def test_methods_come_out_in_the_order_they_must(value):
    def joint(method: str, blur: float = 0) -> float:
        return value(method, "rmse_joint", blur=blur)

    assert joint("oracle") < joint("fixed-glass") < joint("fixed")
    assert joint("oracle") < joint("oracle", 1) < joint("oracle", 2) < joint("oracle", 4)
    assert value("oracle", "rmse_joint_over_oracle") == 1
    assert value("fixed", "rmse_joint_over_oracle") == pytest.approx(
        joint("fixed") / joint("oracle"), rel=2e-3
    )
    each = [value("fixed", "rmse", stain) for stain in ("Hematoxylin", "DAB")]
    assert joint("fixed") == pytest.approx(np.sqrt(np.mean(np.square(each))), rel=2e-3)
    # the same network under the true fields: what it takes away of the noise
    assert joint("fields-oracle") < joint("oracle")


def test_what_is_known_of_s_and_b_is_scored(value):
    assert value("oracle", "angle_deg", "DAB") < 1e-3
    assert value("fixed", "angle_deg", "DAB") >= 9
    assert value("oracle-constant", "angle_deg", "DAB") < 5
    glass = value("fixed-glass", "background_od")
    assert value("oracle", "background_od") < glass < value("fixed", "background_od")
    # constant vectors cannot make a step, tiles on their own do
    assert value("closed-constant", "seam_step_od", "DAB") == 0
    assert value("macenko-tile-glass", "seam_step_od", "DAB") > 0.005


def test_the_gap_is_between_constant_and_true_fields(value):
    constant, blended, oracle = (
        value(f"fields-{f}", "rmse_joint") for f in ("constant", "blended", "oracle")
    )
    gap = value("fields-blended", "gap_closed")
    if constant > oracle * 1.02:
        assert gap == pytest.approx((constant - blended) / (constant - oracle), rel=0.1)
    else:
        assert math.isnan(gap) or abs(gap) > 0


def test_every_record_is_explained(records):
    explained = (Path(__file__).parents[2] / "docs" / "results" / "README.md").read_text()
    places = [(r["method"], r["metric"], r["stain"], r["blur_px"]) for r in records.rows]
    assert len(places) == len(set(places))
    for name in {r["metric"] for r in records.rows} | set(METHODS):
        assert re.search(rf"`{name}`", explained), name


def test_a_method_that_cannot_cope_leaves_a_null(monkeypatch):
    (case,) = choose(all_cases(None), ["he"])

    def nothing(*_: object) -> None:
        raise ValueError("no stain vectors")

    monkeypatch.setattr("benchmarks.quality.picture.extract", nothing)
    said: list[str] = []
    made = phantoms.measure_phantom(
        case, 1, choose_methods(["macenko-slide"]), shape=(512, 512), say=said.append
    )
    # and fields are for phantoms whose fields vary
    assert [(r["method"], r["metric"], r["value"]) for r in made.rows] == [
        ("macenko-slide", "rmse_joint", None)
    ]
    assert said == ["  macenko-slide: no result"]


def test_a_shifted_grid_changes_tiles_more_than_fields():
    (case,) = choose(all_cases(None), ["shift_ramp_hdab"])
    assert case.scene == SHIFT
    made = consistency.measure_shift(
        case, 1, choose_methods(["fast", "macenko-tile", "oracle"]), shape=SHAPE, tile=256
    )
    found = {(r["method"], r["stain"]): r["value"] for r in made.rows}
    assert {m for m, _ in found} == {"fast", "macenko-tile"}
    for stain in ("Hematoxylin", "DAB"):
        assert 0 < found["fast", stain] < found["macenko-tile", stain]


def test_time_and_quality_compares_paper_with_balanced(monkeypatch):
    asked: list[tuple[str, dict[str, int]]] = []
    real, now = product.Product.result, [0.0]

    def result(self: product.Product, method: str, **options: int) -> object:
        asked.append((method, options))
        now[0] += 60 if method == "paper" else 2
        return real(self, "fast")

    monkeypatch.setattr(product.Product, "result", result)
    monkeypatch.setattr(phantoms, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    found = lookup(phantoms.measure_time_quality(1).frame, "method", "metric")
    assert found(TIME_QUALITY, "seconds_ratio") == 30
    assert found("paper", "rmse_joint") == found("balanced", "rmse_joint") > 0
    assert 0.5 < found("paper", "pcc") <= 1
    # the curve of the slide's network: each number of steps is asked for, and named
    steps = [options["calibration_steps"] for _, options in asked if options]
    assert steps == list(phantoms.STEPS)
    assert all(found(f"balanced-{n}", "seconds") == 2 for n in steps)
    assert asked[-1] == ("paper", {})
