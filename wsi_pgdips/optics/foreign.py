"""Foreign pixels: those whose colour the stains cannot make, such as ink, pigment and dirt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_pgdips.records import BoolArray

OUTSIDE = np.float32(np.sin(np.radians(10.0)))  # stains drift over a slide, but by less
NOISE_REACH, GLASS_ERROR_OD = 2.0, 0.01
LEAST_OD = 0.15  # shorter vectors have no direction to speak of


def is_foreign(
    strength: npt.NDArray[np.floating],
    outside: npt.NDArray[np.floating],
    noise: float = 0.0,
) -> BoolArray:
    """Find the pooled pixels that lie further than 10 degrees outside the cone of the stains.

    Args:
        strength: (...) length of OD - B. outside: (...) its distance to the cone, the length of
            the residual OD - B - q S. noise: of pooled OD.

    Returns:
        (...) bool.
    """
    limit = OUTSIDE * strength + np.float32(NOISE_REACH * noise + GLASS_ERROR_OD)
    return np.asarray((outside > limit) & (strength > LEAST_OD))
