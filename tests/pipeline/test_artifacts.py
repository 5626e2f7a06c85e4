"""Pigment is labelled and not measured, as far as the slide's end; the verdict is in the layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cheap_runs import Slide
from support.foreign import OPTIONS, Specked, judged_copy
from wsi_pgdips.errors import SlideError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.pipeline.references import fit_reference
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.records import Artifact

REASON = "60 % of what is stained is outside the mask (pale 3 mm2)"


def test_pigment_is_foreign_and_tissue_beside_it_is_not(
    specked: Specked, specked_layers: Layers
) -> None:
    label = specked_layers.artifact().compute()
    assert label.shape == specked.pigment.shape
    assert set(np.unique(label)) == {0, Artifact.FOREIGN}
    foreign = label == Artifact.FOREIGN
    assert foreign[specked.pigment].mean() > 0.9
    assert foreign[~specked.pigment].mean() < 0.005
    assert foreign[-7:, -10:].all()  # in the last, cut squares too


def test_codes_are_zero_exactly_where_the_label_says_foreign(specked_layers: Layers) -> None:
    codes, label = np.asarray(specked_layers.codes(0)), specked_layers.artifact().compute()
    nothing = label == Artifact.FOREIGN
    for plane in codes:
        np.testing.assert_array_equal(plane == 0, nothing)
    tissue = specked_layers.tissue().compute()
    assert not tissue[nothing].any()
    q = specked_layers.read(190, 290, 40, 40)
    np.testing.assert_array_equal(np.isnan(q[0]), nothing[190:230, 290:330])


def test_the_coarse_level_of_the_label_keeps_the_largest_class(specked_layers: Layers) -> None:
    label = specked_layers.artifact().compute()
    h, w = specked_layers.grid.level_shape(1)
    wide = np.zeros((2 * h, 2 * w), np.uint8)
    wide[: label.shape[0], : label.shape[1]] = label
    want = wide.reshape(h, 2, w, 2).max((1, 3))
    np.testing.assert_array_equal(specked_layers.artifact(1).compute(), want)


def test_pigment_changes_neither_vectors_nor_amounts_nor_look(
    specked: Specked, specked_layers: Layers, tmp_path: Path
) -> None:
    clean = Slide(specked.slide.path.with_name("tiny.tiff"), specked.slide.stains)
    clean.run(tmp_path / "clean.ome.zarr", **OPTIONS)
    other = open_layers(tmp_path / "clean.ome.zarr")
    one, two = (np.asarray(m.provenance["stain_matrix"]) for m in (specked_layers, other))
    assert angle_deg(one, two).max() < 0.5
    beside = specked_layers.artifact().compute() == 0
    amounts = (m.concentration().compute()[:, beside].mean(1) for m in (specked_layers, other))
    np.testing.assert_allclose(*amounts, rtol=0.02)
    looks = (np.asarray(slide_look(m).tissue_od) for m in (specked_layers, other))
    np.testing.assert_allclose(*(np.linalg.norm(rows, axis=1).mean() for rows in looks), rtol=0.03)


def test_the_verdict_is_in_layers_record_and_summary(finished: Layers) -> None:
    verdict = finished.provenance["verdict"]
    assert (verdict["status"], verdict["reasons"]) == ("pass", [])
    assert finished.verdict.status == "pass"
    record = json.loads((finished.path / "provenance" / "run.json").read_bytes())
    assert record["verdict"]["status"] == "pass"
    figures = verdict["figures"]
    assert 0.9 < figures["coverage"] <= 1
    assert len(figures["amounts_od"]) == 2
    assert set(figures["artifact_share"]) == {a.name.lower() for a in Artifact}
    vectors = finished.provenance["stain_vectors"]
    assert [v["stain"] for v in vectors] == list(finished.stains.labels)
    assert {v["asked"] for v in vectors} == {"estimate"}
    assert {v["used"] for v in vectors} == {"the slide's own"}


def test_info_says_it_for_people_and_programs(
    call: Any, capsys: pytest.CaptureFixture[str], finished: Layers, tmp_path: Path
) -> None:
    assert call("info", finished.path, "--json") == 0
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert (verdict["status"], verdict["reasons"]) == ("pass", [])
    assert call("info", finished.path) == 0
    assert "pass" in capsys.readouterr().out


def small(specked: Specked, output: Path, **options: Any) -> Any:
    return specked.slide.run(output, **OPTIONS, **options)


def test_strict_ends_with_3_unless_it_is_a_pass(
    specked: Specked, specked_layers: Layers, tmp_path: Path
) -> None:
    """As many foreign pixels as this slide holds are a review or none, as the threshold says."""
    status = specked_layers.verdict.status
    assert status == "pass"
    assert small(specked, specked_layers.path, strict=True).exit_code == 0
    # without estimating, the phantom's library vectors leave much to explain
    red = tmp_path / "red.toml"
    red.write_text('[[stain]]\nlabel = "Red"\nod = [0.05, 0.9, 0.9]\n')
    found = deconvolve_slide(
        specked.slide.path, tmp_path / "red.ome.zarr", stains=str(red), **OPTIONS
    )
    assert found.exit_code == 0
    assert found.verdict.status in ("review", "fail")
    assert found.verdict.reasons
    again = deconvolve_slide(
        specked.slide.path,
        tmp_path / "red.ome.zarr",
        stains=str(red),
        strict=True,
        **OPTIONS,
    )
    assert again.already_done
    assert not again.has_failures
    assert again.exit_code == 3
    assert again.verdict == found.verdict


def test_a_slide_that_failed_has_no_say_in_a_reference(finished: Layers, tmp_path: Path) -> None:
    class Notes(QuietProgress):
        def note(self, message: str) -> None:
            said.append(message)

    said: list[str] = []
    failed = judged_copy(finished.path, tmp_path / "bad.ome.zarr", "fail", REASON)
    review = judged_copy(finished.path, tmp_path / "so_so.ome.zarr", "review", "why")
    alone = fit_reference([finished.path], "x")
    both = fit_reference([finished.path, failed], "x", progress=Notes())
    assert both.digest == alone.digest
    assert said == [f"bad.ome.zarr has no say, its verdict is `fail`: {REASON}"]
    assert fit_reference([review], "x").digest == alone.digest
    with pytest.raises(SlideError, match="no slide is fit for a reference") as caught:
        fit_reference([failed], "x")
    assert REASON in str(caught.value)


def test_layers_of_an_earlier_version_are_read(finished: Layers, tmp_path: Path) -> None:
    """Without label and verdict."""
    old = tmp_path / "old.ome.zarr"
    shutil.copytree(finished.path, old)
    shutil.rmtree(old / "labels" / "artifact")
    root = json.loads((old / "zarr.json").read_bytes())
    del root["attributes"]["wsi_pgdips"]["verdict"]
    (old / "zarr.json").write_text(json.dumps(root))
    layers = open_layers(old)
    assert layers.verdict.status == "unknown"
    assert fit_reference([old], "x").digest == fit_reference([finished.path], "x").digest
