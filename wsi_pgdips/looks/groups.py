"""The look of a group of slides: what a scanner, a laboratory or a staining day has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.hashed import Json
from wsi_pgdips.looks.reference import Reference, numbers, rows_of, triple
from wsi_pgdips.optics.physics import angle_deg, unit_rows

Float64 = npt.NDArray[np.float64]
_BOUNDED = 0.05  # the say of a B that was only bounded, relative to one that was measured
_ENOUGH_OD = 0.3  # M of a stain from which on more of it does not make its vector surer
_STEPS = 30  # of the robust mean
_MAD = 1.4826  # standard deviations of a normal distribution in a median deviation


def pool_looks(
    looks: Sequence[Reference], name: str = "group", tissue: Sequence[str | None] | None = None
) -> Reference:
    """Return the look of a group of slides, as ``reference fit`` writes it.

    Every number is a robust mean over the slides: slides that differ from most have less say. A
    vector counts by how much of its stain a slide holds, and B by whether the slide shows glass.

    Args:
        looks: of the slides; a group counts as its members. name: of the group.
        tissue: what each look shows, e.g. ``liver``; None keeps what the looks say.

    Raises:
        SettingsError: no looks, or another number of tissues. StainError: the stains differ.
    """
    if not looks:
        raise SettingsError("a group needs looks", expected="at least one", found=0)
    for look in looks:
        if not isinstance(look, Reference):
            raise SettingsError(
                "this is not a look",
                expected="a Reference, e.g. NormalizedSlide(...).look",
                found=type(look).__name__,
            )
    if tissue is not None:
        check_tissues(tissue, len(looks))
        looks = [
            replace(look, tissue=t, members=tuple(replace(m, tissue=t) for m in look.members))
            for look, t in zip(looks, tissue, strict=True)
        ]
    labels = looks[0].labels
    members = tuple(m for look in looks for m in look.ordered(labels).slides)
    # a slide's name may be that of a patient's case
    members = tuple(replace(m, name=str(k), foreign={}) for k, m in enumerate(members, 1))
    if len(members) == 1:
        return replace(members[0], name=name)
    return _pooled(members, name)


def check_tissues(tissue: Sequence[str | None], looks: int) -> None:
    """Refuse another number of tissues than of looks.

    Raises:
        SettingsError: they do not go together.
    """
    if isinstance(tissue, str) or len(tissue) != looks:
        raise SettingsError(
            "there must be one tissue a look", expected=looks, found=tissue, where="tissue"
        )


def _pooled(members: tuple[Reference, ...], name: str) -> Reference:
    first = members[0]
    spread: Json = {}
    says = np.array([[_say(m, k) for k in range(first.n)] for m in members])
    rows = np.array([m.matrix for m in members], np.float64)  # (slides, N, 3)
    matrix = unit_rows([robust_mean(rows[:, k], says[:, k]) for k in range(first.n)])
    apart = [angle_deg(rows[:, k], matrix[k]) for k in range(first.n)]
    spread["stain_vectors_deg"] = [round(_MAD * float(np.median(a)), 3) for a in apart]

    known = [m for m in members if m.background is not None]
    measured = any(m.glass_measured for m in known)
    say = np.array([1.0 if m.glass_measured else _BOUNDED for m in known])
    background = _mean("background", known, say, spread)
    # what spans decades is averaged as a logarithm
    known_m = [m.spectral_correction for m in members if m.spectral_correction is not None]
    log_m = [np.log(np.maximum(values, 1e-3)) for values in known_m]
    correction = None
    if log_m:
        found = robust_mean(np.array(log_m), np.ones(len(log_m)))
        correction = numbers(np.exp(found))
        spread["spectral_correction_share"] = _spread(np.array(log_m), found)
    coloured = [m for m in members if m.tissue_od]
    even = np.ones(len(coloured))
    colours = _mean("tissue_od", coloured, even, spread)
    texture = _mean("texture", coloured, even, spread)
    tissues = {m.tissue for m in members}
    return Reference(
        name,
        first.labels,
        first.colors,
        rows_of(matrix),
        None if background is None else triple(background),
        measured,
        correction,
        () if colours is None else rows_of(colours.reshape(-1, 3)),
        () if texture is None else numbers(texture),
        first.tissue if len(tissues) == 1 else None,
        members,
        spread,
        tuple(source for m in members for source in m.sources),
    )


def _mean(key: str, looks: Sequence[Reference], say: Float64, spread: Json) -> Float64 | None:
    """The robust mean of one number of some looks; how much they differ goes to ``spread``."""
    if not looks:
        return None
    values = np.array([np.ravel(getattr(look, key)) for look in looks], np.float64)
    found = robust_mean(values, say)
    spread[key] = _spread(values, found)
    return found


def _spread(values: Float64, centre: Float64) -> list[float]:
    """The robust standard deviation of (n, C) values from their centre."""
    return [round(float(v), 6) for v in _MAD * np.median(np.abs(values - centre), axis=0)]


def _say(look: Reference, k: int) -> float:
    """Return the weight of a slide in the vector of one of its stains, by how much it holds."""
    m = look.spectral_correction
    return 1.0 if m is None else float(np.clip(m[k] / _ENOUGH_OD, 0.01, 1.0))


def robust_mean(rows: Float64, weights: Float64) -> Float64:
    """Return the weighted geometric median of (n, C) rows, in which outliers have little say.

    Weiszfeld's iteration. Rows that are closer than the median distance count in full, so that few
    rows are averaged.
    """
    centre = np.average(rows, axis=0, weights=weights)
    for _ in range(_STEPS):
        distance = np.linalg.norm(rows - centre, axis=1)
        usual = max(float(np.median(distance)), 1e-9)
        centre = np.average(rows, axis=0, weights=weights * usual / np.maximum(distance, usual))
    return np.asarray(centre, np.float64)
