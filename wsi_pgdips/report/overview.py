"""The overview figure of a finished slide, from its layers and the slide itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.recompose import recompose
from wsi_pgdips.optics.interpolate import interpolation_weights
from wsi_pgdips.records import FloatArray, TileSource
from wsi_pgdips.report.plots import overview

MAX_SIDE = 1280


def draw_overview(source: TileSource, layers: Layers, path: Path) -> Path:
    """Draw slide, tissue, layers, residual, recomposition and fields into one picture.

    Args:
        source: the slide on the layers' output grid. layers: finished. path: picture to write.

    Raises:
        SlideError: the slide cannot be read. OutputError: layers damaged, picture not writable.
    """
    grid = layers.grid
    level = next(
        (k for k in range(grid.n_levels) if max(grid.level_shape(k)) <= MAX_SIDE),
        grid.n_levels - 1,
    )
    height, width = grid.level_shape(level)
    mpp = grid.mpp * 2**level
    rgb, _ = source.overview(mpp)
    q = layers.read(0, 0, height, width, level)
    side = grid.cell / 2**level
    return overview(
        path,
        slide_rgb=rgb,
        tissue=np.asarray(layers.tissue(level).compute(), bool),
        concentrations=q,
        labels=layers.stains.labels,
        colors=layers.stains.colors,
        residual_rms=np.asarray(layers.residual_rms().compute(), np.float32),
        fields=layers.fields,
        recomposition=recompose(
            q,
            field_at_level(layers.fields.stain_matrix, (height, width), side),
            field_at_level(layers.fields.background, (height, width), side),
        ),
        title=f"{source.meta.name}, {layers.stains.name}",
        mpp=mpp,
        tile_um=grid.tile * grid.mpp,
    )


def field_at_level(field: npt.NDArray[Any], shape: tuple[int, int], side: float) -> FloatArray:
    """A field on the centres of cells at the pixels of a coarse level.

    Args:
        field: (CY, CX, ...). shape: (h, w) of the level. side: of a cell in its pixels.

    Returns:
        (..., h, w) float32.
    """
    down, across = (
        interpolation_weights(n, side, 0, length)
        for n, length in zip(field.shape[:2], shape, strict=True)
    )
    return np.asarray(np.einsum("ya,ab...,xb->...yx", down, field, across, optimize=True))
