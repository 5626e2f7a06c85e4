"""The method with one part taken away or replaced, in memory: what each part is worth.

One render under three pairs of fields says what blended fields are worth, and what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.quality.methods import ABLATIONS_ON_PICTURES
from benchmarks.quality.picture import Result
from benchmarks.quality.scene import Scene
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.pipeline.image import Deconvolution, Solved, render, solve
from wsi_pgdips.records import BoolArray, Fields, FloatArray, SlidePrior, StainSet
from wsi_pgdips.slide.source import ArraySource, PyramidSource
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.presets import NETWORK_ONLY
from wsi_pgdips.stages import fit as fitting
from wsi_pgdips.stages.context import Context, make_context
from wsi_pgdips.stages.pixels import render_pixels


def _without_glass(context: Context) -> Context:
    return replace(
        context,
        background=np.zeros_like(context.background),
        b0=np.zeros_like(context.b0),
        tissue=replace(context.tissue, raised=None),
    )


def _free_stains(context: Context) -> Context:
    return replace(context, preset=replace(context.preset, field_source="parameters"))


_SETTINGS: dict[str, dict[str, float]] = {
    "exclusion": {"beta": 0.01},
    "pgdips-loss": {"alpha": 1.0, "beta": 0.01},
}
_PRIOR_WEIGHTS = {"no-network": 0.0, "no-data-consistency": NETWORK_ONLY}
# these differ from the method after the slide's prior only, and can be given it
SAME_PRIOR = ("no-network", "no-blending", "no-data-consistency", "no-stain-prior")
_CONTEXTS: dict[str, Callable[[Context], Context]] = {
    "no-glass": _without_glass,
    "no-stain-prior": _free_stains,
}
ABLATIONS = (*ABLATIONS_ON_PICTURES, "no-blending", "no-slide-prior")


def ablate(
    name: str,
    source: PyramidSource,
    stains: StainSet,
    settings: ScientificSettings,
    *,
    device: torch.device,
    threads: int,
    prior: SlidePrior | None = None,
) -> Deconvolution:
    """A picture deconvolved with one part of the method taken away, or put back.

    * ``no-blending``: every tile is rendered under its own parameters, constant over the tile.
    * ``no-data-consistency``: the network's maps are the result (Lambda 100).
    * ``no-glass``: B is 0.
    * ``no-stain-prior``: the slide's own vectors give way to the library's, and the fields come
      from the tiles' parameters, not from their statistics.
    * ``no-slide-prior``: each tile is a picture of its own, in the closed form.
    * ``no-network``: the closed form under the same fields (Lambda 0).

    Two put back what ``balanced`` does without: ``exclusion`` adds the exclusion loss to the
    training of the slide's network, ``pgdips-loss`` that and the reconstruction of real pixels.

    Args:
        source, stains, settings: as of a run. device, threads: as of a run.
        prior: of the method itself on this picture, where known; used by those of ``SAME_PRIOR``.

    Raises:
        SettingsError: no such ablation. SlideError: there is no tissue.
    """
    if name not in ABLATIONS:
        raise SettingsError("unknown ablation", expected=", ".join(ABLATIONS), found=name)
    if name == "no-slide-prior":
        # a network of its own for every tile is more than anybody would pay
        closed = settings.model_copy(update={"preset": "fast"})
        return _each_alone(source, stains, closed, device, threads)
    settings = settings.model_copy(update=_SETTINGS.get(name, {}))
    context = make_context(source, stains, settings)
    if name in _CONTEXTS:
        context = _CONTEXTS[name](context)
    if prior is None or name not in SAME_PRIOR:
        prior = fitting.calibrate(context, device, threads)
    if name == "no-stain-prior":
        prior = replace(prior, stain_matrix=stains.stain_matrix)
    if name in _PRIOR_WEIGHTS:
        weight = np.full(stains.n, _PRIOR_WEIGHTS[name], np.float32)
        prior = replace(prior, prior_weight=weight)
    solved = solve(context, device, threads, prior)
    return (
        render_unblended(solved, device, threads)
        if name == "no-blending"
        else render(solved, device, threads)
    )


def render_unblended(solved: Solved, device: torch.device, threads: int) -> Deconvolution:
    """Each tile under its own raw parameters; where it has none, under the slide's."""
    f, context = solved.fields, solved.context
    own = replace(
        f,
        stain_matrix=_filled(f.raw_stain_matrix, solved.slide_matrix),
        background=_filled(f.raw_background, context.b0),
    )

    def constant(tile: tuple[int, int]) -> Fields:
        return replace(
            own,
            stain_matrix=np.broadcast_to(own.stain_matrix[tile], own.stain_matrix.shape),
            background=np.broadcast_to(own.background[tile], own.background.shape),
        )

    parts = [
        (replace(plan, render=(tile,), fraction=(share,)), constant(tile))
        for plan in context.plans
        for tile, share in zip(plan.render, plan.fraction, strict=True)
    ]
    return replace(render(solved, device, threads, parts), fields=own)


