"""The linear map of optical densities that takes each stain's typical colour to another's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.interpolate import smoothstep
from wsi_pgdips.records import Fields, FloatArray

MAX_STAINS = 3  # more vectors than channels have no inverse
MAX_DISAGREEMENT = 2.5
MAX_OFF_PLANE = 1.5  # of what the stains leave over, against their own gain
# OD over glass in the channel that absorbs least: from here on colours are not told, and not at all
DARK_OD, BLACK_OD = 0.7, 1.1
# 1 - cos of the angle between two typical colours (10 degrees) at which half of what they say of
# the colours between and beyond them is believed
HALF_TOLD = 0.015
MAX_LIFT_OD = 0.015  # what is palest in two slides may be more apart by what they show
_MAX_CONDITION = 100.0


def typical_pair(own: Reference, reference: Reference) -> tuple[FloatArray, FloatArray]:
    """(N, 3) typical colours, OD over glass, of a slide and of what it is to look like.

    A stain whose typical colour is not known on one side keeps its amount and takes the other
    side's vector only. Where typical amounts and M disagree on how much darker the reference is, it
    is not the same that is typical of both (a slide whose DAB is in one focus shows what it binds
    to unspecifically everywhere else): then M decides for that stain, and vectors for all, since a
    vector, the edge of the cone of colours, and a typical colour within it are no pair.
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
    """(N,) M of the reference over that of the slide; NaN where one is not known."""
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
    """(CY, CX, 3, 3) ``linear_map`` under the fields; None where that is ill-conditioned.

    The typical colours follow the stain field: T_n(x) = T_n + sum_m k_nm (S_m(x) - S0_m), with k
    the mixture of stains that T_n is. What is left of the space of colours, perpendicular to all
    stains, is turned with them, and scaled by ``off_plane``, or as they are in the geometric mean.

    Args:
        fields: of the slide. own: its look, S0 in it.
        source, target: (N, 3) typical colours, N at most 3. off_plane: as of ``off_plane_gain``.
    """
    s0 = own.stain_matrix.astype(np.float64)
    drift = np.einsum("nm,yxmc->yxnc", mixture(own, source), fields.stain_matrix - s0)
    return linear_map(source + drift, target, off_plane)


def linear_map(
    source: npt.NDArray[np.floating], target: FloatArray, off_plane: float | None = None
) -> npt.NDArray[np.float64] | None:
    """(..., 3, 3) A with A T_n = T_n of the reference, as far as typical colours tell it.

    Two that lie close together say by their small difference what becomes of all that lies between
    and beyond them: pure nuclei turn neon, and red cells black. So with E the map that is exact and
    R that which turns colours and scales them by one gain,

        A = R + (E - R) sum_i v_i v_i' e_i^2 / (e_i^2 + ``HALF_TOLD``^2)

    e_i and v_i eigenvalues and vectors of T'T, rows T of unit length: exact where stains differ.

    Args:
        source: (..., N, 3). target, off_plane: as of ``colour_maps``.
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
    told = strength**2 / (strength**2 + HALF_TOLD**2)
    apart = (exact - plain) @ (axes * told[..., None, :]) @ np.swapaxes(axes, -1, -2)
    return np.asarray(plain + apart, np.float64)


def lift(
    own: Reference,
    reference: Reference,
    source: FloatArray,
    target: FloatArray,
    off_plane: float | None = None,
) -> npt.NDArray[np.float64]:
    """(3,) OD that, beside a linear map of typical colours, takes what is palest to what is palest.

    Glare and the sharpening of a scanner add to tissue what no map without a constant takes off;
    bounded, since what is palest also depends on what a slide shows. 0 where it is not known.
    """
    if own.palest is None or reference.palest is None:
        return np.zeros(3)
    colours = linear_map(source, target, off_plane)
    if colours is None:
        return np.zeros(3)
    apart = np.asarray(reference.palest, np.float64) - colours @ np.asarray(own.palest)
    return np.asarray(np.clip(apart, -MAX_LIFT_OD, MAX_LIFT_OD), np.float64)


def keep_black(y: FloatArray, mapped: FloatArray) -> FloatArray:
    """A colour as it is mapped; what is black, as dark as it is mapped and in its own hue.

    Where little light is left in any channel, counts say what a camera's darkness is like and not
    which stains there are: taken for a mixture, black DAB turns teal.

    Args:
        y: (3, h, w) OD over glass. mapped: the same after the linear map.
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
    """Factor on what lies off the plane of two typical colours; None where it is not known.

    Sharpening and the primaries of a camera spread colours off the plane of the stains by other
    factors than in it. Bounded, since other tissue (blood, pigment) spreads them too.
    """
    if own.off_plane is None or reference.off_plane is None or own.n != 2:
        return None
    gain = _mean_gain(source, target)
    found = reference.off_plane / max(own.off_plane, 1e-6)
    return float(np.clip(found, gain / MAX_OFF_PLANE, gain * MAX_OFF_PLANE))


def _mean_gain(source: npt.NDArray[np.floating], target: FloatArray) -> float:
    """By how much stains are darker in ``target``, geometric mean."""
    lengths = np.linalg.norm(target, axis=-1) / np.linalg.norm(source, axis=-1)
    return float(np.exp(np.log(lengths).mean()))


def mixture(own: Reference, source: FloatArray) -> npt.NDArray[np.float64]:
    """(N, N) k: which mixture of the slide's stain vectors each typical colour is."""
    return np.asarray(source @ np.linalg.pinv(own.stain_matrix.astype(np.float64)), np.float64)


def _completed(rows: npt.NDArray[np.floating], length: float = 1.0) -> npt.NDArray[np.float64]:
    """(..., N, 3) made square by rows perpendicular to them, the same way everywhere."""
    full = np.asarray(rows, np.float64)
    while full.shape[-2] < 3:
        if full.shape[-2] == 2:
            extra = np.cross(full[..., 0, :], full[..., 1, :])
        else:
            extra = np.cross(full[..., 0, :], (0.0, -1.0, 1.0))  # no stain absorbs like this
        extra *= length / np.linalg.norm(extra, axis=-1, keepdims=True)
        full = np.concatenate([full, extra[..., None, :]], -2)
    return np.asarray(full, np.float64)
