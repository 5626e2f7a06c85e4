"""The verdict: one reason a check, in plain words with its figure; the worst first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.optics.stain_files import known_stains, load_stains
from wsi_pgdips.records import Artifact, FloatArray, SlidePrior
from wsi_pgdips.stages import verdict
from wsi_pgdips.stages.verdict import Evidence, judge

HDAB = load_stains("hdab")
ROWS = HDAB.stain_matrix
PRIOR = SlidePrior(
    stain_matrix=ROWS,
    spectral_correction=np.ones(2, np.float32),
    background=np.zeros(3, np.float32),
    presence=np.full(2, 0.05, np.float32),
    noise_od=0.005,
    pooled_noise_od=0.002,
    prior_weight=np.zeros(2, np.float32),
    measured=np.ones(2, bool),
    library=ROWS,
    saturating=1,
)
GOOD = Evidence(
    stains=HDAB,
    prior=PRIOR,
    stain_matrix=ROWS,
    flags=(),
    coverage=0.99,
    left_out_mm2={"dust": 0.01},
    mask_mm2=4.0,
    amounts=np.array([0.2, 0.1]),
    residual_od=0.02,
    artifact_share={Artifact.FOREIGN: 0.001, Artifact.SATURATED: 0.001},
    seam_step_od={"Hematoxylin": 0.001, "DAB": None},
    lattice_od={"Hematoxylin": 0.001, "DAB": None},
    tiles=20,
    inherited=2,
    failed=0,
    known=known_stains(),
)


def judged(**changes: Any) -> tuple[str, list[str]]:
    prior = {k: changes.pop(k) for k in list(changes) if k in ("measured", "foreign", "library")}
    found = judge(replace(GOOD, prior=replace(PRIOR, **prior), **changes))
    return found["status"], found["reasons"]


def turned(k: int, degrees: float) -> FloatArray:
    """The vectors of the set, one turned within their plane; inwards if negative."""
    plane, out = Plane.of(ROWS), np.zeros(2)
    out[k] = np.radians(degrees) * (-1, 1)[k]
    return plane.rays(plane.angles(ROWS) + out)


def off_plane(k: int, degrees: float) -> FloatArray:
    rows = ROWS.astype(float).copy()
    rows[k] += np.tan(np.radians(degrees)) * Plane.of(ROWS).normal
    return unit_rows(rows)


def test_a_good_slide_passes_without_reasons() -> None:
    assert judge(GOOD) == {"status": "pass", "reasons": []}


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        (
            {"coverage": 0.8},
            "review",
            "20 % of what is stained is outside the mask (dust 0.01 mm2)",
        ),
        ({"coverage": 0.4}, "fail", "60 % of what is stained is outside the mask (dust 0.01 mm2)"),
        (
            {"left_out_mm2": {"ink": 0.6}},
            "review",
            "ink covers 0.6 mm2, which counts as no tissue",
        ),
        (
            {"flags": ("no_glass",)},
            "review",
            "the slide shows no bare glass, so the white point is a guess",
        ),
        ({"failed": 3}, "review", "3 of 20 tiles could not be read or fitted"),
        (
            {"measured": np.array([True, False])},
            "review",
            "the slide does not show the colour of DAB; the library's is used, and 33 % of the "
            "density is given to it",
        ),
        (
            {"artifact_share": {Artifact.FOREIGN: 0.05}},
            "review",
            "5 % of the tissue has a colour that Hematoxylin and DAB cannot make",
        ),
        (
            {"foreign": 0.4},
            "fail",
            "40 % of the tissue has a colour that Hematoxylin and DAB cannot make",
        ),
        (
            {"artifact_share": {Artifact.SATURATED: 0.012}},
            "review",
            "1.2 % of the tissue is black of DAB: its amount there is a lower bound, and that of "
            "the other stains is not known",
        ),
        (
            {"residual_od": 0.15},
            "review",
            "Hematoxylin and DAB leave 52 % of the density unexplained",
        ),
        (
            {"lattice_od": {"DAB": 0.05}},
            "review",
            "the network wrote dots of 0.050 OD into DAB",
        ),
        (
            {"seam_step_od": {"DAB": 0.03, "Hematoxylin": None}},
            "review",
            "tile borders show in DAB, by 0.0300 OD",
        ),
        ({"inherited": 8}, "review", "8 of 20 tiles hold too little to be fitted"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_has_its_reason(changes: dict[str, Any], status: str, reason: str) -> None:
    assert judged(**changes) == (status, [reason])


@pytest.mark.parametrize("flag", verdict._FLAGS)
def test_every_flag_that_counts_is_a_review(flag: str) -> None:
    status, reasons = judged(flags=(flag, "mask_from_file"))
    assert (status, reasons) == ("review", [verdict._FLAGS[flag]])


def test_a_mask_of_ones_own_leaves_out_what_it_likes() -> None:
    assert judged(flags=("mask_from_file",), coverage=0.1) == ("pass", [])


@pytest.mark.parametrize("k", [0, 1])
def test_a_vector_far_from_the_librarys_is_named(k: int) -> None:
    label = HDAB.labels[k]
    status, (reason,) = judged(stain_matrix=off_plane(k, 20.0), known=())
    assert status == "review"
    assert reason == f"the colour of {label} is 20 degrees from the library's"
    assert judged(stain_matrix=off_plane(k, 11.0), known=())[0] == "pass"


def test_a_vector_closer_to_another_known_stain_asks_for_the_set() -> None:
    red = next(np.float32(v) for _, label, v in known_stains() if label == "Fast Red")
    rows = np.stack([ROWS[0], red])
    status, reasons = judged(stain_matrix=rows)
    assert status == "review"
    assert any("is --stains hdab right?" in r and "DAB" in r for r in reasons)


def test_what_was_fixed_is_not_judged() -> None:
    stains = replace(HDAB, freedom_deg=(0.0, 0.0))
    found = judged(stains=stains, stain_matrix=turned(0, -45.0), measured=np.zeros(2, bool))
    assert found == ("pass", [])


def test_a_stain_that_is_neither_shown_nor_given_is_no_reason() -> None:
    found = judged(measured=np.array([True, False]), amounts=np.array([0.2, 0.01]))
    assert found == ("pass", [])


def test_a_slide_that_shows_none_of_its_stains_says_so() -> None:
    _, reasons = judged(measured=np.zeros(2, bool))
    assert reasons[-1] == "the slide shows the colour of none of its stains"


def angle_between(degrees: float) -> FloatArray:
    plane = Plane.of(ROWS)
    return plane.rays(np.radians([-degrees / 2, degrees / 2]))


@pytest.mark.parametrize(("degrees", "status"), [(8.0, "review"), (4.0, "fail"), (12.0, None)])
def test_vectors_that_are_close_are_hardly_told_apart(degrees: float, status: str | None) -> None:
    rows = angle_between(degrees)
    found = judged(stain_matrix=rows, library=rows, known=())
    if status is None:
        assert found == ("pass", [])
    else:
        text = f"Hematoxylin and DAB are {degrees:.0f} degrees apart and hardly told apart"
        assert found == (status, [text])


def test_the_worst_comes_first_and_all_are_told() -> None:
    status, reasons = judged(failed=1, inherited=10, coverage=0.3, foreign=0.5)
    assert status == "fail"
    assert len(reasons) == 4
    assert [("outside the mask" in r or "cannot make" in r) for r in reasons] == [
        True,
        True,
        False,
        False,
    ]


def test_layers_of_an_earlier_version_hold_no_figures_and_are_judged_by_the_rest() -> None:
    assert judged(lattice_od={}, seam_step_od={}, artifact_share={}, left_out_mm2={}) == (
        "pass",
        [],
    )