def _filled(raw: FloatArray, instead: FloatArray) -> FloatArray:
    return np.where(np.isfinite(raw), raw, instead).astype(np.float32)


def _each_alone(
    source: PyramidSource,
    stains: StainSet,
    settings: ScientificSettings,
    device: torch.device,
    threads: int,
) -> Deconvolution:
    """Every tile from its own pixels alone; one without tissue of its own is not measured."""
    grid, n = source.grid, stains.n
    rows, columns = grid.tile_grid
    q = np.full((n, *grid.shape), np.nan, np.float32)
    tissue: BoolArray = np.zeros(grid.shape, bool)
    whole = Fields(
        stain_matrix=np.broadcast_to(stains.stain_matrix, (rows, columns, n, 3)).copy(),
        spectral_correction=np.ones((rows, columns, n), np.float32),
        background=np.zeros((rows, columns, 3), np.float32),
        raw_stain_matrix=np.full((rows, columns, n, 3), np.nan, np.float32),
        raw_spectral_correction=np.full((rows, columns, n), np.nan, np.float32),
        raw_background=np.full((rows, columns, 3), np.nan, np.float32),
        confidence=np.zeros((rows, columns, n), np.float32),
        inherited=np.ones((rows, columns), bool),
    )
    for tile in np.ndindex(rows, columns):
        r = grid.tile_region(*tile)
        pixels = source.read(r.y, r.x, r.h, r.w)
        alone = ArraySource(pixels, mpp=grid.mpp, tile=grid.tile, block=grid.block)
        try:
            context = make_context(alone, stains, settings)
        except SlideError:  # nothing but glass
            continue
        done = render(solve(context, device, threads), device, threads)
        own = r.slices
        q[(slice(None), *own)] = done.concentration
        tissue[own] = done.tissue
        whole.stain_matrix[tile] = done.fields.tile_stain_matrix[0, 0]
        whole.spectral_correction[tile] = done.fields.spectral_correction[0, 0]
        whole.background[tile] = done.fields.tile_background[0, 0]
        whole.inherited[tile] = False
    return Deconvolution(
        q,
        stains,
        stains.stain_matrix,
        np.zeros(3, np.float32),
        whole,
        np.full((3, *grid.shape), np.nan, np.float32),
        tissue,
        (),
    )


def render_under(
    od: FloatArray, solved: Solved, stain_field: FloatArray, background_field: FloatArray
) -> FloatArray:
    """Maps of a whole slide under given fields, by the render and the network of a solved run.

    Args:
        od: (3, H, W) of the whole slide. solved: whose network and Lambda are used.
        stain_field: (N, 3), or (N, 3, H, W) at the pixels. background_field: (3,) or (3, H, W).

    Returns:
        (N, H, W) float32 q.
    """
    prior = solved.prior
    if not prior.network:
        return _rendered(od, stain_field, background_field)
    weights = {k: torch.from_numpy(v) for k, v in prior.network.items()}
    pixels, s, b = (
        torch.from_numpy(np.ascontiguousarray(a)) for a in (od, stain_field, background_field)
    )
    h, w = od.shape[1:]
    gap = (0, -w % slide_network.MULTIPLE, 0, -h % slide_network.MULTIPLE)

    def padded(a: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(a, gap, mode="replicate") if a.ndim > 2 else a

    with torch.no_grad():
        q, _ = slide_network.estimate(
            weights, padded(pixels), padded(s), padded(b), float(prior.spectral_correction.mean())
        )
    anchor = q[:, :h, :w].clamp_min(0).numpy()
    return _rendered(od, stain_field, background_field, prior.prior_weight, anchor)


def _rendered(*arrays: FloatArray) -> FloatArray:
    """Return (N, H, W) q, from arrays in place of the tensors of ``render_pixels``."""
    with torch.no_grad():
        q, _ = render_pixels(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
    return np.asarray(q.numpy())


def fields_result(name: str, scene: Scene, solved: Solved) -> Result:
    """The result of ``fields-constant``, ``fields-oracle`` or ``fields-blended``."""
    od = scene.picture.od
    if name == "fields-constant":
        rows, background = solved.slide_matrix, solved.context.b0
        return Result(render_under(od, solved, rows, background), rows, background)
    if name == "fields-oracle":
        return Result(render_under(od, solved, *scene.pixel_fields()), *scene.tile_fields)
    fields, whole = solved.fields, Region(0, 0, *scene.grid.shape)
    s = interpolate(fields.stain_matrix, scene.grid, whole)
    s = np.asarray(s / np.maximum(np.sqrt((s * s).sum(1, keepdims=True)), 1e-6), np.float32)
    b = interpolate(fields.background, scene.grid, whole)
    return Result(render_under(od, solved, s, b), fields.tile_stain_matrix, fields.tile_background)


def gap_closed(constant: float, blended: float, oracle: float) -> float:
    """Share of the way from the constant fields' error to the true fields' that is gone; 1 is all.

    NaN where the true fields are no better than the constant.
    """
    return (constant - blended) / (constant - oracle) if constant > oracle else float("nan")
