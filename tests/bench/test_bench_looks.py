"""The benchmark of looks: its distances, masks, cameras and features, all methods, and its page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.looks.bars import bars, ratios, values_of
from benchmarks.looks.cameras import CAMERAS, Camera
from benchmarks.looks.features import TILE, Features, drift
from benchmarks.looks.methods import METHODS, Studio
from benchmarks.looks.page import render
from benchmarks.looks.pairs import PHANTOM, REAL, SIMULATED, LookPair, phantom_pairs
from benchmarks.looks.plots import draw_panels, panel
from benchmarks.looks.reading import (
    FAITHFUL,
    IDENTICAL,
    LAYERS_PSNR,
    PSNR,
    RANDOM,
    RASTER,
    RATIO,
    READING,
)
from benchmarks.looks.run import measure_pair, run
from benchmarks.looks.scores import (
    LAB,
    NUCLEAR,
    OD,
    PARTS,
    SSIM,
    TEXTURE,
    distances,
    gradient,
    gradient_ssim,
    structures,
)
from benchmarks.records import Records, lookup
from wsi_pgdips.looks.distance import DAB, NUCLEI, STROMA, TISSUE, wasserstein
from wsi_pgdips.records import ByteArray

SIDE = 384
PLAIN = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
HEMATOXYLIN, EOSIN, BROWN = (100, 85, 160), (230, 150, 190), (110, 70, 40)


def painted(*, brown: bool) -> ByteArray:
    """White, with a square of pink in which there are discs of blue and, if wanted, of brown."""
    rng = np.random.default_rng(3)
    rgb = np.full((256, 256, 3), 250, np.uint8)
    rgb[48:, 48:] = EOSIN
    yy, xx = np.mgrid[:256, :256]
    for k, (y, x) in enumerate((y, x) for y in (90, 150, 210) for x in (90, 150, 210)):
        disc = (yy - y) ** 2 + (xx - x) ** 2 < 15**2
        rgb[disc] = BROWN if brown and k % 2 else HEMATOXYLIN
    noise = rng.integers(-2, 3, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def phantom() -> LookPair:
    return next(phantom_pairs(SIDE))


def test_wasserstein_is_the_shift_of_equal_samples() -> None:
    sample = np.random.default_rng(0).normal(size=5000)
    assert wasserstein(sample, sample) == 0
    assert wasserstein(sample, sample + 0.3) == pytest.approx(0.3)


def test_distances_are_zero_for_equal_pictures_and_grow_with_the_difference() -> None:
    rgb, mask = painted(brown=False), np.ones((256, 256), bool)
    assert distances(rgb, rgb, mask) == (0, 0)
    found = [distances((rgb * factor).astype(np.uint8), rgb, mask) for factor in (0.95, 0.8, 0.6)]
    for space in (0, 1):
        values = [each[space] for each in found]
        assert values == sorted(values)
        assert values[0] > 0
    # a factor on intensities is a constant OD
    assert found[1][0] == pytest.approx(-math.log10(0.8), rel=0.05)


def test_a_structure_of_few_pixels_has_no_distance() -> None:
    rgb, mask = painted(brown=False), np.zeros((256, 256), bool)
    mask[:10, :10] = True
    assert all(math.isnan(value) for value in distances(rgb, 255 - rgb, mask))


def test_the_gradient_does_not_know_contrast_but_knows_blur() -> None:
    rgb = painted(brown=False)
    paler = (255 - (255 - rgb.astype(float)) * 0.6).astype(np.uint8)
    soft = Camera(PLAIN, tone=1.0, white=(250, 250, 250), blur=2.0, noise=0.0, quality=95)
    own = gradient(rgb)
    assert gradient_ssim(own, own) == pytest.approx(1)
    kept, lost = (gradient_ssim(gradient(r), own) for r in (paler, soft.picture(rgb)))
    assert kept > 0.95 > 0.9 > lost


def test_masks_are_the_painted_structures() -> None:
    masks = structures(painted(brown=True), painted(brown=True), "hdab", 1.0)
    assert set(masks) == set(PARTS)
    for name in (NUCLEI, STROMA, DAB):
        assert (masks[name] <= masks[TISSUE]).all()
    assert masks[NUCLEI][90, 90]
    assert masks[DAB][90, 150]
    assert masks[STROMA][120, 120]
    assert not masks[TISSUE][:30].any()
    assert not (masks[NUCLEI] & masks[DAB]).any()


def test_masks_hold_only_what_both_pictures_agree_on() -> None:
    one, other = painted(brown=False), painted(brown=False)
    other[60:130, 60:130] = EOSIN  # a nucleus that the other picture lacks
    masks = structures(one, other, "he", 1.0)
    assert DAB not in masks
    assert not masks[NUCLEI][90, 90]
    assert not masks[STROMA][90, 90]
    assert masks[NUCLEI][150, 150]


def test_a_camera_that_changes_nothing_gives_the_picture_back() -> None:
    rgb = painted(brown=False)
    white = tuple(float(v) for v in np.percentile(rgb.reshape(-1, 3), 99.5, axis=0))
    same = Camera(PLAIN, 1.0, white, noise=0.0, quality=100)  # type: ignore[arg-type]
    assert np.abs(same.picture(rgb).astype(int) - rgb).mean() < 1.5


@pytest.mark.parametrize("name", CAMERAS)
def test_a_camera_sets_glass_and_tone_and_repeats_itself(name: str) -> None:
    rgb, camera = painted(brown=False), CAMERAS[name]
    seen = camera.picture(rgb)
    assert np.array_equal(seen, camera.picture(rgb))
    assert np.allclose(np.median(seen[:40], axis=(0, 1)), camera.white, atol=4)
    # the share of light that a nucleus lets through: less for a steeper tone
    before, after = (float(r[90, 90].mean() / r[:40].mean()) for r in (rgb, seen))
    assert (after < before) == (camera.tone > 1)


def test_drift_is_the_difference_in_standard_deviations() -> None:
    target = np.random.default_rng(1).normal(size=(16, 3))
    target[:, 2] = 5.0  # does not vary: left out
    moved = target + 2 * target.std(0, ddof=1)
    assert drift(target, target) == 0
    assert drift(moved, target) == pytest.approx(2)
    hole = moved.copy()
    hole[0] = np.nan  # a tile without nuclei
    assert math.isfinite(drift(hole, target))
    assert math.isnan(drift(target[:1], target[:1]))


def test_nuclei_are_counted_at_the_threshold_of_the_target() -> None:
    rgb = painted(brown=False)
    features = Features(rgb, np.ones((TILE, TILE), bool), "he", 1.0)
    count, area, eccentricity, solidity, _ = features.nuclei(rgb)[0]
    assert count == 9
    assert area == pytest.approx(math.pi * 15**2, rel=0.15)
    assert eccentricity < 0.3
    assert solidity > 0.95
    paler = (255 - (255 - rgb.astype(float)) * 0.3).astype(np.uint8)
    assert features.nuclei(paler)[0][0] == 0
    assert features.texture(rgb).shape == (1, 14)


def test_all_methods_on_a_small_phantom(phantom: LookPair, tmp_path: Path) -> None:
    records = Records("looks")
    results = measure_pair(records, phantom, Studio("fast"))
    assert set(results) == set(METHODS)
    assert all(rgb.shape == phantom.truth.shape for rgb in results.values())
    value = lookup(records.frame, "method", "metric", "part")
    for metric in (OD, LAB):
        for part in (TISSUE, NUCLEI, STROMA):
            assert value("matched", metric, part) < 0.65 * value("none", metric, part)
    assert value("none", SSIM, TISSUE) == 1
    draw_panels([panel(phantom, results)], tmp_path / "images" / "looks.png")
    assert (tmp_path / "images" / "looks.png").stat().st_size > 10_000
    text = render(records.frame, "looks.json", tmp_path / "images")
    assert "images/looks.png" in text


def test_with_keep_what_is_measured_already_is_not_measured_again(tmp_path: Path) -> None:
    kept, out = Records("looks"), tmp_path / "looks.json"
    for case in ("phantom -> phantom, other", "phantom, other -> phantom"):
        kept.add({OD: 0.5}, kind=PHANTOM, case=case, method="matched")
    kept.save(out)
    assert run(out, quick=True, keep=True, pictures=tmp_path / "looks.png").rows == kept.rows
    assert [p.name for p in tmp_path.iterdir()] == ["looks.json"]  # and no figure


MADE_UP = {
    "none": (9, 9, 9, 9, 1),
    "macenko": (5, 5, 5, 5, 0.97),
    "vahadane": (5, 5, 2, 5, 0.9),
    "reinhard": (1, 5, 5, 5, 0.99),
    "matched": (3, 3, 3, 3, 0.94),
}


def made_up() -> pd.DataFrame:
    """Ours beats Macenko in all, Reinhard in structures, and loses one part to Vahadane."""
    records = Records("looks")
    for kind, case in ((REAL, "a -> b"), (SIMULATED, "c"), (SIMULATED, "d")):
        for method, (*values, ssim) in MADE_UP.items():
            own = records.at(kind=kind, case=case, method=method)
            for part, value in zip(PARTS, values, strict=True):
                if kind == SIMULATED and part == DAB:
                    value = math.nan  # H&E
                better = case == "d" and method == "matched"
                own.add({OD: 0.01 * value, LAB: 0.1 if better else value}, part=part)
            own.add({SSIM: 0.96 if case == "d" else ssim, TEXTURE: 0.4, NUCLEAR: math.nan})
    for order, ratio in ((RASTER, 3.5), (RANDOM, 4.5)):
        records.add({RATIO: ratio}, kind=READING, case="s.svs", method=order, part="level 0")
    faithful = records.at(kind=FAITHFUL, case="s.svs")
    faithful.add({PSNR: IDENTICAL}, method="self", part="level 0")
    faithful.add({PSNR: 59.0}, method="self", part="level 1")
    faithful.add({LAYERS_PSNR: math.nan}, method="layers alone")
    return records.frame


def test_ratios_are_of_structures_alone_against_reinhard() -> None:
    value = values_of(made_up())
    assert set(ratios(value, REAL, "a -> b", "reinhard")) == {
        (space, part) for space in (OD, LAB) for part in (NUCLEI, STROMA, DAB)
    }
    assert ratios(value, REAL, "a -> b", "vahadane")[OD, STROMA] == pytest.approx(1.5)
    assert (OD, DAB) not in ratios(value, SIMULATED, "c", "macenko")


def test_bars_say_what_is_met_and_by_how_much() -> None:
    found = {bar.what: bar for bar in bars(made_up())}

    def bar(*words: str) -> tuple[str, bool | None]:
        (what,) = [w for w in found if all(word in w for word in words)]
        return found[what].found, found[what].met

    text, met = bar("macenko", "a -> b")
    assert met is True
    assert text == "8 of 8; at worst 0.60 times (OD, tissue)"
    text, met = bar("vahadane", "a -> b")
    assert met is False
    assert text == "6 of 8; at worst 1.50 times (OD, stroma)"
    assert bar("reinhard", "a -> b")[1] is True
    assert bar("SSIM", "a -> b") == ("0.94", False)
    assert bar("macenko", "simulated")[1] is True
    text, met = bar("vahadane", "simulated")
    assert met is False
    assert text == "0 of 2 pairs; 9 of 12 distances, at worst 1.50 times"
    assert bar("SSIM", "simulated") == ("1 of 2 pairs; at worst 0.940", False)
    assert bar("s.svs", "raster") == ("3.5", False)
    assert bar("s.svs", "random") == ("4.5", True)
    assert bar("s.svs", "level 0") == ("identical", True)
    assert bar("s.svs", "level 1") == ("59", False)
    assert bar("s.svs", "alone") == ("-", None)


def test_the_page_holds_every_bar_and_leaves_out_what_was_not_measured() -> None:
    records = made_up()
    text = render(records, "looks.json", Path("nowhere"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for bar in bars(records):
        verdict = {True: "met", False: "**not met**", None: "-"}[bar.met]
        assert f"| {bar.what} | {bar.found} | {verdict} |" in rows
    assert "## The real pair" in text
    assert "## A phantom" not in text
    assert "images/looks.png" not in text
    c = text[text.index("### c") : text.index("### d")]
    assert "DAB" not in c
    assert "| **matched** | 30 | 30 | 30 | 3 | 3 | 3 | 0.94 | 0.4 | - |" in c
