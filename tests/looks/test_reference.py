"""References: files that come back equal, others' formats, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.looks.files import (
    load_reference,
    parse_qupath,
    reference_names,
    reference_text,
    save_reference,
)
from wsi_pgdips.looks.reference import Reference, combine

LOOK = Reference(
    "mine",
    ("Hematoxylin", "DAB"),
    ("334477", "885522"),
    ((0.650, 0.704, 0.286), (0.269, 0.568, 0.778)),
    (0.02, 0.03, 0.025),
    (1.2, 1.6),
    ((0.2, 0.22, 0.09), None),
    (0.01, 0.02, 0.015),
    0.012,
    {50.0: (0.1, 0.02), 99.0: (0.8, 1.1)},
    ({"checksum": "abc", "mpp": 0.5},),
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
    assert np.isfinite(reference.typical_od).all()
    assert len(reference.spectral_correction) == reference.n
    assert '"sha256"' in reference_text(reference)
    assert np.allclose(np.linalg.norm(reference.stain_matrix, axis=1), 1, atol=1e-5)


def test_a_file_gives_the_equal_reference_back(tmp_path):
    save_reference(LOOK, tmp_path / "ref.json")
    assert load_reference(tmp_path / "ref.json") == LOOK
    assert load_reference(tmp_path / "ref.json").digest == LOOK.digest


def test_the_hash_follows_the_numbers_and_not_the_name():
    assert dataclasses.replace(LOOK, name="other", sources=()).digest == LOOK.digest
    assert dataclasses.replace(LOOK, background=(0.02, 0.03, 0.026)).digest != LOOK.digest
    darker = dataclasses.replace(LOOK, typical=((0.2, 0.22, 0.10), None))
    assert darker.digest != LOOK.digest
    assert dataclasses.replace(LOOK, off_plane=0.02).digest != LOOK.digest


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
        (lambda t: t.update(format="something"), "not a reference"),
        (lambda t: t.update(background=[float("nan")] * 3), "reference's background cannot be"),
        (lambda t: t.update(palest_od=[0.1, float("inf"), 0.1]), "reference's palest_od cannot be"),
        (lambda t: t.update(off_plane_od=-0.1), "none below 0"),
        (lambda t: t["stains"][0].update(spectral_correction=float("nan")), "finite numbers"),
        (lambda t: t["stains"][0].update(spectral_correction=-1.0), "none below 0"),
        (lambda t: t["stains"][0].update(typical_od=[0.0, 0.0, 0.0]), "not that of a stain"),
        (lambda t: t["stains"][0].update(typical_od=[-0.3, -0.4, -0.1]), "not that of a stain"),
        (lambda t: t["stains"][0].update(label=3), "incomplete or damaged"),
        (lambda t: t["stains"][0].update(percentiles=[1]), "incomplete or damaged"),
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
        assert np.isnan(found.typical_od).all()


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
    assert swapped.typical == LOOK.typical[::-1]
    assert swapped.percentiles[99.0] == (1.1, 0.8)
    with pytest.raises(StainError, match="of other stains"):
        LOOK.ordered(["Hematoxylin", "Eosin"])


def test_a_common_look_is_the_mean_and_knows_what_any_slide_knows():
    other = dataclasses.replace(
        LOOK,
        background=(0.04, 0.05, 0.045),
        spectral_correction=(0.8, 1.2),
        off_plane=0.016,
        typical=((0.4, 0.44, 0.18), (0.3, 0.5, 0.7)),
    )
    both = combine([LOOK, other.ordered(["DAB", "Hematoxylin"])], "both")
    assert both.name == "both"
    assert np.allclose(both.background, (0.03, 0.04, 0.035))
    assert np.allclose(both.spectral_correction, (1.0, 1.4))
    assert np.allclose(both.typical_od, [[0.3, 0.33, 0.135], [0.3, 0.5, 0.7]])
    assert both.off_plane == pytest.approx(0.014)
    assert len(both.sources) == 2
    assert combine([LOOK], "mine") == LOOK


def test_a_reference_is_written_into_a_new_folder(tmp_path):
    save_reference(LOOK, tmp_path / "new" / "ref.json")
    assert load_reference(tmp_path / "new" / "ref.json") == LOOK
