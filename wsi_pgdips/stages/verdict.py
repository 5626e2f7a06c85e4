"""The verdict on a slide: ``pass``, ``review`` or ``fail``, with reasons in plain words.

Each check compares one figure of the run with a threshold. docs/verdict.md says which data the
thresholds come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.records import Artifact, FloatArray, SlidePrior, StainSet

Status = Literal["pass", "review", "fail"]
Finding = tuple[Status, str]
_WORSE: tuple[Status, ...] = ("pass", "review", "fail")

COVERED, COVERED_LEAST = 0.9, 0.5  # share of stained pixels inside the mask
FAR_DEG = 18.0  # of a slide's vector from the library's
# of a vector that is no longer close to its stain, and by which another known stain is closer
OFF_DEG, NEARER_DEG = 12.0, 4.0
CLOSE_DEG, SAME_DEG = 10.0, 5.0  # between two vectors
UNSEEN_SHARE = 0.15  # of the density, given to a stain whose vector the slide does not show
FOREIGN, FOREIGN_MOST = 0.02, 0.3  # share of tissue
SATURATED = 0.005  # share of tissue
INK = 0.1  # area of ink, relative to the mask
RESIDUAL = 0.25  # of the density that the stains leave unexplained
INHERITED = 0.3  # share of the tiles
LATTICE_OD, SEAM_OD = 0.02, 0.015

_FLAGS: Mapping[str, str] = {
    "no_glass": "the slide shows no bare glass, so the white point is a guess",
    "glass_saturated": "bare glass is clipped to white, so the white point is a guess",
    "unwritten_tiles": "parts inside the tissue were never scanned or hold a constant value",
    "ink_over_tissue": "ink goes on over tissue, where it is too pale to be told from it; "
    "draw a mask without it (--mask)",
    "perhaps_cytology": "much of what is stained lies in small pieces that count as dust; "
    "for a smear give --specimen cytology",
    "overview_unreadable": "parts of the slide could not be read when tissue was searched",
    "calibration_unread": "some tiles for the calibration could not be read",
    "red_and_blue_swapped": "the stains fit better with red and blue swapped: is the file BGR?",
    "network_diverged": "the network could not be trained; the closed form was used",
}


@dataclass(frozen=True)
class Evidence:
    """The figures of a run that the verdict is made of.

    Attributes:
        stains: the set. prior: of the slide. stain_matrix: (N, 3) of the slide.
        flags: of tissue and prior. coverage, left_out_mm2: of ``TissueMap``. mask_mm2: of the mask.
        amounts: (N,) mean q of tissue. residual_od: its root mean square.
        artifact_share: class -> share of the tissue. seam_step_od: label -> OD or None.
        lattice_od: label -> 99.9th percentile of the lattice index, None without a network.
        tiles, inherited, failed: numbers of tiles.
        known: (set, label, vector) of stains of the library.
    """

    stains: StainSet
    prior: SlidePrior
    stain_matrix: FloatArray
    flags: Sequence[str]
    coverage: float
    left_out_mm2: Mapping[str, float]
    mask_mm2: float
    amounts: npt.NDArray[np.float64]
    residual_od: float
    artifact_share: Mapping[Artifact, float]
    seam_step_od: Mapping[str, float | None]
    tiles: int
    inherited: int
    failed: int
    lattice_od: Mapping[str, float | None] = field(default_factory=dict)
    known: Sequence[tuple[str, str, Sequence[float]]] = ()


def judge(evidence: Evidence) -> dict[str, Any]:
    """Return ``{"status": ..., "reasons": [...]}``, ready for JSON; no reasons for a pass."""
    found = [f for check in _CHECKS for f in check(evidence)]
    status = max((s for s, _ in found), key=_WORSE.index, default="pass")
    found.sort(key=lambda f: -_WORSE.index(f[0]))
    return {"status": status, "reasons": [reason for _, reason in found]}


def _coverage(e: Evidence) -> Iterator[Finding]:
    if "mask_from_file" not in e.flags and e.coverage < COVERED:
        status: Status = "fail" if e.coverage < COVERED_LEAST else "review"
        why = ", ".join(f"{name} {mm2:.3g} mm2" for name, mm2 in e.left_out_mm2.items())
        yield status, f"{_percent(1 - e.coverage)} of what is stained is outside the mask ({why})"
    ink = e.left_out_mm2.get("ink", 0.0)
    if ink > INK * e.mask_mm2:
        yield "review", f"ink covers {ink:.3g} mm2, which counts as no tissue"
    for flag, reason in _FLAGS.items():
        if flag in e.flags:
            yield "review", reason
    if e.failed:
        yield "review", f"{e.failed} of {e.tiles} tiles could not be read or fitted"


def _vectors(e: Evidence) -> Iterator[Finding]:
    far = angle_deg(e.stain_matrix, e.prior.library) if len(e.prior.library) else None
    total = max(float(e.amounts.sum()), 1e-9)
    for k, label in enumerate(e.stains.labels):
        if e.stains.freedom[k] == 0 or far is None:
            continue
        share = float(e.amounts[k]) / total
        if not e.prior.measured[k]:
            if share > UNSEEN_SHARE:
                yield (
                    "review",
                    f"the slide does not show the colour of {label}; the library's is used, and "
                    f"{_percent(share)} of the density is given to it",
                )
            continue
        other = _nearest(e, k)
        if far[k] > OFF_DEG and other is not None and far[k] - other[1] > NEARER_DEG:
            yield (
                "review",
                f"the colour found for {label} is {far[k]:.0f} degrees from the library's and "
                f"{other[1]:.0f} from {other[0]}: is --stains {e.stains.name} right?",
            )
        elif far[k] > FAR_DEG:
            yield "review", f"the colour of {label} is {far[k]:.0f} degrees from the library's"
    if not e.prior.measured.any() and (e.stains.freedom > 0).all():
        yield "review", "the slide shows the colour of none of its stains"


def _nearest(e: Evidence, k: int) -> tuple[str, float] | None:
    """The known stain, of other name than those of the set, that a vector is closest to."""
    own = {label.lower() for label in e.stains.labels}
    others = [
        (f"{label} (set {name})", float(angle_deg(e.stain_matrix[k], vector)))
        for name, label, vector in e.known
        if label.lower() not in own
    ]
    return min(others, key=lambda o: o[1], default=None)


def _identifiable(e: Evidence) -> Iterator[Finding]:
    for i, j in combinations(range(e.stains.n), 2):
        angle = float(angle_deg(e.stain_matrix[i], e.stain_matrix[j]))
        if angle < CLOSE_DEG and min(e.stains.freedom[i], e.stains.freedom[j]) > 0:
            a, b = e.stains.labels[i], e.stains.labels[j]
            status: Status = "fail" if angle < SAME_DEG else "review"
            yield status, f"{a} and {b} are {angle:.0f} degrees apart and hardly told apart"


def _explained(e: Evidence) -> Iterator[Finding]:
    names = " and ".join(e.stains.labels)
    foreign = max(e.artifact_share.get(Artifact.FOREIGN, 0.0), e.prior.foreign)
    if foreign > FOREIGN:
        status: Status = "fail" if foreign > FOREIGN_MOST else "review"
        yield status, f"{_percent(foreign)} of the tissue has a colour that {names} cannot make"
    saturated = e.artifact_share.get(Artifact.SATURATED, 0.0)
    if saturated > SATURATED:
        label = e.stains.labels[e.stains.saturating]
        yield (
            "review",
            f"{_percent(saturated)} of the tissue is black of {label}: its amount there is a "
            "lower bound, and that of the other stains is not known",
        )
    density = float(np.linalg.norm(e.amounts @ e.stain_matrix))
    if e.residual_od > RESIDUAL * density:
        share = e.residual_od / max(density, 1e-9)
        yield "review", f"{names} leave {_percent(share)} of the density unexplained"


def _maps(e: Evidence) -> Iterator[Finding]:
    for label, index in e.lattice_od.items():
        if index is not None and index > LATTICE_OD:
            yield "review", f"the network wrote dots of {index:.3f} OD into {label}"
    for label, step in e.seam_step_od.items():
        if step is not None and step > SEAM_OD:
            yield "review", f"tile borders show in {label}, by {step:.4f} OD"
    if e.inherited > INHERITED * e.tiles:
        yield "review", f"{e.inherited} of {e.tiles} tiles hold too little to be fitted"


_CHECKS = (_coverage, _vectors, _identifiable, _explained, _maps)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
