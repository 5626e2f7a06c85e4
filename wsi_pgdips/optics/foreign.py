"""Pixels that the stains do not explain: foreign ones, and those so dark that colour says little.

A foreign pixel has a colour that the stains cannot make, such as ink, pigment and dirt.

DAB does not follow the Beer-Lambert law: with its amount, its colour runs from brown to black,
because a scanner records some light whatever absorbs it. Black lies between hematoxylin and DAB, so
unmixing takes it for much of both. What black is, its surroundings tell: near brown it is DAB,
elsewhere it is foreign (decision 56).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

OUTSIDE = np.float32(np.sin(np.radians(10.0)))  # stains drift over a slide, but by less
NOISE_REACH, GLASS_ERROR_OD = 2.0, 0.01
LEAST_OD = 0.15  # shorter vectors have no direction to speak of
DARK_OD, BLACK_OD = 0.5, 0.8  # the lowest channel, where a colour begins and ends to turn black
# the sum of a unit vector's channels, 10 and 6 degrees from grey: says nothing, and carbon
NEAR_GREY, GREY = (float(np.sqrt(3.0) * np.cos(np.radians(d))) for d in (10.0, 6.0))
GREY_OD = 0.45  # a paler one may be a mixture
OFF_GREY = 0.1  # part of a vector's length, away from grey towards the stain
BROWN_OD, BROWN_SHARE = 0.25, 0.6  # least amount and share of a saturating stain in its own colour
FEW_BROWN, MUCH_BROWN = 0.02, 0.2  # brown pixels for each black one: foreign, and surely the stain


def is_foreign(strength: Any, outside: Any, noise: float = 0.0) -> Any:
    """Find the pooled pixels that lie further than 10 degrees outside the cone of the stains.

    Args:
        strength: (...) length of OD - B. outside: (...) its distance to the cone, the length of
            the residual OD - B - q S. noise: of pooled OD. Arrays or tensors.

    Returns:
        (...) bool.
    """
    limit = strength * float(OUTSIDE) + (NOISE_REACH * noise + GLASS_ERROR_OD)
    return (outside > limit) & (strength > LEAST_OD)


def smooth_share(values: Any, low: float, high: float) -> Any:
    """Return a smooth step from 0 at ``low`` to 1 at ``high``, of an array or a tensor."""
    t = ((values - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def is_grey(y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Find the pixels that may be a saturated stain or carbon: those so dark or grey.

    Args:
        y: (..., 3) OD - B.

    Returns:
        (...) bool. Such colours lie between hematoxylin and DAB and tell nothing of either.
    """
    length = np.sqrt((y * y).sum(-1))
    return np.asarray((y.min(-1) > DARK_OD) | (y.sum(-1) > NEAR_GREY * length))


def is_carbon(y: Any, length: Any) -> Any:
    """Find the pixels that are as dark and grey as carbon, or as a saturated stain.

    Args:
        y: (3, ...) OD - B, and its ``length``, arrays or tensors.
    """
    return (y.sum(0) > GREY * length) & (length > GREY_OD)


def is_brown(
    y: npt.NDArray[Any], q: npt.NDArray[Any], stain: int, vector: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Find the pixels that clearly show a saturating stain in its own colour, not grey.

    Args:
        y: (3, ...) OD - B. q: (N, ...) OD. stain: its row in ``q``. vector: (3,) its usual one.
    """
    off_grey = vector - vector.mean()
    off_grey = off_grey / np.linalg.norm(off_grey)
    coloured = np.tensordot(off_grey, y, 1) > OFF_GREY * np.sqrt((y * y).sum(0))
    own = q[stain]
    found = (own > BROWN_OD) & (own > BROWN_SHARE * q.sum(0)) & (y.min(0) < DARK_OD)
    return np.asarray(found & coloured)
