"""Colour maps: fitted on pairs, kept in files, refused where they cannot be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.pairs import GLASS_A, GLASS_B, MATRIX, scans
from wsi_pgdips.errors import OutputError, SettingsError, SlideError, StainError
from wsi_pgdips.looks import pairs
from wsi_pgdips.looks.colour_map import ColourMap, load_map, map_text, save_map
from wsi_pgdips.looks.map_fit import fit_map, fit_pairs
from wsi_pgdips.looks.pairs import read_pair


def made(**changed) -> ColourMap:
    plain = ColourMap(
        "ours",
        ((1.1, 0.02, 0.0), (0.0, 0.9, 0.01), (-0.03, 0.0, 1.0)),
        (0.03, 0.03, 0.02),
        (0.01, 0.01, 0.01),
        "full",
        ridge=0.01,
        top=2.1,
        share_low=(0.2, 0.1),
        share_high=(0.5, 0.4),
        error_od=0.02,
        error_lab=1.5,
        before_lab=8.0,
        worst_lab=3.0,
        worst_before_lab=12.0,
        pixels=1000,
        pairs=1,
        regions=9,
        glass_seen=True,
        sources=({"from": "a1", "to": "b2", "inliers": 300},),
    )
    return replace(plain, **changed)


def write(folder: Path, name: str, rgb) -> Path:
    path = folder / name
    Image.fromarray(rgb).save(path)
    return path


def test_known_colours_are_recovered_without_an_mpp(tmp_path: Path):
    a, b, _ = scans(degrees=20, scale=0.8)
    paths = [write(tmp_path, "a.png", a), write(tmp_path, "b.png", b)]
    found = fit_pairs(paths, "ours")
    assert found.freedom == "full"
    assert found.glass_seen
    assert np.allclose(found.matrix, MATRIX, atol=0.06)
    assert np.allclose(found.background_from, GLASS_A, atol=0.003)
    assert np.allclose(found.background_to, GLASS_B, atol=0.003)
    assert found.error_lab < 0.6 < 4 * found.error_lab + 2 < found.before_lab
    assert found.error_lab <= found.worst_lab < found.worst_before_lab
    assert found.error_od < 0.01
    assert (found.pairs, found.regions) == (1, 9)
    assert "a.png" not in map_text(found)
    od = np.random.default_rng(0).uniform(0, 1.5, (3, 4, 5)).astype(np.float32)
    expected = GLASS_B + (od.transpose(1, 2, 0) - GLASS_A) @ MATRIX.T
    assert np.allclose(found.apply(od).transpose(1, 2, 0), expected, atol=0.1)


@pytest.mark.parametrize(
    ("matrix", "freedom"),
    [
        (np.eye(3), "glass"),
        (1.2 * np.eye(3), "gain"),
        (np.diag([1.25, 0.9, 1.0]), "gains"),
    ],
)
def test_no_more_freedom_than_the_pair_needs(tmp_path: Path, matrix, freedom: str):
    a, b, _ = scans(matrix=matrix)
    found = fit_pairs([write(tmp_path, "a.png", a), write(tmp_path, "b.png", b)], "ours")
    assert found.freedom == freedom
    assert np.allclose(found.matrix, matrix, atol=0.03)


def test_without_glass_the_offset_is_part_of_the_fit(tmp_path: Path):
    a, b, _ = scans(has_glass=False)
    found = fit_pairs([write(tmp_path, "a.png", a), write(tmp_path, "b.png", b)], "ours")
    assert not found.glass_seen
    glass = found.apply(np.asarray(GLASS_A, np.float32))
    assert np.allclose(glass, GLASS_B, atol=0.03)
    assert found.error_lab < 0.25 * found.before_lab


def test_pairs_combine_and_each_is_held_out(tmp_path: Path):
    paths = []
    for seed in (1, 2, 3):
        a, b, _ = scans(seed, degrees=30 * seed)
        paths += [write(tmp_path, f"a{seed}.png", a), write(tmp_path, f"b{seed}.png", b)]
    found = fit_pairs(paths, "ours")
    assert (found.pairs, found.regions, len(found.sources)) == (3, 27, 3)
    assert np.allclose(found.matrix, MATRIX, atol=0.05)
    assert found.error_lab < 0.6
    low, high = np.array(found.share_low), np.array(found.share_high)
    assert ((low > 0) & (low < high) & (high < 1)).all()
    assert 0.5 < found.top < 4


def test_dirt_on_one_scanner_does_not_move_the_map(tmp_path: Path):
    a, b, _ = scans()
    b[300:360, 300:380] = (60, 20, 20)
    found = fit_map([read_pair(write(tmp_path, "a.png", a), write(tmp_path, "b.png", b))], "ours")
    assert np.allclose(found.matrix, MATRIX, atol=0.08)


def test_large_slides_are_registered_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pairs, "_SIDE", 280)
    monkeypatch.setattr(pairs, "_FINE_MPP", 0.25)
    monkeypatch.setattr(pairs, "_WINDOW", 160)
    a, b, affine = scans(degrees=90, scale=1.1)
    found = read_pair(write(tmp_path, "a.png", a), write(tmp_path, "b.png", b))
    assert found.registration.scale == pytest.approx(affine_scale(affine), rel=0.01)
    assert len(np.unique(found.region)) >= 3
    fitted = fit_map([found], "ours")
    assert np.allclose(fitted.matrix, MATRIX, atol=0.08)
    assert fitted.error_lab < 0.25 * fitted.before_lab


def affine_scale(affine) -> float:
    return float(np.sqrt(np.linalg.det(affine[:, :2])))


def test_an_odd_number_of_files_and_different_fields_are_refused(tmp_path: Path):
    a, b = write(tmp_path, "a.png", scans()[0]), write(tmp_path, "b.png", scans(seed=5)[1])
    with pytest.raises(SettingsError, match="pairs of scans"):
        fit_pairs([a], "ours")
    with pytest.raises(SlideError, match="cannot be registered") as refused:
        fit_pairs([a, b], "ours")
    assert refused.value.where == "a.png and b.png"


def test_a_file_holds_the_same_map(tmp_path: Path):
    save_map(made(), tmp_path / "map.json")
    assert load_map(tmp_path / "map.json") == made()
    assert json.loads((tmp_path / "map.json").read_text())["sha256"] == made().digest
    with pytest.raises(OutputError, match="under this name"):
        save_map(made(), tmp_path / "map.toml")


numbers = st.floats(-2, 2, allow_nan=False)


@given(
    background=st.tuples(numbers, numbers, numbers),
    errors=st.lists(st.floats(0, 50), min_size=6, max_size=6),
    tilt=st.tuples(*(st.floats(-0.2, 0.2) for _ in range(6))),
)
def test_any_map_survives_its_file(tmp_path_factory, background, errors, tilt):
    rows = ((1.0, *tilt[:2]), (tilt[2], 1.2, tilt[3]), (*tilt[4:], 0.8))
    names = ("top", "error_od", "error_lab", "before_lab", "worst_lab", "worst_before_lab")
    first = made(matrix=rows, background_from=background, **dict(zip(names, errors, strict=True)))
    path = tmp_path_factory.getbasetemp() / "any.json"
    save_map(first, path)
    second = load_map(path)
    assert second.digest == first.digest
    assert np.allclose(second.matrix, rows, atol=1e-6)
    save_map(second, path)
    assert load_map(path) == second


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("top", 2.2, "not those it was written with"),
        ("matrix", [[1, 0, 0], [0, 1, 0], [0, 0, 1.0001]], "not those it was written with"),
        ("matrix", [[1, 0, 0], [0, 1, 0]], "incomplete or damaged"),
        ("matrix", [[1, 0, 0], [1, 0, 0], [0, 0, 1]], "different colours to the same"),
        ("error_od", -1, "error_od cannot be"),
        ("background_to", [0, 0, float("nan")], "background_to cannot be"),
        ("freedom", "cubic", "unknown freedom"),
        ("share_low", [0.9, 0.9], "range of colours is empty"),
        ("comment", "mine", "unknown key"),
        ("version", 2, "another version"),
        ("format", "wsi-pgdips reference", "not a map"),
        ("pairs", None, "incomplete or damaged"),
    ],
)
def test_changed_files_are_refused(tmp_path: Path, key: str, value, message: str):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({**json.loads(map_text(made())), key: value}))
    with pytest.raises(StainError, match=message):
        load_map(path)


def test_unreadable_files_are_refused_and_an_edited_one_without_its_hash_is_read(tmp_path: Path):
    path = tmp_path / "map.json"
    with pytest.raises(StainError, match="cannot be read"):
        load_map(path)
    path.write_text("{")
    with pytest.raises(StainError, match="not valid JSON"):
        load_map(path)
    table = json.loads(map_text(made()))
    del table["sha256"]
    path.write_text(json.dumps({**table, "top": 3.0}))
    assert load_map(path).top == 3.0
    del table["top"]
    path.write_text(json.dumps(table))
    with pytest.raises(StainError, match="incomplete"):
        load_map(path)


def test_command_writes_the_map_and_prints_what_was_found(
    tmp_path: Path, call, capsys: pytest.CaptureFixture[str]
):
    a, b, _ = scans()
    files = [write(tmp_path, "a.png", a), write(tmp_path, "b.png", b)]
    out = tmp_path / "map.json"
    assert call("reference", "pair", *files, "-o", out) == 0
    printed = capsys.readouterr().out
    for word in ("registration", "rms", "full", "CIELAB dE", "->", load_map(out).digest):
        assert word in printed
    assert call("reference", "pair", *files, "-o", out) == 2
    assert call("reference", "pair", *files, "-o", tmp_path / "map.toml") == 2
    assert call("reference", "pair", *files[:1], "-o", tmp_path / "x.json") == 2
