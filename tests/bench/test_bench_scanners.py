"""Fields of several scanners: draws, rivals, amounts, and their part of the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.looks import agreement, sheets
from benchmarks.looks.multiscanner import ORGANS, SCANNERS, TRUTH, MultiScanner, Scan
from benchmarks.looks.page import render
from benchmarks.looks.scanner_looks import (
    DISJOINT,
    DRAWS,
    GROUP,
    NONE,
    PAIRS,
    SLIDE,
    SLIDE_ONE,
    ScannerLooks,
    draws,
    others,
    our_trials,
)
from benchmarks.looks.scanner_page import scanner_bars, trials, verdict
from benchmarks.looks.scanner_rivals import TIATOOLBOX, Rival, rival_trials
from benchmarks.looks.scanner_run import (
    AFTER,
    AMOUNTS,
    BEFORE,
    CHANGE,
    MEDIAN_DE,
    SCANNED,
    TRUTH_SHARE,
    case,
    eosin_share,
    relative,
)
from benchmarks.quiet import quiet
from benchmarks.records import Records
from wsi_pgdips import pool_looks
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.records import ByteArray

HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))


def stained(seed: int = 0, amounts: tuple[float, float] = (0.5, 0.3)) -> ByteArray:
    """(80, 90, 3) uint8 of two stains on glass."""
    q = np.random.default_rng(seed).uniform(0, 1, (80, 90, 2)) * amounts
    q[:, :20] = 0
    return od_to_rgb(q @ np.array(HE))


@pytest.fixture(scope="module")
def fields() -> MultiScanner:
    still = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    scans = {
        (o, s): Scan(stained(i, (0.5 + 0.1 * j, 0.3)), still, s)
        for i, o in enumerate(ORGANS)
        for j, s in enumerate(SCANNERS)
    }
    return MultiScanner(scans, {o: stained(i) for i, o in enumerate(ORGANS)})


def test_draws_are_disjoint_and_the_same_every_time() -> None:
    found = draws()
    assert found == draws()
    assert len(found) == DRAWS
    assert len({str(draw) for draw in found}) == DRAWS
    for organ, group, target in found:
        assert sorted([organ, *group, *target]) == sorted(ORGANS)


def test_no_setting_is_given_the_truth_of_the_field_that_is_scored(fields: MultiScanner) -> None:
    every = [*our_trials(ScannerLooks(fields, Path("nowhere"))), *rival_trials(fields)]
    assert all(trial.part != trial.organ for trial in every)
    counted = pd.Series([trial.method for trial in every]).value_counts()
    assert counted[NONE] == counted[GROUP] == counted[PAIRS] == 15
    assert counted[SLIDE_ONE] == counted["macenko"] == 60
    assert counted[DISJOINT] == 3 * DRAWS


@pytest.mark.parametrize("name", TIATOOLBOX)
def test_a_rival_is_tiatoolbox_if_the_statistics_are_the_slides_own(name: str) -> None:
    source, target = stained(1, (0.7, 0.2)), stained(2)
    rival = Rival(name)
    own, there = (rival.statistics(k, lambda p=p: p) for k, p in enumerate((source, target)))
    made = rival.apply(source, own, there)
    with quiet():
        from tiatoolbox.tools.stainnorm import get_normalizer

        normaliser = get_normalizer(name)
        normaliser.fit(target.copy())
        wanted = normaliser.transform(source.copy())
    assert np.abs(made.astype(int) - wanted).max() <= 1


def test_eosin_over_hematoxylin_is_found_under_a_look() -> None:
    look = Reference("r", ("Eosin", "Hematoxylin"), ("", ""), HE[::-1], (0.0, 0.0, 0.0))
    tissue = np.zeros((80, 90), bool)
    tissue[:, 20:] = True
    found = [eosin_share(stained(0, (0.6, b)), look, tissue) for b in (0.3, 0.6)]
    norm = np.linalg.norm(HE[1]) / np.linalg.norm(HE[0])
    assert found == pytest.approx([0.5 * norm, norm], rel=0.05)


def test_what_all_organs_have_in_common_is_no_change() -> None:
    found = relative({"a": [1.0, 2.0, 1.0], "b": [3.0, 6.0, 3.0]})
    assert found["a"] == pytest.approx({BEFORE: 0.5, AFTER: 0.5, TRUTH_SHARE: 0.5, CHANGE: 0})
    assert relative({"a": [1, 1, 1], "b": [1, 3, 1]})["b"][CHANGE] == pytest.approx(0.5)


def made_up() -> pd.DataFrame:
    records = Records("looks")
    left = {NONE: 10.0, SLIDE: 9.0, GROUP: 4.0, PAIRS: 2.0}
    for k, organ in enumerate(ORGANS):
        at = records.at(kind=SCANNED, case=case(organ, "hamamatsu"))
        for method, de in left.items():
            at.add({MEDIAN_DE: de + (7 if (method, k) == (GROUP, 0) else 0)}, method=method)
        for part, de in zip(others(organ), (8, 9, 9, 20), strict=True):
            at.add({MEDIAN_DE: de}, method=SLIDE_ONE, part=part)
        changes = {BEFORE: 1, AFTER: 1, TRUTH_SHARE: 1, CHANGE: -0.2 if k == 1 else 0.05}
        records.add(changes, kind=AMOUNTS, case=case(organ, "hamamatsu"), method=GROUP)
    score = agreement.Score(0.7, 0.4, 0.8)
    change = {"cosine": (0.1, 0.2), "margin": (-0.1, 0.1), "retrieval": (-0.2, -0.1)}
    pair = agreement.Agreement("hamamatsu", TRUTH, 9, score, score, change)
    agreement.add_records(records, [pair], GROUP)
    return records.frame


def test_bars_of_scanners_are_of_ratios_and_say_what_is_not_met() -> None:
    found = {bar.what: bar for bar in scanner_bars(made_up())}

    def bar(*words: str) -> tuple[str, bool | None]:
        (what,) = [w for w in found if all(word in w for word in words)]
        return found[what].found, found[what].met

    assert bar(f"`{GROUP}`", "median") == ("0.4", True)
    assert bar(f"`{GROUP}`", "no organ") == ("1.1", False)
    assert bar("share kept") == ("0.75", True)
    assert bar(f"`{SLIDE_ONE}`", "median") == ("0.9", True)
    assert bar(f"`{SLIDE_ONE}`", "worst") == ("2", False)
    assert bar(f"`{DISJOINT}`", "median") == ("-", None)
    assert bar(f"`{PAIRS}`", "median dE") == ("2", True)
    assert bar("eosin") == ("0.2", False)


def test_an_interval_that_holds_zero_is_no_difference() -> None:
    assert verdict(0.1, 0.2).startswith("better")
    assert verdict(-0.2, -0.1).startswith("worse")
    assert verdict(-0.1, 0.1).startswith("no difference")
    assert verdict(float("nan"), 0.1) == "-"


def test_the_page_shows_the_scanners_and_leaves_them_out_without_records(tmp_path: Path) -> None:
    records = made_up()
    text = render(records, "looks.json", Path("nowhere"))
    assert "| none | 5 | 1 | 1 | 1 | 10 | 10 |" in text
    assert "| **slide, one target** | 20 | 0.9 | 0.9 | 2 | 9 | 9 |" in text
    assert "| breast, hamamatsu | 1 | 1 | 1 | -20 % | - |" in text
    assert "no difference (-0.100 to +0.100)" in text
    assert len(trials(records)) == 40
    empty = Records("looks").frame
    assert "Three scanners" not in render(empty, "looks.json", tmp_path)
    assert not list(scanner_bars(empty))


def test_a_reference_without_a_slide_keeps_the_others_and_its_glass() -> None:
    looks = [
        Reference(
            str(k),
            ("Hematoxylin", "Eosin"),
            ("", ""),
            HE,
            (0.1 * k,) * 3,
            sources=({"checksum": k},),
        )
        for k in range(3)
    ]
    reference = pool_looks(looks, "he")
    found = sheets.without(reference, looks[1])
    assert [m.background for m in found.slides] == [looks[0].background, looks[2].background]
    assert found.background == reference.background


def test_a_sheet_is_drawn(tmp_path: Path) -> None:
    rows = {name: {"before": stained(), "after": stained(1)} for name in "ab"}
    sheets.draw_rows(rows, tmp_path / "images" / "sheet.png", (90, 80))
    assert (tmp_path / "images" / "sheet.png").stat().st_size > 5_000
