"""A slide with a pen over thick cells, on which the network used to write dots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.image import solve
from wsi_pgdips.slide.reader import open_slide
from wsi_pgdips.stages.context import make_context
from wsi_pgdips.stages.lattice import lattice_figures
from wsi_pgdips.stages.render import render_block
from wsi_pgdips.tiles import tissue

SETTINGS = ScientificSettings(seed=1, calibration_steps=50, calibration_tiles=4)


@pytest.mark.realslide
@pytest.mark.usefixtures("one_thread")
def test_no_dots_over_pen_and_cells(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the pen is not found, as ink is not measured."""
    nothing = lambda y, scanned, *_: (np.zeros(scanned.shape, bool), False)  # noqa: E731
    monkeypatch.setattr(tissue, "find_ink", nothing)
    source = open_slide(data_dir / "failing" / "pen_cytology_lattice.svs", SETTINGS)
    context = make_context(source, load_stains("he"), SETTINGS)
    solved = solve(context, torch.device("cpu"), 1)
    under = (context, solved.prior, solved.fields, solved.slide_matrix)
    counts = [
        render_block(*under, plan, lambda _: None, source, device="cpu", threads=1).lattice
        for plan in context.plans
    ]
    figures = lattice_figures(context.stains.labels, counts)
    for label in context.stains.labels:
        worst, most = (figures[name][label] for name in ("lattice_p999", "lattice_max"))
        assert worst is not None
        assert worst <= 0.02
        assert most is not None
        assert most <= 0.12
