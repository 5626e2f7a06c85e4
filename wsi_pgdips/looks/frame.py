"""The linear map of optical densities that takes each stain's typical colour to another's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.interpolate import smoothstep
from wsi_pgdips.records import Fields, FloatArray

MAX_STAINS = 3  # more vectors than channels have no inverse
MAX_DISAGREEMENT = 2.5
MAX_OFF_PLANE = 1.5  # bound on the gain of colours off the stains' plane, over the stains' gain
# OD over glass in the channel that absorbs least: there hue begins to fade, and is gone
DARK_OD, BLACK_OD = 0.7, 1.1
# 1 - cos of the angle between two typical colours (10 degrees) at which half of their difference
# is applied to the colours between and beyond them
_HALF_TRUST = 0.015
_MAX_LIFT_OD = 0.015  # larger differences of the palest tissue come from what the slides show
_MAX_CONDITION = 100.0


def typical_pair(own: Reference, reference: Reference) -> tuple[FloatArray, FloatArray]:
    """Return the (N, 3) typical colours, OD over glass, of a slide and of its reference.

    If a stain's typical colour is known in one look only, the stain keeps its amount and only its
    vector changes. If typical amounts and M disagree on how much darker the reference is, then the
    two slides show different things by that stain: where DAB is in one focus, unspecific background
    is typical of the rest. M then decides for that stain, and vectors replace the typical colours
    of all stains, because a vector and a typical colour cannot be paired.
    """
    source, target = own.typical_od.copy(), reference.typical_od.copy()
    gain = _gain(own, reference)
    here, there = (np.linalg.norm(rows, axis=1) for rows in (source, target))
    known = np.isfinite(gain)
    apart = np.abs(np.log(np.where(known, there / here / gain, 1))) > np.log(MAX_DISAGREEMENT)
    if apart.any():
        there = np.where(apart, here * gain, there)
        source = np.where(known[:, None], own.stain_matrix * here[:, None], source)
        target = np.where(known[:, None], reference.stain_matrix * there[:, None], target)
    for k in range(own.n):
        if np.isnan(here[k]) and np.isnan(there[k]):
            source[k], target[k] = own.stain_matrix[k], reference.stain_matrix[k]
        elif np.isnan(here[k]):
            source[k] = own.stain_matrix[k] * there[k]
        elif np.isnan(there[k]):
            target[k] = reference.stain_matrix[k] * here[k]
    return np.asarray(source, np.float32), np.asarray(target, np.float32)


def _gain(own: Reference, reference: Reference) -> npt.NDArray[np.float64]:
    """Return the (N,) M of the reference over that of the slide; NaN if one is not known."""
    if own.spectral_correction is None or reference.spectral_correction is None:
        return np.full(own.n, np.nan)
    here = np.maximum(own.spectral_correction, 1e-3)
    known = np.isfinite(own.typical_od[:, 0]) & np.isfinite(reference.typical_od[:, 0])
    return np.where(known, np.maximum(reference.spectral_correction, 1e-3) / here, np.nan)


def colour_maps(
    fields: Fields,
    own: Reference,
    source: FloatArray,
    target: FloatArray,
    off_plane: float | None = None,
) -> npt.NDArray[np.float64] | None:
    """Return the (CY, CX, 3, 3) :func:`linear_map` at each cell; None if it is ill-conditioned.

    The typical colours follow the stain field: T_n(x) = T_n + sum_m k_nm (S_m(x) - S0_m), with k
    from :func:`mixture`. Directions perpendicular to all stains turn with the stains. They are
    scaled by ``off_plane``, or by default by the stains' mean gain.

    Args:
        fields: of the slide. own: the slide's look, with S0.
        source, target: (N, 3) typical colours, N at most 3. off_plane: see :func:`off_plane_gain`.
    """
    s0 = own.stain_matrix.astype(np.float64)
    drift = np.einsum("nm,yxmc->yxnc", mixture(own, source), fields.stain_matrix - s0)
    return linear_map(source + drift, target, off_plane)


def linear_map(
    source: npt.NDArray[np.floating], target: FloatArray, off_plane: float | None = None
) -> npt.NDArray[np.float64] | None:
    """Return (..., 3, 3) A with A T_n = T_n of the reference, damped where colours are close.

    If two typical colours lie close together, their small difference would decide about all colours
    between and beyond them: pure nuclei would turn neon, and red cells black. So let E be the exact
    map, and R the one that only turns colours and scales them by one gain. Then

        A = R + (E - R) sum_i v_i v_i' e_i^2 / (e_i^2 + ``_HALF_TRUST``^2)

    where e_i and v_i are eigenvalues and eigenvectors of T'T, with rows T of unit length. A is
    exact where the stains differ.

    Args:
        source: (..., N, 3). target: (N, 3). off_plane: see :func:`off_plane_gain`.

    Returns:
        float64, or None if the map is ill-conditioned.
    """
    gain = _mean_gain(source, target)
    here = _completed(source)
    there = _completed(target, gain if off_plane is None else off_plane)
    if max(np.linalg.cond(here).max(), np.linalg.cond(there)) > _MAX_CONDITION:
        return None
    length = np.linalg.norm(here, axis=-1, keepdims=True)
    h, t = here / length, there / length  # rows are colours
    exact = np.swapaxes(np.linalg.solve(h, t), -1, -2)
    left, _, right = np.linalg.svd(np.swapaxes(t, -1, -2) @ h)
    plain = gain * (left @ right)
    strength, axes = np.linalg.eigh(np.swapaxes(h, -1, -2) @ h)
    trust = strength**2 / (strength**2 + _HALF_TRUST**2)
    apart = (exact - plain) @ (axes * trust[..., None, :]) @ np.swapaxes(axes, -1, -2)
    return np.asarray(plain + apart, np.float64)


def lift(
    own: Reference,
    reference: Reference,
    source: FloatArray,
    target: FloatArray,
    off_plane: float | None = None,
) -> npt.NDArray[np.float64]:
    """Return the (3,) OD that, after the linear map, takes the palest tissue to the reference's.

    Glare and sharpening of a scanner add a constant to tissue, which a linear map cannot remove.
    The result is bounded, because the palest tissue also depends on what a slide shows. It is 0 if
    one of the two is not known.
    """
    if own.palest is None or reference.palest is None:
        return np.zeros(3)
    colours = linear_map(source, target, off_plane)
    if colours is None:
        return np.zeros(3)
    apart = np.asarray(reference.palest, np.float64) - colours @ np.asarray(own.palest)
    return np.asarray(np.clip(apart, -_MAX_LIFT_OD, _MAX_LIFT_OD), np.float64)


def keep_black(y: FloatArray, mapped: FloatArray) -> FloatArray:
    """Restore the hue of black pixels after a linear map; they keep its gain in darkness.

    Where little light is left in all channels, the counts show a camera's noise floor and not the
    mixture of stains: black DAB, taken for a mixture, would turn teal.

    Args:
        y: (3, h, w) OD over glass. mapped: the same after the linear map.

    Returns:
        (3, h, w) float32 OD over glass.
    """
    black = smoothstep(y.min(0), DARK_OD, BLACK_OD)
    if not black.any():
        return mapped
    strength = np.maximum(np.square(y).sum(0), 1e-12)
    gain = np.sqrt(np.square(mapped).sum(0) / strength)
    return np.asarray(mapped + black * (gain * y - mapped), np.float32)


def off_plane_gain(
    own: Reference, reference: Reference, source: FloatArray, target: FloatArray
) -> float | None:
    """Return the factor on colours off the plane of two typical colours; None if not known.

    Sharpening and the primaries of a camera spread colours off the stains' plane by other factors
    than within it. The factor is bounded, because blood and pigment spread colours too.
    """
    if own.off_plane is None or reference.off_plane is None or own.n != 2:
        return None
    gain = _mean_gain(source, target)
    found = reference.off_plane / max(own.off_plane, 1e-6)
    return float(np.clip(found, gain / MAX_OFF_PLANE, gain * MAX_OFF_PLANE))


def _mean_gain(source: npt.NDArray[np.floating], target: FloatArray) -> float:
    """Return how much darker stains are in ``target``, as a geometric mean."""
    lengths = np.linalg.norm(target, axis=-1) / np.linalg.norm(source, axis=-1)
    return float(np.exp(np.log(lengths).mean()))


def mixture(own: Reference, source: FloatArray) -> npt.NDArray[np.float64]:
    """Return (N, N) k: each typical colour as a mixture of the slide's stain vectors."""
    return np.asarray(source @ np.linalg.pinv(own.stain_matrix.astype(np.float64)), np.float64)


def _completed(rows: npt.NDArray[np.floating], length: float = 1.0) -> npt.NDArray[np.float64]:
    """Extend (..., N, 3) to square matrices by perpendicular rows, the same way everywhere."""
    full = np.asarray(rows, np.float64)
    while full.shape[-2] < 3:
        if full.shape[-2] == 2:
            extra = np.cross(full[..., 0, :], full[..., 1, :])
        else:
            extra = np.cross(full[..., 0, :], (0.0, -1.0, 1.0))  # a direction that no stain has
        extra *= length / np.linalg.norm(extra, axis=-1, keepdims=True)
        full = np.concatenate([full, extra[..., None, :]], -2)
    return np.asarray(full, np.float64)
