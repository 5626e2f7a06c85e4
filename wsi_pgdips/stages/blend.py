"""``blend``: from the fits of all blocks to smooth fields over the slide."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_pgdips.field.blend import blend_fields
from wsi_pgdips.machine import tile_executor
from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior
from wsi_pgdips.solver.statistics import Q_MAX
from wsi_pgdips.stages.context import Context


def blend(
    context: Context, prior: SlidePrior, fits: Sequence[BlockFit], threads: int = 1
) -> tuple[Fields, FloatArray]:
    """Return the fields over the slide, and its (N, 3) stain matrix.

    Args:
        fits: of the slide's blocks; read one after the other.
    """
    return blend_fields(
        fits,
        context.grid.tile_grid,
        prior,
        context.background,
        source=context.preset.field_source,
        q_max=Q_MAX,
        library=prior.library if len(prior.library) else None,
        freedom=context.stains.freedom,
        executor=tile_executor(threads),
    )
