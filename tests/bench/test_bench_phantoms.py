"""One small phantom through the benchmark: known order of methods, records that are explained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import consistency, phantoms, product
from benchmarks.quality.cases import all_cases, choose
from benchmarks.quality.methods import SHIFT, TIME_QUALITY
from benchmarks.quality.methods import choose as choose_methods
from benchmarks.records import Record, Sheet, select
from wsi_pgdips.config import ScientificSettings

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
        real_run, real_settings = product.deconvolve_slide, product._settings

        def run(*arguments: object, **options: object) -> object:
            return real_run(*arguments, **{**options, "preset": "fast", **CHEAP})

        def settings(*arguments: object) -> ScientificSettings:
            made = real_settings(*arguments)
            return made.model_copy(update=CHEAP)

        patch.setattr(product, "deconvolve_slide", run)
        patch.setattr(product, "_settings", settings)
        yield


@pytest.fixture(scope="module")
def records() -> list[Record]:
    (case,) = choose(all_cases(None), ["ramp_hdab"])
    return phantoms.measure_phantom(case, 3, choose_methods(METHODS), shape=SHAPE).records


def value(
    records: list[Record], method: str, metric: str, stain: str = "all", blur: float = 0
) -> float:
    (found,) = select(records, method=method, metric=metric, stain=stain, blur_px=blur)
    return found["value"]


def test_methods_come_out_in_the_order_they_must(records):
    def joint(method: str, blur: float = 0) -> float:
        return value(records, method, "rmse_joint", blur=blur)

    assert joint("oracle") < joint("fixed-glass") < joint("fixed")
    assert joint("oracle") < joint("oracle", 1) < joint("oracle", 2) < joint("oracle", 4)
    assert value(records, "oracle", "rmse_joint_over_oracle") == 1
    assert value(records, "fixed", "rmse_joint_over_oracle") == pytest.approx(
        joint("fixed") / joint("oracle"), rel=2e-3
    )
    each = [value(records, "fixed", "rmse", stain) for stain in ("Hematoxylin", "DAB")]
    assert joint("fixed") == pytest.approx(np.sqrt(np.mean(np.square(each))), rel=2e-3)
    # the same network under the true fields: what it takes away of the noise
    assert joint("fields-oracle") < joint("oracle")


def test_what_is_known_of_s_and_b_is_scored(records):
    assert value(records, "oracle", "angle_deg", "DAB") < 1e-3
    assert value(records, "fixed", "angle_deg", "DAB") >= 9
    assert value(records, "oracle-constant", "angle_deg", "DAB") < 5
    glass = value(records, "fixed-glass", "background_od")
    assert (
        value(records, "oracle", "background_od") < glass < value(records, "fixed", "background_od")
    )
    # constant vectors cannot make a step, tiles on their own do
    assert value(records, "closed-constant", "seam_step_od", "DAB") == 0
    assert value(records, "macenko-tile-glass", "seam_step_od", "DAB") > 0.005


def test_the_gap_is_between_constant_and_true_fields(records):
    constant, blended, oracle = (
        value(records, f"fields-{f}", "rmse_joint") for f in ("constant", "blended", "oracle")
    )
    gap = value(records, "fields-blended", "gap_closed")
    if constant > oracle * 1.02:
        assert gap == pytest.approx((constant - blended) / (constant - oracle), rel=0.1)
    else:
        assert gap is None or abs(gap) > 0


def test_every_record_is_explained(records):
    explained = (Path(__file__).parents[2] / "docs" / "results" / "README.md").read_text()
    places = [(r["method"], r["metric"], r["stain"], r["blur_px"]) for r in records]
    assert len(places) == len(set(places))
    for name in {r["metric"] for r in records} | set(METHODS):
        assert re.search(rf"`{name}`", explained), name


def test_a_method_that_cannot_cope_leaves_a_null(monkeypatch):
    (case,) = choose(all_cases(None), ["he"])

    def nothing(*_: object) -> None:
        raise ValueError("no stain vectors")

    monkeypatch.setattr("benchmarks.quality.linear._macenko", nothing)
    said: list[str] = []
    made = phantoms.measure_phantom(
        case,
        1,
        choose_methods(["macenko-slide"]),
        shape=(512, 512),
        say=said.append,
    )
    # and fields are for phantoms whose fields vary
    assert [(r["method"], r["metric"], r["value"]) for r in made.records] == [
        ("macenko-slide", "rmse_joint", None)
    ]
    assert said == ["  macenko-slide: no result"]


def test_a_shifted_grid_changes_tiles_more_than_fields():
    (case,) = choose(all_cases(None), ["shift_ramp_hdab"])
    assert (case.scene, case.group) == (SHIFT, "shift")
    made = consistency.measure_shift(
        case, 1, choose_methods(["fast", "macenko-tile", "oracle"]), shape=SHAPE, tile=256
    )
    found = {(r["method"], r["stain"]): r["value"] for r in made.records}
    assert {m for m, _ in found} == {"fast", "macenko-tile"}
    for stain in ("Hematoxylin", "DAB"):
        assert 0 < found["fast", stain] < found["macenko-tile", stain]


def test_time_and_quality_compares_paper_with_balanced(monkeypatch):
    from benchmarks.quality import time_quality

    asked: list[dict[str, int]] = []

    def run(method: str, picture: object, *rest: object, **options: int) -> object:
        done, _ = product.run_in_memory("fast", picture, *rest)
        asked.append(options)
        return done, {"paper": 60.0, "balanced": 2.0}[method]

    monkeypatch.setattr(time_quality, "run_in_memory", run)
    made: Sheet = time_quality.measure_time_quality(1)
    found = {(r["method"], r["metric"]): r["value"] for r in made.records}
    assert found[TIME_QUALITY, "seconds_ratio"] == 30
    assert found["paper", "rmse_joint"] == found["balanced", "rmse_joint"] > 0
    assert 0.5 < found["paper", "pcc"] <= 1
    # the curve of the slide's network: each number of steps is asked for, and named
    steps = [o["calibration_steps"] for o in asked if o]
    assert steps == list(time_quality.STEPS)
    assert {f"balanced-{n}" for n in steps} < {r["method"] for r in made.records}
