"""One render under three pairs of fields: what blended fields are worth, and what is left."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.quality.picture import Result
from benchmarks.quality.scene import Scene
from wsi_pgdips.geometry import Region
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.pipeline.image import Solved
from wsi_pgdips.records import FloatArray
from wsi_pgdips.solver import slide_network
from wsi_pgdips.stages.pixels import render_pixels


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
