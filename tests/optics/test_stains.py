"""The stain library: every set is usable, bad sets are refused with a message that helps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.optics.stain_files import load_stains, save_stains, stain_names
from wsi_pgdips.optics.stains import MIN_ANGLE_DEG, fit_single_stain, make_stain_set, match_rows

HDAB = ((0.650, 0.704, 0.286), (0.268, 0.570, 0.776))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_library_has_the_usual_stains():
    wanted = {"he", "hdab", "haec", "masson", "pas", "alcian_blue", "methyl_green", "giemsa"}
    assert wanted | {"hdab_red", "hematoxylin", "dab"} <= set(stain_names())


@pytest.mark.parametrize("name", stain_names())
def test_library_set_is_usable(name: str):
    stains = load_stains(name)
    assert stains.name == name
    assert stains.source
    assert stains.stain_matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(stains.matrix, axis=1), 1, atol=1e-6)
    for i in range(stains.n):
        for j in range(i):
            assert angle_deg(stains.matrix[i], stains.matrix[j]) >= MIN_ANGLE_DEG
    assert len(set(stains.labels)) == stains.n
    assert all(re.fullmatch(r"[0-9a-f]{6}", color) for color in stains.colors)


def test_published_hdab_vectors():
    for row, published in zip(load_stains("hdab").matrix, HDAB, strict=True):
        assert angle_deg(row, published) < 1e-4


def test_names_forgive_case_and_hyphens():
    assert load_stains(" Alcian-Blue ") == load_stains("alcian_blue")


def test_unknown_name_lists_known_and_near():
    with pytest.raises(StainError) as caught:
        load_stains("hdbab")
    message = str(caught.value)
    assert "did you mean hdab" in message
    assert all(name in message for name in stain_names())


@pytest.mark.parametrize("name", stain_names())
def test_toml_round_trip(name: str, tmp_path: Path):
    stains = load_stains(name)
    save_stains(stains, tmp_path / "set.toml")
    assert load_stains(tmp_path / "set.toml") == stains
    assert [p.name for p in tmp_path.iterdir()] == ["set.toml"]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t.strip())


@given(name=st.text(st.characters(exclude_categories=["Cs"])), label=texts)
def test_toml_round_trip_of_any_text(tmp_path_factory, name: str, label: str):
    stains = make_stain_set(name, [label], [HDAB[1]], source=name)
    path = tmp_path_factory.mktemp("stains") / "set.toml"
    save_stains(stains, path)
    assert load_stains(path) == stains


def test_vectors_of_any_length_become_unit_and_colour_is_derived(tmp_path: Path):
    path = write(tmp_path / "mine.toml", '[[stain]]\nlabel = "X"\nod = [0, 3, 4]\n')
    stains = load_stains(str(path))
    assert stains.name == "mine"
    assert stains.matrix == ((0.0, 0.6, 0.8),)
    # light after one OD: 1, 10**-.6, 10**-.8, brightest at 255
    assert stains.colors == ("ff4028",)


STAIN = '[[stain]]\nlabel = "{}"\nod = {}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one OD vector"),
        ("name = ", "not valid TOML"),
        ("colour = 1", "unknown key"),
        ("stain = 3", r"\[\[stain\]\]"),
        ('[[stain]]\nlabel = "A"', "three numbers"),
        ("[[stain]]\nod = [1, 0, 0]", "label"),
        ("name = 3\n" + STAIN.format("A", "[1, 0, 0]"), "text where text belongs"),
        (STAIN.format("A", "[1, 0]"), "three numbers"),
        (STAIN.format("A", '[1, 0, "x"]'), "three numbers"),
        (STAIN.format("A", "[0, 0, 0]"), "not zero"),
        (STAIN.format("A", "[nan, 0, 1]"), "finite"),
        (STAIN.format("A", "[1, -0.5, 0]"), "negative"),
        (STAIN.format("", "[1, 0, 0]"), "not empty"),
        (STAIN.format("A", "[1, 0, 0]") + STAIN.format("a", "[0, 1, 0]"), "distinct"),
        (STAIN.format("A", "[1, 0, 0]") + STAIN.format("B", "[1, 0.05, 0]"), "same colour"),
        (STAIN.format("A", "[1, 0, 0]") + 'color = "#ff0000"', "malformed"),
        ("".join(STAIN.format(i, f"[{i}, 1, {i * i}]") for i in range(9)), "1 to 8"),
    ],
)
def test_bad_files_are_refused_and_named(tmp_path: Path, text: str, message: str):
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(StainError, match=message) as caught:
        load_stains(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_unwritable_place(tmp_path: Path):
    with pytest.raises(StainError, match="cannot be read"):
        load_stains(tmp_path / "none.toml")
    with pytest.raises(OutputError, match="cannot be written"):
        save_stains(load_stains("he"), tmp_path / "no" / "such" / "set.toml")


@pytest.mark.parametrize(
    ("labels", "matrix", "colors"),
    [
        (["A"], [[1, 0, 0], [0, 1, 0]], None),
        (["A"], "words", None),
        (["A"], [[1, 0, 0]], ["ff0000", "00ff00"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, matrix, colors):
    with pytest.raises(StainError):
        make_stain_set("x", labels, matrix, colors=colors)


def test_fit_single_stain_ignores_glass_and_a_minority_of_another_stain():
    rng = np.random.default_rng(0)
    background = np.array([0.06, 0.03, 0.09])
    amount = rng.uniform(0.2, 1.2, (4000, 1))
    dab = amount * np.asarray(HDAB[1]) / np.linalg.norm(HDAB[1])
    other = amount[:600] * np.asarray(HDAB[0]) / np.linalg.norm(HDAB[0])
    glass = np.zeros((4000, 3))
    od = np.concatenate([dab, other, glass]) + background
    od += rng.normal(0, 0.01, od.shape)
    fitted = fit_single_stain(od, background)
    assert fitted.shape == (3,)
    assert np.linalg.norm(fitted) == pytest.approx(1, abs=1e-6)
    assert angle_deg(fitted, HDAB[1]) < 1.0
    # the plain mean, which this replaces, is clearly worse on the same pixels
    assert angle_deg((od - background).mean(0), HDAB[1]) > 3.0


def test_fit_single_stain_refuses_glass():
    with pytest.raises(StainError, match="too pale"):
        fit_single_stain(np.full((100, 3), 0.06), [0.06, 0.06, 0.06])


@given(order=st.permutations(range(3)), seed=st.integers(0, 2**16))
def test_match_rows_undoes_any_order(order, seed: int):
    library = load_stains("hdab_red").stain_matrix.astype(np.float64)
    jitter = np.random.default_rng(seed).normal(0, 0.02, library.shape)
    permutation, angles = match_rows((library + jitter)[list(order)], library)
    np.testing.assert_array_equal(np.asarray(order)[permutation], [0, 1, 2])
    np.testing.assert_allclose(angles, angle_deg(library + jitter, library), atol=1e-9)


def test_match_rows_is_optimal_not_greedy():
    # the first estimate is nearest to both library rows; greedy matching would strand the second
    library = [[1, 0, 0], [1, 0.5, 0]]
    permutation, _ = match_rows([[1, 0.28, 0], [1, 2, 0]], library)
    assert permutation.tolist() == [0, 1]
    permutation, _ = match_rows([[1, 2, 0], [1, 0.28, 0]], library)
    assert permutation.tolist() == [1, 0]


def test_match_rows_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="one shape"):
        match_rows([[1, 0, 0]], HDAB)
