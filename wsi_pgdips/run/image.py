"""One image in memory: the same stages, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.config import make_settings
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.records import BlockFit, BoolArray, Fields, FloatArray, StainSet

Map = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Deconvolution:
    """Result for one image.

    Attributes:
        concentration: (N, H, W) float32 q in OD along the unit stain vectors, NaN where there is
            no tissue nearby.
        stains: the N stains. stain_matrix: (N, 3) unit rows of the whole image.
        background: (3,) OD of glass. fields: S, M, B on the grid of its tiles.
        residual: (3, H, W) signed OD that the model leaves, NaN where not measured.
        tissue: (H, W) bool. flags: words on what could not be done (``no_glass``...).
    """

    concentration: FloatArray
    stains: StainSet
    stain_matrix: FloatArray
    background: FloatArray
    fields: Fields
    residual: FloatArray
    tissue: BoolArray
    flags: tuple[str, ...]


def deconvolve_image(
    array: npt.NDArray[np.uint8],
    stains: str = "he",
    preset: str = "balanced",
    mpp: float = 0.5,
    **options: Any,
) -> Deconvolution:
    """Stain concentrations of an RGB image that fits in memory, e.g. one tile.

    Args:
        array: (H, W, 3) uint8 RGB, brightfield. stains: name of a set or path of its TOML.
        preset: ``balanced``, ``fast`` or ``paper``. mpp: micrometres per pixel of the array.
        options: further fields of ``config.ScientificSettings`` and ``ExecutionSettings``.

    Returns:
        Concentrations at the array's own resolution; the array may be smaller than a tile.

    Raises:
        SettingsError: not an (H, W, 3) uint8 array, or a bad option.
        SlideError: there is no tissue in the image.
    """
    image = np.asarray(array)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise SettingsError(
            "the image cannot be deconvolved",
            expected="(height, width, 3) uint8 RGB",
            found=f"{image.shape} {image.dtype}",
        )
    settings = make_settings({"stains": stains, "preset": preset, "mpp": "native", **options})
    import torch

    from wsi_pgdips.layers.pyramid import decode
    from wsi_pgdips.optics.stains import load_stains
    from wsi_pgdips.run import blending, fitting, pool, rendering, worker
    from wsi_pgdips.run.context import make_context
    from wsi_pgdips.slide.source import ArraySource

    science = settings.science.model_copy(update={"store_residual": True})
    device = torch.device(pool.choose_device(settings.execution.device))
    threads = settings.execution.threads or pool.usable_cpus()
    worker.quiet_threads()
    source = ArraySource(image, mpp=mpp, tile=science.tile, block=science.block)
    context = make_context(source, load_stains(stains), science)
    prior = fitting.calibrate(context, device, threads)
    fits = [
        fitting.fit_block(context, prior, p, device=device, threads=threads, batch=8)
        for p in context.plans
    ]
    fields, slide_matrix = blending.blend(context, prior, fits)
    height, width = source.grid.shape
    concentration = np.full((context.stains.n, height, width), np.nan, np.float32)
    residual = np.full((3, height, width), np.nan, np.float32)
    tissue = np.zeros((height, width), bool)
    for plan in context.plans:
        block = source.grid.block_region(plan.by, plan.bx)
        rendered = rendering.render_block(
            context,
            prior,
            fields,
            slide_matrix,
            plan,
            _maps(fits),
            device=str(device),
            threads=threads,
        )
        own = np.s_[block.y : block.stop_y, block.x : block.stop_x]
        concentration[(slice(None), *own)] = decode(rendered.codes)
        if rendered.residual_od is not None:
            measured = rendered.codes[0] > 0
            residual[(slice(None), *own)] = np.where(measured, rendered.residual_od, np.nan)
        tissue[own] = rendered.tissue
    return Deconvolution(
        concentration,
        context.stains,
        slide_matrix,
        context.b0,
        fields,
        residual,
        tissue,
        prior.flags,
    )


def _maps(fits: list[BlockFit]) -> Callable[[tuple[int, int]], Map | None]:
    found: dict[tuple[int, int], Map] = {}
    for fit in fits:
        if fit.concentration is not None:
            for (ty, tx), q in zip(fit.index, fit.concentration, strict=True):
                found[int(ty), int(tx)] = q
    return found.get
