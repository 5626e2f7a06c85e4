"""What a stain file says of its vectors: whether a slide may change them, and what else fits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsi_pgdips.errors import StainError
from wsi_pgdips.optics.physics import angle_deg, turned_within, unit_rows
from wsi_pgdips.optics.stain_files import load_stains, save_stains, stain_names
from wsi_pgdips.records import StainSet

STAIN = '[[stain]]\nlabel = "{}"\nod = {}\n{}\n'


def of_text(
    folder: Path, first: str = "", second: str = "", vectors: str | None = None
) -> StainSet:
    path = folder / "own.toml"
    path.write_text(
        STAIN.format("A", [0.65, 0.7, 0.29], first) + STAIN.format("B", [0.27, 0.57, 0.78], second),
        encoding="utf-8",
    )
    return load_stains(path, vectors)


@pytest.mark.parametrize("name", stain_names())
def test_vectors_of_the_library_are_estimated(name: str) -> None:
    assert np.isinf(load_stains(name).freedom).all()


def test_vectors_of_a_file_are_fixed_unless_it_says_how_well_they_are_known(tmp_path: Path) -> None:
    assert of_text(tmp_path).freedom.tolist() == [0, 0]
    assert of_text(tmp_path, "uncertainty_deg = 3").freedom.tolist() == [3, 0]


def test_a_file_may_ask_for_each_stain(tmp_path: Path) -> None:
    found = of_text(tmp_path, 'vectors = "estimate"', 'vectors = "refine"')
    assert found.freedom.tolist() == [math.inf, 5]
    found = of_text(tmp_path, 'vectors = "fixed"\nuncertainty_deg = 3', 'vectors = "refine"')
    assert found.freedom.tolist() == [0, 5]


@pytest.mark.parametrize(
    ("vectors", "freedom"),
    [("estimate", [math.inf, math.inf]), ("refine", [3, 5]), ("fixed", [0, 0])],
)
def test_a_run_may_ask_for_all(tmp_path: Path, vectors: str, freedom: list[float]) -> None:
    assert of_text(tmp_path, "uncertainty_deg = 3", vectors=vectors).freedom.tolist() == freedom


def test_a_run_may_fix_the_librarys(tmp_path: Path) -> None:
    assert load_stains("he", "fixed").freedom.tolist() == [0, 0]
    assert load_stains("he", "refine").freedom.tolist() == [5, 5]
    assert np.isinf(load_stains("he").freedom).all()  # the kept set is as it was


def test_dab_saturates_and_others_do_where_a_file_says_so(tmp_path: Path) -> None:
    assert load_stains("hdab").saturating == 1
    assert load_stains("he").saturating == -1
    assert of_text(tmp_path).saturating == -1
    assert of_text(tmp_path, "", "saturates = true").saturating == 1
    silent = tmp_path / "dab.toml"
    silent.write_text('[[stain]]\nlabel = "DAB"\nod = [0.27, 0.57, 0.78]\n')
    assert load_stains(silent).saturating == 0
    silent.write_text('[[stain]]\nlabel = "DAB"\nod = [0.27, 0.57, 0.78]\nsaturates = false\n')
    assert load_stains(silent).saturating == -1


def test_all_combinations_of_alternatives_are_tried_the_sets_own_first(tmp_path: Path) -> None:
    found = of_text(tmp_path, "also = [{ od = [1, 1, 0] }, { od = [1, 0, 0], source = 'x' }]")
    assert len(found.libraries) == 3
    np.testing.assert_array_equal(found.libraries[0], found.stain_matrix)
    np.testing.assert_allclose(found.libraries[2][0], [1, 0, 0])
    assert all(np.array_equal(rows[1], found.stain_matrix[1]) for rows in found.libraries)
    assert [len(load_stains(n).libraries) for n in ("hematoxylin", "he")] == [1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('vectors = "free"', "estimated, refined or fixed"),
        ("vectors = 3", "estimated, refined or fixed"),
        ("uncertainty_deg = 0", "uncertainty"),
        ("uncertainty_deg = -1", "uncertainty"),
        ("uncertainty_deg = 91", "uncertainty"),
        ("uncertainty_deg = nan", "uncertainty"),
        ('uncertainty_deg = "5"', "uncertainty"),
        ("also = [[1, 0, 0]]", "list of tables"),
        ("also = 3", "list of tables"),
        ("also = [{ od = [1, 0] }]", "three numbers"),
        ("also = [{ od = [0, 0, 0] }]", "not zero"),
        ("also = [{ od = [1, -1, 0] }]", "negative"),
        ("also = [{ od = [1, 0, 0], name = 'x' }]", "unknown key"),
        ("saturates = true", "only one stain"),
    ],
)
def test_what_cannot_be_used_is_refused_and_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(StainError, match=message) as caught:
        of_text(tmp_path, line, "saturates = true")
    assert "own.toml" in str(caught.value)


@given(
    freedom=st.tuples(*[st.sampled_from([0.0, 2.5, 5.0, 90.0, math.inf])] * 2),
    saturating=st.integers(-1, 1),
    also=st.lists(hnp.arrays(float, 3, elements=st.floats(0.1, 1)), max_size=2),
)
def test_a_set_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    freedom: tuple[float, float],
    saturating: int,
    also: list[np.ndarray],
) -> None:
    rows = tuple(tuple(float(v) for v in row / np.linalg.norm(row)) for row in also)
    stains = replace(
        load_stains("hdab"),
        freedom_deg=freedom,
        saturating=saturating,
        alternatives=(rows, ()),  # type: ignore[arg-type]
    )
    path = tmp_path_factory.mktemp("stains") / "set.toml"
    save_stains(stains, path)
    assert load_stains(path) == stains


positive = hnp.arrays(float, (2, 3), elements=st.floats(0.05, 1))


@given(rows=positive, centre=positive, degrees=st.tuples(*[st.floats(0, 40)] * 2))
def test_rows_are_turned_no_further_than_they_may(
    rows: np.ndarray, centre: np.ndarray, degrees: tuple[float, float]
) -> None:
    u, c = unit_rows(rows), unit_rows(centre)
    out = turned_within(u, c, degrees)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    before, after = angle_deg(u, c), angle_deg(out, c)
    assert (after <= np.array(degrees) + 0.05).all()
    near = before <= degrees
    np.testing.assert_array_equal(out[near], u[near])
    # along the great circle: what was turned and what is left add up
    np.testing.assert_allclose(angle_deg(out, u) + after, before, atol=0.1)


def test_a_whole_field_is_turned_and_an_infinite_freedom_turns_nothing() -> None:
    centre = load_stains("he").stain_matrix
    field = unit_rows(centre + np.random.default_rng(0).normal(0, 0.1, (4, 5, 2, 3)))
    out = turned_within(field, centre, [3.0, math.inf])
    assert out.shape == field.shape
    assert angle_deg(out[:, :, 0], centre[0]).max() < 3.01
    np.testing.assert_array_equal(out[:, :, 1], field[:, :, 1])
    np.testing.assert_allclose(turned_within(field, centre, [0, 0])[2, 2], centre, atol=1e-6)
