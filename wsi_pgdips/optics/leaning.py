"""How far the edges of a cone of colours may lean inwards, and what the library says of it.

Mixtures lie inside the cone of their stains, so where few pixels are pure an edge can only be too
far in, never too far out. How many are pure shows in how much of a side lies close to its edge.
Where that is little, or where the whole cone is much narrower than the library's, an edge is moved
outwards, towards the library's vector and not beyond it. An edge with pure pixels stays. Mixtures
do not say either how a stain leaves their plane; there, too, the library is asked.

An edge far out of the bulk of its side, and out of the library's vector too, is carried by pigment,
ink or a fringe of colour; it comes in to where pixels support it, and not further than the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.optics.cone import EDGES, supported_edges

Floats = npt.NDArray[np.float64]

NEAR = np.radians(4.0)
PURE_SHARE = (0.05, 0.15)  # of a side's strength near its edge: none is pure, enough are
# an edge leans in by less on real texture, and a stain may differ by more from the library's
FURTHEST = np.radians(5.0)
LEAST_WIDTH = 0.75  # of the angle between the library's stains


def leaned_tilt(
    tilt: npt.NDArray[Any],
    histograms: npt.NDArray[Any],
    edges: npt.NDArray[Any],
    library: npt.NDArray[Any],
    normal: npt.NDArray[Any],
) -> Floats:
    """(2,) how stains leave the plane: as the library's do where no pixel is pure (decision 31).

    Args:
        tilt: (2,) measured, per unit of what lies in the plane. histograms, edges: as for
            :func:`pure_shares`. library: (2, 3) unit rows. normal: (3,) of the plane.
    """
    height = np.asarray(library, np.float64) @ np.asarray(normal, np.float64)
    known = height / np.sqrt(np.maximum(1 - height**2, 1e-6))
    return np.asarray(tilt + doubts(histograms, edges) * (known - tilt))


def pure_shares(histograms: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    """(2,) share of each side's strength that lies near its edge, or beyond.

    Args:
        histograms: (2, ANGLE_BINS) of the two sides (``optics.cone``), nothing of the other side.
        edges: (2,) radians.
    """
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    near = np.stack([centres < edges[0] + NEAR, centres > edges[1] - NEAR])
    mass = histograms.sum(1)
    return np.asarray((histograms * near).sum(1) / np.maximum(mass, 1e-12), np.float64)


def leaned(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """(2,) the edges, radians, after both moves; arguments as of :func:`outward`."""
    kept = inward(histograms, edges, library)
    return np.asarray(kept + outward(histograms, kept, library))


def doubts(histograms: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    """(2,) 0 where enough pixels near an edge are pure, 1 where none is; as :func:`pure_shares`."""
    none, enough = PURE_SHARE
    share = (pure_shares(histograms, edges) - none) / (enough - none)
    return np.asarray(1 - np.clip(share, 0, 1))


def inward(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """(2,) the edges, those further out than the library and than their pixels support moved in."""
    allowed = supported_edges(histograms)
    target = np.array([min(allowed[0], library[0]), max(allowed[1], library[1])])
    out = np.array([-1.0, 1.0])
    beyond = np.nan_to_num(np.maximum((edges - target) * out, 0))
    return np.asarray(edges - out * beyond)


def outward(
    histograms: npt.NDArray[Any], edges: npt.NDArray[Any], library: npt.NDArray[Any]
) -> Floats:
    """(2,) radians to add to the edges.

    Args:
        histograms: as for :func:`pure_shares`. edges: (2,) radians. library: (2,) angles of the
            library's stains in the same plane.
    """
    out = np.array([-1.0, 1.0])
    gap = np.maximum((library - edges) * out, 0)
    move = doubts(histograms, edges) * np.minimum(gap, FURTHEST)
    missing = LEAST_WIDTH * (library[1] - library[0]) - (edges[1] - edges[0]) - move.sum()
    left = gap - move
    if missing > 0 and left.sum() > 0:
        move += left * min(missing / left.sum(), 1.0)
    return np.asarray(out * move)
