"""``blend``: collect what the blocks say, make the fields, keep them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsi_pgdips.field.blend import blend_fields
from wsi_pgdips.machine import tile_executor
from wsi_pgdips.pipeline.ledger import load_arrays, save_arrays
from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior
from wsi_pgdips.solver.statistics import Q_MAX
from wsi_pgdips.stages.context import Context

_ARRAYS = (
    "stain_matrix",
    "spectral_correction",
    "background",
    "raw_stain_matrix",
    "raw_spectral_correction",
    "raw_background",
    "confidence",
    "inherited",
)


def blend(
    context: Context, prior: SlidePrior, fits: Sequence[BlockFit], threads: int = 1
) -> tuple[Fields, FloatArray]:
    """Fields over the slide, and its stain matrix."""
    return blend_fields(
        fits,
        context.grid.tile_grid,
        prior,
        context.background,
        source=context.preset.field_source,
        q_max=Q_MAX,
        library=context.stains.stain_matrix,
        executor=tile_executor(threads),
    )


def save_fields(fields: Fields, slide_matrix: FloatArray, path: Path) -> None:
    save_arrays(
        path,
        slide_matrix=slide_matrix,
        shrinkage_names=np.array(list(fields.shrinkage), dtype=np.str_),
        shrinkage=np.array(list(fields.shrinkage.values()), np.float64),
        **{name: getattr(fields, name) for name in _ARRAYS},
    )


def load_fields(path: Path) -> tuple[Fields, FloatArray]:
    a = load_arrays(path)
    names = [str(n) for n in a["shrinkage_names"]]
    shrinkage = dict(zip(names, a["shrinkage"].tolist(), strict=True))
    return Fields(**{name: a[name] for name in _ARRAYS}, shrinkage=shrinkage), a["slide_matrix"]
