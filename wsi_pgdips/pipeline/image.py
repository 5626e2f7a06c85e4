"""One image in memory: the same stages, nothing written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.config import make_settings
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.machine import choose_device, quiet_machine, usable_cpus
from wsi_pgdips.pipeline.record import TileFaults
from wsi_pgdips.records import BlockFit, BoolArray, Fields, FloatArray, SlidePrior, StainSet

if TYPE_CHECKING:
    import torch

    from wsi_pgdips.looks.reference import Reference
    from wsi_pgdips.stages.context import Context
    from wsi_pgdips.tiles.blocks import BlockPlan


@dataclass(frozen=True)
class Deconvolution:
    """The stains of one image.

    Attributes:
        concentration: (N, H, W) float32 q in OD along the unit stain vectors, NaN where there is
            no tissue nearby.
        stains: the N stains. stain_matrix: (N, 3) unit rows of the whole image.
        background: (3,) OD of glass. fields: S, M, B on the grid of its tiles.
        residual: (3, H, W) signed OD that the model leaves, NaN where not measured.
        tissue: (H, W) bool. flags: what could not be done on this image (``no_glass``...).
        look: colours of its stains and glass, as a reference for other images; None where
            ``render`` was called alone.
    """

    concentration: FloatArray
    stains: StainSet
    stain_matrix: FloatArray
    background: FloatArray
    fields: Fields
    residual: FloatArray
    tissue: BoolArray
    flags: tuple[str, ...]
    look: Reference | None = None


def deconvolve_image(
    array: npt.NDArray[np.uint8],
    stains: str = "he",
    preset: str = "balanced",
    mpp: float = 0.5,
    **options: Any,
) -> Deconvolution:
    """Compute the stain concentrations of an RGB image that fits in memory, e.g. one tile.

    While it runs, the process is as ``machine.quiet_machine`` makes it; afterwards it is as before.
    A tile that fails is logged as a warning, and takes the parameters of the image.

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
    image = checked_image(array, "deconvolved")
    settings = make_settings({"stains": stains, "preset": preset, "mpp": "native", **options})
    import torch

    from wsi_pgdips.optics.stain_files import load_stains
    from wsi_pgdips.slide.source import ArraySource
    from wsi_pgdips.stages.context import make_context

    science = settings.science.model_copy(update={"store_residual": True})
    device = torch.device(choose_device(settings.execution.device))
    threads = settings.execution.threads or usable_cpus()
    with quiet_machine():
        source = ArraySource(image, mpp=mpp, tile=science.tile, block=science.block)
        context = make_context(source, load_stains(stains, science.stain_vectors), science)
        solved = solve(context, device, threads)
        return replace(render(solved, device, threads), look=_measured_look(solved))


def checked_image(array: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.uint8]:
    """Return an image as an array, once its shape and type are checked.

    Args:
        what: what is to be done to it, for the message: "deconvolved".

    Raises:
        SettingsError: not an (H, W, 3) uint8 array.
    """
    image = np.asarray(array)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise SettingsError(
            f"the image cannot be {what}",
            expected="(height, width, 3) uint8 RGB",
            found=f"{image.shape} {image.dtype}",
        )
    return image


@dataclass(frozen=True)
class Solved:
    """An image after ``blend``: all that ``render`` takes.

    Attributes:
        fits: of its blocks. slide_matrix: (N, 3) unit rows of the whole image.
    """

    context: Context
    prior: SlidePrior
    fits: tuple[BlockFit, ...]
    fields: Fields
    slide_matrix: FloatArray


def solve(
    context: Context, device: torch.device, threads: int, prior: SlidePrior | None = None
) -> Solved:
    """Calibrate, fit and blend in memory; tiles that fail are logged as warnings.

    Args:
        prior: to take instead of calibrating.
    """
    from wsi_pgdips.stages.blend import blend
    from wsi_pgdips.stages.fit import calibrate, fit_block

    prior = prior or calibrate(context, device, threads)
    faults = TileFaults("fit")
    fits = tuple(
        fit_block(context, prior, p, device=device, threads=threads, batch=8, on_fault=faults.add)
        for p in context.plans
    )
    for line in faults.lines():
        logging.getLogger(__name__).warning(line)
    fields, slide_matrix = blend(context, prior, fits)
    return Solved(context, prior, fits, fields, slide_matrix)


def render(
    solved: Solved,
    device: torch.device,
    threads: int,
    parts: Sequence[tuple[BlockPlan, Fields]] | None = None,
) -> Deconvolution:
    """Render the concentrations of a solved image; the residual only where the settings store it.

    Args:
        parts: plans to render, each under its fields; by default all blocks under the blended ones.
    """
    from wsi_pgdips.layers.pyramid import decode
    from wsi_pgdips.stages.render import render_block

    context = solved.context
    height, width = context.grid.shape
    concentration = np.full((context.stains.n, height, width), np.nan, np.float32)
    residual = np.full((3, height, width), np.nan, np.float32)
    tissue = np.zeros((height, width), bool)
    maps = {
        (int(ty), int(tx)): q
        for fit in solved.fits
        if fit.concentration is not None
        for (ty, tx), q in zip(fit.index, fit.concentration, strict=True)
    }
    if parts is None:
        parts = [(plan, solved.fields) for plan in context.plans]
    for plan, fields in parts:
        block = context.grid.block_region(plan.by, plan.bx)
        rendered = render_block(
            context,
            solved.prior,
            fields,
            solved.slide_matrix,
            plan,
            maps.get,
            context.source,
            device=str(device),
            threads=threads,
        )
        own = block.slices
        measured = rendered.codes[0] > 0
        part = concentration[(slice(None), *own)]
        np.copyto(part, decode(rendered.codes), where=measured)
        if rendered.residual_od is not None:
            np.copyto(residual[(slice(None), *own)], rendered.residual_od, where=measured)
        tissue[own] |= rendered.tissue
    return Deconvolution(
        concentration,
        context.stains,
        solved.slide_matrix,
        context.b0,
        solved.fields,
        residual,
        tissue,
        solved.prior.flags,
    )


def _measured_look(solved: Solved) -> Reference:
    from wsi_pgdips.looks.slide_look import look_of
    from wsi_pgdips.stages.finish import look_in_run

    context, prior, fits = solved.context, solved.prior, solved.fits
    return look_of(
        context.source.meta.name,
        context.stains.labels,
        context.stains.colors,
        solved.slide_matrix,
        context.b0,
        prior.spectral_correction,
        look_in_run(context, solved.fields, solved.slide_matrix, fits, context.source),
        {"checksum": context.source.meta.checksum},
    )
