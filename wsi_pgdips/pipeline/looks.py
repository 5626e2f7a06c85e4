"""The look of a slide without its layers: from sampled tiles, in seconds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pgdips.config import make_settings
from wsi_pgdips.machine import choose_device, quiet_machine, usable_cpus

if TYPE_CHECKING:
    from wsi_pgdips.looks.reference import Reference
    from wsi_pgdips.records import Fields, SlidePrior
    from wsi_pgdips.stages.context import Context


def measure_slide_look(
    slide: str | os.PathLike[str], *, tissue: str | None = None, **options: Any
) -> Reference:
    """Measure the look of a slide from sampled tiles, without making its layers.

    Stain vectors and M are those of ``calibrate``, and the colours are measured as in a run. The
    result serves ``NormalizedSlide(slide, look=...)`` and groups.

    Args:
        slide: any slide or image. tissue: what it shows, in your words, e.g. ``liver``.
        options: fields of ``ScientificSettings`` and ``ExecutionSettings``, e.g. ``stains="hdab"``.

    Raises:
        SettingsError: a bad option. SlideError: the slide cannot be read, is not brightfield, or
            has no mpp or no tissue. StainError: unknown stains.
    """
    settings = make_settings({"preset": "fast", **options})
    import torch

    from wsi_pgdips import __version__
    from wsi_pgdips.looks.foreign_pixels import NO_TISSUE, packed
    from wsi_pgdips.looks.slide_look import look_of, measure_look
    from wsi_pgdips.optics.stain_files import load_stains
    from wsi_pgdips.slide.reader import open_slide
    from wsi_pgdips.stages.context import make_context
    from wsi_pgdips.stages.fit import calibrate
    from wsi_pgdips.tiles.tissue import BACKGROUND_ASSUMED

    science = settings.science
    device = torch.device(choose_device(settings.execution.device))
    threads = settings.execution.threads or usable_cpus()
    with quiet_machine(), contextlib.closing(open_slide(Path(slide), science)) as source:
        context = make_context(source, load_stains(science.stains, science.stain_vectors), science)
        prior = calibrate(context, device, threads)
        found = context.tissue
        measured = measure_look(
            source,
            context.grid,
            _even_fields(context, prior),
            prior.stain_matrix,
            context.tissue_of,
            sorted(t for plan in context.plans for t in plan.fit),
            raised=found.raised,
            glass_measured=BACKGROUND_ASSUMED not in found.flags,
            saturates=prior.saturating >= 0,
        )
        look = look_of(
            source.meta.name,
            context.stains.labels,
            context.stains.colors,
            prior.stain_matrix,
            context.b0,
            prior.spectral_correction,
            measured,
            {
                "checksum": source.meta.checksum,
                "mpp": context.grid.mpp,
                "software": __version__,
                "flags": list(prior.flags),
                "icc_sha256": source.meta.icc_sha256 if science.icc else None,
            },
        )
        foreign = np.isin(found.artifact, NO_TISSUE)
        cell = found.scale * context.grid.factor
        return replace(look, tissue=tissue, foreign=packed(foreign, cell))


def _even_fields(context: Context, prior: SlidePrior) -> Fields:
    """The fields of a slide whose stains do not drift; B is that of its glass."""
    from wsi_pgdips.records import Fields

    cells, tiles = context.background.shape[:2], context.grid.tile_grid
    n = len(prior.stain_matrix)
    s = np.tile(prior.stain_matrix, (*cells, 1, 1))
    m = np.tile(prior.spectral_correction, (*tiles, 1))
    raw = (np.tile(prior.stain_matrix, (*tiles, 1, 1)), m, context.tile_background)
    confidence, inherited = np.ones((*tiles, n), np.float32), np.zeros(tiles, bool)
    return Fields(s, m, context.background, *raw, confidence, inherited)
