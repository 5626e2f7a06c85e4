"""The smallest cone of three stains that holds the slide's colours (decision 24).

Pure pixels of one of three stains may be rare, but pixels that lack one stain are not: they lie on
the faces of the cone. So the cone is shrunk until its faces meet them. A pixel pays for lying
further outside a face than its noise explains, the cone pays for its volume.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import FloatArray

Floats = npt.NDArray[np.float64]

MAX_PIXELS = 8000
OUTSIDE = 1500.0  # price of an OD outside, over that of a relative change of volume
NOISE_SHARE, NOISE_OD = 0.013, 0.001  # of pooled OD: three channels leave none to measure it in
REACH, GLASS_ERROR_OD = 2.0, 0.002  # as for two stains (``optics.cone``)
MIN_SEPARATION_SHARE = 0.5  # of the library's angles; a cone that collapsed is refused
_STEP = 0.05  # radians, of the first simplex


def smallest_cone(y: FloatArray, start: FloatArray, library: FloatArray) -> FloatArray:
    """Rows of the smallest cone.

    Args:
        y: (P, 3) glass-corrected, pooled OD. start: (3, 3) unit rows. library: (3, 3).

    Returns:
        (3, 3) unit rows; ``start`` where the cone collapsed. The search is Nelder and Mead's, from
        ``start``, over the directions of the three rows, on every so manieth pixel by strength.
    """
    strength = np.linalg.norm(y.astype(np.float64), axis=1)
    order = np.argsort(strength, kind="stable")[:: max(len(y) // MAX_PIXELS, 1)]
    pixels, strength = y[order].astype(np.float64), strength[order]
    margin = (REACH * (NOISE_SHARE * strength + NOISE_OD) + GLASS_ERROR_OD)[:, None]
    weight = strength / strength.sum()
    base = start.astype(np.float64)
    sideways = np.stack([np.linalg.svd(row[None])[2][1:] for row in base])  # (3, 2, 3)

    def rows(turn: Floats) -> Floats:
        moved = base + np.einsum("nk,nkc->nc", turn.reshape(3, 2), sideways)
        return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True))

    def cost(turn: Floats) -> float:
        cone = rows(turn)
        volume = abs(float(np.linalg.det(cone)))
        if volume < 1e-4:
            return 1e3
        faces = np.linalg.inv(cone)  # a column is normal to the face of the other two
        inside = pixels @ (faces / np.linalg.norm(faces, axis=0))
        outside = np.maximum(-inside - margin, 0).sum(1)
        negative = np.maximum(-cone, 0).sum()  # stains absorb
        return float(np.log(volume) + OUTSIDE * (weight @ outside) + 100 * negative)

    simplex = np.concatenate([np.zeros((1, 6)), _STEP * np.eye(6)])
    options = {"initial_simplex": simplex, "maxiter": 500, "xatol": 3e-4, "fatol": 1e-5}
    found = unit_rows(rows(minimize(cost, np.zeros(6), method="Nelder-Mead", options=options).x))
    for i, j in combinations(range(3), 2):
        if angle_deg(found[i], found[j]) < MIN_SEPARATION_SHARE * angle_deg(library[i], library[j]):
            return start
    return found
