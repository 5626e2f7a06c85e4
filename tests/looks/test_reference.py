"""References: files that come back equal, others' formats, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from support.looks import look
from wsi_pgdips.errors import OutputError, SettingsError, StainError
from wsi_pgdips.looks.files import (
    load_reference,
    parse_qupath,
    reference_names,
    reference_text,
    save_reference,
)
from wsi_pgdips.looks.groups import pool_looks, robust_mean
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.pipeline.references import fit_reference

LOOK = Reference(
    "mine",
    ("Hematoxylin", "DAB"),
    ("334477", "885522"),
    ((0.650, 0.704, 0.286), (0.269, 0.568, 0.778)),
    (0.02, 0.03, 0.025),
    True,
    (1.2, 1.6),
    look().tissue_od,
    look().texture,
    "liver",
    sources=({"checksum": "abc", "mpp": 0.5},),
)


def unit(rows) -> tuple:
    a = np.asarray(rows, float)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    return tuple(tuple(round(float(v), 6) for v in row) for row in a)


LOOK = dataclasses.replace(LOOK, matrix=unit(LOOK.matrix))


@pytest.mark.parametrize("name", reference_names())
def test_shipped_references_are_whole_and_have_their_hash(name):
    reference = load_reference(name)
    assert reference.name == name
    assert len(reference.members) > 1
    assert all(member.tissue_od for member in reference.members)
    assert len(reference.spectral_correction) == reference.n
    assert '"sha256"' in reference_text(reference)
    assert np.allclose(np.linalg.norm(reference.stain_matrix, axis=1), 1, atol=1e-5)


def test_a_file_gives_the_equal_reference_back(tmp_path):
    path = tmp_path / "new" / "ref.json"
    save_reference(LOOK, path)
    assert load_reference(path) == LOOK
    assert load_reference(path).digest == LOOK.digest


def test_the_hash_follows_the_numbers_and_not_the_name():
    assert dataclasses.replace(LOOK, name="other", sources=()).digest == LOOK.digest
    assert dataclasses.replace(LOOK, background=(0.02, 0.03, 0.026)).digest != LOOK.digest
    assert dataclasses.replace(LOOK, tissue="kidney").digest != LOOK.digest
    assert dataclasses.replace(LOOK, tissue_od=look(2, 1.1).tissue_od).digest != LOOK.digest
    group = pool_looks([LOOK, dataclasses.replace(LOOK, texture=(0.5, 0.4, 0.3, 0.2))])
    other = dataclasses.replace(group, members=group.members[::-1])
    assert other.digest != group.digest


def test_an_edited_file_is_refused_unless_its_hash_is_taken_out(tmp_path):
    path = tmp_path / "ref.json"
    table = json.loads(reference_text(LOOK))
    table["background"][0] = 0.5
    path.write_text(json.dumps(table))
    with pytest.raises(StainError, match="not those it was written with"):
        load_reference(path)
    del table["sha256"]
    path.write_text(json.dumps(table))
    assert load_reference(path).background[0] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(version=99), "another version"),
        (lambda t: t.update(extra=1), "unknown key"),
        (lambda t: t["stains"][0].update(colour="ff0000"), "unknown key"),
        (lambda t: t["stains"][0].pop("od"), "incomplete or damaged"),
        (lambda t: t["stains"][0].update(od=[0, 0, 0]), "finite and not zero"),
        (lambda t: t.update(format="something"), "not a look"),
        (lambda t: t.update(background=[float("nan")] * 3), "look's background cannot be"),
        (lambda t: t["tissue_od"][0].append(1.0), "incomplete or damaged"),
        (lambda t: t["tissue_od"].pop(), "incomplete or damaged"),
        (lambda t: t["texture"].__setitem__(0, -0.1), "none below 0"),
        (lambda t: t["stains"][0].update(spectral_correction=float("nan")), "finite numbers"),
        (lambda t: t["stains"][0].update(spectral_correction=-1.0), "none below 0"),
        (lambda t: t["stains"][0].update(label=3), "incomplete or damaged"),
        (lambda t: t.update(foreign={"bits": "x"}), "incomplete or damaged"),
        (lambda t: t.update(sources=["x"]), "incomplete or damaged"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    table = json.loads(reference_text(LOOK))
    del table["sha256"]
    change(table)
    path = tmp_path / "ref.json"
    path.write_text(json.dumps(table))
    with pytest.raises(StainError, match=message):
        load_reference(path)


def test_what_is_not_there_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(StainError, match="unknown reference") as caught:
        load_reference("pas")
    assert "hdab" in str(caught.value)
    with pytest.raises(StainError, match="cannot be read"):
        load_reference(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(StainError, match="not valid JSON"):
        load_reference(tmp_path / "broken.json")
    with pytest.raises(OutputError, match="under this name"):
        save_reference(LOOK, tmp_path / "ref.txt")


def test_plain_matrices_are_references_of_colours_only(tmp_path):
    plain = tmp_path / "plain.json"
    plain.write_text('{"Hematoxylin": [6.5, 7.04, 2.86], "DAB": [0.269, 0.568, 0.778]}')
    save_reference(LOOK, tmp_path / "set.toml")
    for path in (plain, tmp_path / "set.toml"):
        found = load_reference(path)
        assert found.labels == LOOK.labels
        assert np.allclose(found.stain_matrix, LOOK.stain_matrix, atol=2e-3)
        assert found.background is None
        assert found.spectral_correction is None
        assert found.tissue_od == ()


def test_qupath_takes_and_gives_vectors_and_background(tmp_path):
    path = tmp_path / "ref.groovy"
    save_reference(LOOK, path)
    assert path.read_text().startswith('setColorDeconvolutionStains(\'{"Name" : "mine"')
    found = load_reference(path)
    assert found.labels == LOOK.labels
    assert np.allclose(found.stain_matrix, LOOK.stain_matrix, atol=1e-4)
    assert np.allclose(found.background, LOOK.background, atol=1e-3)  # whole counts


def test_qupath_s_own_line_is_read_without_its_residual():
    line = (
        'setColorDeconvolutionStains(\'{"Name" : "H-DAB default", "Stain 1" : "Hematoxylin", '
        '"Values 1" : "0.65111 0.70119 0.29049", "Stain 2" : "DAB", "Values 2" : "0.26917 0.56824 '
        '0.77759", "Stain 3" : "Residual", "Values 3" : "0.6 -0.7 0.3", "Background" : " 255 255 '
        "255\"}');"
    )
    found = parse_qupath(line, "line")
    assert found.labels == ("Hematoxylin", "DAB")
    assert found.background == (0, 0, 0)
    with pytest.raises(StainError, match="cannot be read"):
        parse_qupath('{"Stain 1" : "H", "Values 1" : "0.1 0.2"}', "line")


def test_order_of_stains_is_the_slide_s_and_others_are_refused():
    swapped = LOOK.ordered(["dab", "HEMATOXYLIN"])
    assert swapped.labels == ("DAB", "Hematoxylin")
    assert swapped.matrix == LOOK.matrix[::-1]
    assert swapped.tissue_od == LOOK.tissue_od
    group = pool_looks([LOOK, swapped])
    assert [m.labels for m in group.ordered(swapped.labels).members] == [swapped.labels] * 2
    with pytest.raises(StainError, match="of other stains"):
        LOOK.ordered(["Hematoxylin", "Eosin"])


def test_a_group_is_a_robust_mean_and_keeps_its_slides(tmp_path):
    looks = [look(glass=0.02 + 0.001 * k, name=str(k)) for k in range(5)]
    far = look(2, 3.0, 0.4, 0.3, "far")
    group = pool_looks([*looks, far], "mine", ["liver"] * 5 + ["kidney"])
    assert group.name == "mine"
    assert len(group.slides) == len(group.sources) + 6 == 6
    assert np.allclose(group.background, (0.022, 0.032, 0.022), atol=0.004)
    assert np.allclose(group.matrix, looks[0].matrix, atol=0.02)
    assert 0 < group.spread["background"][0] < 0.004
    assert group.tissue is None
    assert [m.tissue for m in group.members] == ["liver"] * 5 + ["kidney"]
    save_reference(group, tmp_path / "group.json")
    assert load_reference(tmp_path / "group.json") == group
    # groups of groups are groups of slides
    assert len(pool_looks([group, looks[0]]).members) == 7
    assert pool_looks([LOOK], "mine") == LOOK
    guessed = [dataclasses.replace(m, glass_measured=False) for m in looks]
    pooled = pool_looks([*guessed, look(glass=0.1)])
    assert pooled.background[0] > 0.08


def test_what_is_no_group_is_refused():
    with pytest.raises(SettingsError, match="needs looks"):
        pool_looks([])
    with pytest.raises(SettingsError, match="not a look"):
        pool_looks(["he"])  # type: ignore[list-item]
    for tissue in (["liver"], "liver"):
        with pytest.raises(SettingsError, match="one tissue a look"):
            pool_looks([LOOK, LOOK], tissue=tissue)
    with pytest.raises(StainError, match="other stains"):
        pool_looks([LOOK, look()])


def test_one_tissue_a_slide_is_asked_for_before_any_is_opened(tmp_path):
    with pytest.raises(SettingsError, match="one tissue a look"):
        fit_reference([tmp_path / "a.json", tmp_path / "b.json"], "mine", tissue=["liver"])


def test_a_robust_mean_ignores_a_minority():
    rows = np.vstack([np.random.default_rng(0).normal(0, 0.01, (9, 3)), np.full((3, 3), 5.0)])
    assert np.abs(robust_mean(rows, np.ones(12))).max() < 0.05
    assert np.allclose(robust_mean(rows[:1], np.ones(1)), rows[0])
