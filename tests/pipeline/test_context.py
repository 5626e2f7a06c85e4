"""A plan that was kept gives workers the context that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.stains import load_stains
from wsi_pgdips.pipeline.stage_files import load_plan, save_plan
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.stages.context import make_context


@pytest.mark.parametrize("white", [255, 240])
def test_what_a_floor_added_to_b_is_kept_with_the_plan(tmp_path: Path, white: int) -> None:
    rgb = np.full((256, 256, 3), white, np.uint8)
    rgb[64:192, 64:192] = np.random.default_rng(0).integers(90, 160, (128, 128, 3))
    source = ArraySource(rgb, mpp=4.0, tile=256, block=1024)
    stains, settings = load_stains("he"), ScientificSettings(preset="fast", tile=256, block=1024)
    made = make_context(source, stains, settings)
    save_plan(made, tmp_path / "plan.npz")
    kept = load_plan(source, stains, settings, tmp_path / "plan.npz")
    of_made, of_kept = (c.tile_input((0, 0), rgb, 0) for c in (made, kept))
    np.testing.assert_array_equal(of_kept.of_stains, of_made.of_stains)
    # saturated glass is no denser than 0, so nothing is taken off before S is estimated
    if white == 255:
        np.testing.assert_allclose(of_made.of_stains.min(), 0, atol=1e-6)
        np.testing.assert_allclose(of_made.corrected.min(), -0.02, atol=1e-6)
    else:
        assert of_made.raised is None
