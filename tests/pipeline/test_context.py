"""A plan that was kept gives workers the context that it was made from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.layers.schema import provenance_block
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.stage_files import load_plan, save_plan
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.stages.context import Context, make_context


def planned(white: int) -> tuple[Context, Any]:
    """A small image on glass of a grey level, and its pixels."""
    rgb = np.full((256, 256, 3), white, np.uint8)
    y, x = np.mgrid[:256, :256]
    tissue = (y - 128) ** 2 + (x - 128) ** 2 < 70**2  # a square would be a scan amid fill
    rgb[tissue] = np.random.default_rng(0).integers(90, 160, (tissue.sum(), 3))
    source = ArraySource(rgb, mpp=4.0, tile=256, block=1024)
    settings = ScientificSettings(preset="fast", tile=256, block=1024)
    return make_context(source, load_stains("he"), settings), rgb


@pytest.mark.parametrize("white", [255, 240])
def test_what_a_floor_added_to_b_is_kept_with_the_plan(tmp_path: Path, white: int) -> None:
    made, rgb = planned(white)
    save_plan(made, tmp_path / "plan.npz")
    kept = load_plan(made.source, made.stains, made.settings, tmp_path / "plan.npz")
    of_made, of_kept = (c.tile_input((0, 0), rgb, 0) for c in (made, kept))
    np.testing.assert_array_equal(of_kept.stain_od, of_made.stain_od)
    # saturated glass is no denser than 0, so nothing is taken off before S is estimated
    if white == 255:
        np.testing.assert_allclose(of_made.stain_od.min(), 0, atol=1e-6)
        np.testing.assert_allclose(of_made.corrected.min(), -0.02, atol=1e-6)
    else:
        assert of_made.raised is None


def test_what_was_left_out_is_kept_with_the_plan(tmp_path: Path) -> None:
    made, _ = planned(240)
    tissue = replace(made.tissue, coverage=0.75, left_out={"dust": 0.5, "fill": 0.25})
    save_plan(replace(made, tissue=tissue), tmp_path / "plan.npz")
    kept = load_plan(made.source, made.stains, made.settings, tmp_path / "plan.npz").tissue
    assert kept.coverage == 0.75
    assert kept.left_out == {"dust": 0.5, "fill": 0.25}
    assert kept.flags == tissue.flags


def test_the_seed_of_a_tile_is_made_as_the_provenance_says() -> None:
    made, rgb = planned(240)
    recipe = provenance_block(software={}, settings={}, slide={})["seeds"]["tile"]
    _, text, bits = recipe.split("'")
    for name, value in (("identity", made.identity["identity"]), ("ty", "0"), ("tx", "0")):
        text = text.replace(name, value)
    assert bits == ", first 63 bits"
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert made.tile_input((0, 0), rgb).seed == int(digest, 16) >> (256 - 63)
