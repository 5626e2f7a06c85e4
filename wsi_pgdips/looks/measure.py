"""What the stains of a slide look like where each is by itself: the typical colour."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi_pgdips.looks.reference import PERCENTILES, triple
from wsi_pgdips.records import FloatArray

# a pixel is a stain's own where that makes up more than half of what is there, without those that
# hold less than a quarter of the 95th percentile of all such pixels (decision 36)
OWN_SHARE = 0.5
OWN_AMOUNT, OWN_PERCENTILE = 0.25, 95.0
MIN_OWN_PIXELS = 200
# what is palest in tissue, gaps left out: where it is paler around than a share of what is dark
PALEST_PERCENTILE = 15.0
GAP_SHARE, DARK_PERCENTILE = 0.1, 95.0
AROUND_UM = 4.0  # sigma of the Gaussian that looks around
_SPREAD = (16.0, 84.0)  # percentiles: one standard deviation to each side, whatever the tails


def measure(
    od: FloatArray, q: FloatArray, presence: FloatArray, around: FloatArray
) -> dict[str, Any]:
    """Typical colours, what is palest, and percentiles of a sample of tissue pixels.

    The median and not a stain's vector, since vectors are edges of the cone of colours, which
    sharpening and noise of a camera move and most pixels never reach; and over a stain's own pixels
    and not over all, since how much of a slide a stain covers is not a matter of looks.

    Args:
        od: (3, n) OD - B, the residual included. q: (N, n) OD.
        presence: (N,) OD: a stain whose 99.5th percentile is below it is not there.
        around: (n,) mean OD - B around each pixel, a Gaussian of ``AROUND_UM``.

    Returns:
        JSON-ready: ``typical_od``, one row or None a stain, ``palest_od``, ``off_plane_od``,
        ``percentiles`` of q.
    """
    typical: list[tuple[float, float, float] | None] = []
    total = q.sum(0)
    top = np.percentile(q, 99.5, axis=1) if q.shape[1] else np.zeros(len(q))
    for k, amount in enumerate(q):
        own = (amount > OWN_SHARE * total) & (amount > 0)
        if own.any():
            own &= amount > OWN_AMOUNT * np.percentile(amount[own], OWN_PERCENTILE)
        enough = top[k] > presence[k] and own.sum() >= MIN_OWN_PIXELS
        typical.append(triple(np.median(od[:, own], 1)) if enough else None)
    palest = None
    if around.size:
        solid = around > GAP_SHARE * np.percentile(around, DARK_PERCENTILE)
        if solid.sum() >= MIN_OWN_PIXELS:
            palest = list(triple(np.percentile(od[:, solid], PALEST_PERCENTILE, axis=1)))
    values = np.percentile(q, PERCENTILES, axis=1) if q.shape[1] else np.zeros((0, len(q)))
    return {
        "typical_od": [None if row is None else list(row) for row in typical],
        "palest_od": palest,
        "off_plane_od": _off_plane(od, typical),
        "percentiles": {
            f"{p:g}": [round(float(v), 6) for v in row]
            for p, row in zip(PERCENTILES, values, strict=False)
        },
    }


def _off_plane(od: FloatArray, typical: list[tuple[float, float, float] | None]) -> float | None:
    """Spread of (3, n) OD perpendicular to two typical colours; None where there are not two."""
    rows = [row for row in typical if row is not None]
    if len(typical) != 2 or len(rows) != 2 or od.shape[1] < MIN_OWN_PIXELS:
        return None
    normal = np.cross(np.asarray(rows[0]), np.asarray(rows[1]))
    length = float(np.linalg.norm(normal))
    if length < 1e-9:
        return None
    low, high = np.percentile((normal / length) @ od, _SPREAD)
    return round(float(high - low) / 2, 6)
