"""The figures that the verdict on a slide is made of, summed block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.layers.schema import SCALE_FACTOR
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.optics.stain_files import known_stains
from wsi_pgdips.records import Artifact, BoolArray, ByteArray, FloatArray, SlidePrior, StainSet
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.verdict import Evidence, judge

Sums = Mapping[str, npt.NDArray[np.float64]]
SUMS = ("sum_artifact", "sum_tissue", "sum_amounts", "sum_residual")
_STRIDE = 4  # of the pixels whose amounts are summed


def evidence_sums(
    codes: npt.NDArray[np.uint16],
    artifact: ByteArray,
    mask: BoolArray,
    residual_rms: npt.NDArray[np.uint16],
) -> dict[str, npt.NDArray[np.float64]]:
    """Sum what one block tells of its slide.

    Args:
        codes: (N, h, w) of q. artifact: (h, w). mask: (h, w), the dilated tissue.
        residual_rms: codes of ``qc/residual``.

    Returns:
        ``sum_artifact`` (5,) pixels of the mask by class; ``sum_tissue`` () pixels of the mask;
        ``sum_amounts`` (N + 1,) q in OD of a sample of pixels, and their number; ``sum_residual``
        (2,) squared residual, and the number of its pixels.
    """
    sample = codes[:, ::_STRIDE, ::_STRIDE]
    measured = sample[0] > 0
    amounts = [float(plane[measured].sum(dtype=np.float64)) * SCALE_FACTOR for plane in sample]
    left = residual_rms[residual_rms > 0].astype(np.float64) * SCALE_FACTOR
    return {
        "sum_artifact": np.bincount(artifact[mask], minlength=len(Artifact) + 1).astype(np.float64),
        "sum_tissue": np.array(float(np.count_nonzero(mask))),
        "sum_amounts": np.array([*amounts, float(np.count_nonzero(measured))]),
        "sum_residual": np.array([float((left**2).sum()), float(len(left))]),
    }


def vectors_used(
    stains: StainSet, prior: SlidePrior, slide_matrix: FloatArray
) -> list[dict[str, Any]]:
    """Return what was asked of each stain's vector, and what was used, ready for JSON."""
    angles = angle_deg(slide_matrix, stains.stain_matrix)
    out = []
    for k, label in enumerate(stains.labels):
        freedom = float(stains.freedom[k])
        asked = "fixed" if freedom == 0 else "refine" if np.isfinite(freedom) else "estimate"
        used = "the slide's own" if prior.measured[k] else "of the set"
        if freedom > 0 and not prior.measured[k]:
            used += ", as the slide does not show it"
        out.append(
            {
                "stain": label,
                "asked": asked if asked != "refine" else f"refine within {freedom:g} degrees",
                "used": used,
                "set_od": [float(v) for v in stains.matrix[k]],
                "start_od": [round(float(v), 6) for v in prior.library[k]],
                "used_od": [round(float(v), 6) for v in slide_matrix[k]],
                "angle_deg": round(float(angles[k]), 3),
            }
        )
    return out


def slide_verdict(
    context: Context,
    prior: SlidePrior,
    slide_matrix: FloatArray,
    blocks: Iterable[Sums],
    figures: Mapping[str, Any],
    failed: int,
) -> dict[str, Any]:
    """Return the verdict on a slide, see ``verdict.judge``, with its figures beside it.

    Args:
        blocks: of ``evidence_sums``. figures: of ``finish.slide_figures``.
        failed: number of tiles that could not be read or fitted.
    """
    n = context.stains.n
    total = {"sum_artifact": np.zeros(len(Artifact) + 1), "sum_tissue": np.zeros(())}
    total |= {"sum_amounts": np.zeros(n + 1), "sum_residual": np.zeros(2)}
    for sums in blocks:
        for name in SUMS:
            total[name] = total[name] + sums[name]
    area = max(float(total["sum_tissue"]), 1.0)
    tissue = context.tissue
    evidence = Evidence(
        stains=context.stains,
        prior=prior,
        stain_matrix=slide_matrix,
        flags=(*tissue.flags, *prior.flags),
        coverage=tissue.coverage,
        left_out_mm2=tissue.left_out,
        mask_mm2=float(tissue.mask.sum()) * (tissue.scale * context.grid.mpp) ** 2 * 1e-6,
        amounts=total["sum_amounts"][:n] / max(float(total["sum_amounts"][n]), 1.0),
        residual_od=float(np.sqrt(total["sum_residual"][0] / max(total["sum_residual"][1], 1.0))),
        artifact_share={c: float(total["sum_artifact"][c]) / area for c in Artifact},
        seam_step_od=figures.get("seam_step_od") or {},
        lattice_od=figures.get("lattice_p999") or {},
        tiles=int(figures["tiles"]),
        inherited=int(figures["tiles_inherited"]),
        failed=failed,
        known=known_stains(),
    )
    return {
        **judge(evidence),
        "figures": {
            "coverage": evidence.coverage,
            "left_out_mm2": dict(evidence.left_out_mm2),
            "mask_mm2": round(evidence.mask_mm2, 4),
            "residual_od": round(evidence.residual_od, 5),
            "amounts_od": [round(float(v), 5) for v in evidence.amounts],
            "artifact_share": {
                c.name.lower(): round(share, 6) for c, share in evidence.artifact_share.items()
            },
        },
    }
