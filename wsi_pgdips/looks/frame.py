"""The linear map of optical densities that takes each stain's typical colour to another's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.records import Fields, FloatArray

MAX_STAINS = 3  # more vectors than channels have no inverse
_MAX_CONDITION = 100.0


def typical_pair(own: Reference, reference: Reference) -> tuple[FloatArray, FloatArray]:
    """(N, 3) typical colours, OD over glass, of a slide and of what it is to look like.

    A stain whose typical colour is not known on one side keeps its amount and takes the other
    side's vector only.
    """
    source, target = own.typical_od.copy(), reference.typical_od.copy()
    for k in range(own.n):
        known_here, known_there = np.isfinite(source[k, 0]), np.isfinite(target[k, 0])
        if not known_here and not known_there:
            source[k], target[k] = own.stain_matrix[k], reference.stain_matrix[k]
        elif not known_here:
            source[k] = own.stain_matrix[k] * np.linalg.norm(target[k])
        elif not known_there:
            target[k] = reference.stain_matrix[k] * np.linalg.norm(source[k])
    return source, target


def colour_maps(
    fields: Fields, own: Reference, source: FloatArray, target: FloatArray
) -> npt.NDArray[np.float64] | None:
    """(CY, CX, 3, 3) A with A T_n(x) = T_n of the reference; None where that is ill-conditioned.

    The typical colours follow the stain field: T_n(x) = T_n + sum_m k_nm (S_m(x) - S0_m), with k
    the mixture of stains that T_n is. What is left of the space of colours, perpendicular to all
    stains, is turned with them and keeps its length.

    Args:
        fields: of the slide. own: its look, S0 in it.
        source, target: (N, 3) typical colours, N at most 3.
    """
    s0 = own.stain_matrix.astype(np.float64)
    drift = np.einsum("nm,yxmc->yxnc", mixture(own, source), fields.stain_matrix - s0)
    here, there = _completed(source + drift), _completed(target.astype(np.float64))
    if max(np.linalg.cond(here).max(), np.linalg.cond(there)) > _MAX_CONDITION:
        return None
    # rows are colours: here A' = there
    maps = np.linalg.solve(here, np.broadcast_to(there, here.shape))
    return np.asarray(np.swapaxes(maps, -1, -2), np.float64)


def mixture(own: Reference, source: FloatArray) -> npt.NDArray[np.float64]:
    """(N, N) k: which mixture of the slide's stain vectors each typical colour is."""
    return np.asarray(source @ np.linalg.pinv(own.stain_matrix.astype(np.float64)), np.float64)


def _completed(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(..., N, 3) made square by unit rows perpendicular to them, the same way everywhere."""
    full = np.asarray(rows, np.float64)
    while full.shape[-2] < 3:
        if full.shape[-2] == 2:
            extra = np.cross(full[..., 0, :], full[..., 1, :])
        else:
            extra = np.cross(full[..., 0, :], (0.0, -1.0, 1.0))  # no stain absorbs like this
        extra /= np.linalg.norm(extra, axis=-1, keepdims=True)
        full = np.concatenate([full, extra[..., None, :]], -2)
    return np.asarray(full, np.float64)
