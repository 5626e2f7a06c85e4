"""Ink, carbon and black tiles on a phantom change no vectors, amounts or looks beside them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.cases import all_cases, choose
from benchmarks.quality.scene import open_scene
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.optics.stain_files import save_stains
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.records import Artifact, BoolArray

# grains near brown cannot be told from black DAB
LABELS = {"ink": Artifact.INK, "carbon": Artifact.SATURATED, "black_tiles": Artifact.FILL}
BASE = {"ink": "he", "carbon": "hdab", "black_tiles": "he"}
SEED = 3


def layers_of(name: str, folder: Path) -> tuple[Layers, BoolArray]:
    """The layers of a case of the quality benchmark, and its tissue away from what is foreign."""
    (case,) = choose(all_cases(None), [name])
    with open_scene(case, SEED, folder) as scene:
        output = folder / "out.ome.zarr"
        stains = scene.made.stains
        if "DAB" in scene.labels:  # as where carbon is laid on it
            save_stains(replace(scene.stains, saturating=scene.labels.index("DAB")), stains)
        path = scene.made.truth.path
        deconvolve_slide(path, output, stains=str(stains), preset="fast", mpp="native")
        return open_layers(output), scene.tissue


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return cache(lambda name: layers_of(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("kind", LABELS)
def test_what_is_foreign_has_no_say(kind, clean, tmp_path):
    found, tissue = layers_of(kind, tmp_path)
    other, _ = clean(BASE[kind])
    one, two = (np.asarray(m.provenance["stain_matrix"]) for m in (found, other))
    assert angle_deg(one, two).max() < 2
    assert angle_deg(found.fields.tile_stain_matrix, other.fields.tile_stain_matrix).max() < 2
    q, wanted = (m.read(0, 0, *m.grid.shape) for m in (found, other))
    beside = tissue & np.isfinite(q[0]) & np.isfinite(wanted[0])
    assert beside.sum() > 0.97 * tissue.sum()
    np.testing.assert_allclose(q[:, beside].mean(1), wanted[:, beside].mean(1), rtol=0.05)
    looks = (np.asarray(slide_look(m).tissue_od) for m in (found, other))
    np.testing.assert_allclose(*(np.linalg.norm(rows, axis=1).mean() for rows in looks), rtol=0.03)
    label = found.artifact().compute()
    assert (label == LABELS[kind]).any()
    nothing = (label > 0) & (label != Artifact.SATURATED)
    assert np.isnan(q[:, nothing]).all()
    assert not found.tissue().compute()[nothing].any()
