"""The lattice index: how much of a regular dot pattern the network adds to a map (decision 51).

A network that upsamples can write dots at a distance of 2 or 4 pixels. The index of a window is the
mean of each of the 2x2 and 4x4 pixel phases, largest minus smallest, of the final map less that of
the closed form. Edges and noise are in both maps, so only what the network adds counts.

``render`` counts the indices of each block in a histogram; the figures are taken when all blocks
are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WINDOW = 16  # pixels
MOST_OD = 0.012  # index that a window may have
PERCENTILE = 99.9
BIN_OD = 1e-3  # width of a bin of the histogram
BINS = 2001  # the last one holds every index of 2 OD and more
_PERIOD = 4
Counts = npt.NDArray[np.int64]


def lattice_index(final: Tensor, closed: Tensor) -> Tensor:
    """Compute the index of each whole window.

    Args:
        final, closed: (N, h, w) maps in OD.

    Returns:
        (N, h // 16, w // 16) OD, at least 0.
    """
    two, four = (
        after - before for after, before in zip(_ranges(final), _ranges(closed), strict=True)
    )
    return torch.maximum(two, four).clamp_min_(0)


def _ranges(q: Tensor) -> tuple[Tensor, Tensor]:
    """The largest less the smallest mean of the 2x2 and of the 4x4 phases, for each window."""
    phases = _phases(q)
    halves = phases.reshape(*phases.shape[:3], 2, 2, 2, 2).mean((3, 5))
    return tuple(  # type: ignore[return-value]
        p.amax((-1, -2)) - p.amin((-1, -2)) for p in (halves, phases)
    )


def _phases(q: Tensor) -> Tensor:
    """The mean of each 4x4 phase in each window: (N, h, w) -> (N, h // 16, w // 16, 4, 4)."""
    n, down, across = len(q), q.shape[1] // WINDOW, q.shape[2] // WINDOW
    per = WINDOW // _PERIOD
    rows = q[:, : down * WINDOW].reshape(n, down, per, _PERIOD, -1).mean(2)
    whole = rows[..., : across * WINDOW].reshape(n, down, _PERIOD, across, per, _PERIOD)
    return whole.mean(4).transpose(2, 3)


def without_lattice(final: Tensor, closed: Tensor, index: Tensor) -> Tensor:
    """Take the periodic part of a change out of each window whose index is beyond ``MOST_OD``.

    The periodic part is the mean of each 4x4 phase of ``final - closed``, less the window's mean:
    15 numbers for 256 pixels. The index is convex in it, so taking out a share of it leaves at most
    the rest of the index.

    Args:
        final, closed: (N, h, w) maps in OD. index: of :func:`lattice_index`.

    Returns:
        (N, h, w), at least 0; ``final`` itself where there is nothing to do.
    """
    if not index.numel() or float(index.max()) <= MOST_OD:
        return final
    n, down, across = index.shape
    periodic = _phases(final) - _phases(closed)
    periodic = periodic - periodic.mean((3, 4), keepdim=True)
    periodic = periodic * (1 - MOST_OD / index.clamp_min(MOST_OD))[..., None, None]
    per = WINDOW // _PERIOD
    rows = periodic.transpose(2, 3)[:, :, None, :, :, None]  # (N, down, 1, 4, across, 1, 4)
    whole = rows.expand(n, down, per, _PERIOD, across, per, _PERIOD)
    moved = final.clone()
    moved[:, : down * WINDOW, : across * WINDOW] -= whole.reshape(n, down * WINDOW, across * WINDOW)
    return moved.clamp_min_(0)


def count(index: Tensor) -> Counts:
    """Return the histogram of the indices of each stain: (N, ...) OD -> (N, BINS)."""
    codes = (index.flatten(1) * (1 / BIN_OD)).round_().clamp_(max=BINS - 1)
    rows = codes.to(torch.int64).cpu().numpy()
    return np.stack([np.bincount(row, minlength=BINS) for row in rows])


def lattice_figures(
    labels: Sequence[str], counts: Iterable[Counts]
) -> dict[str, dict[str, float | None]]:
    """Return the 99.9th percentile and the largest index of a slide, to a bin's width.

    Args:
        labels: of the N stains. counts: (N, BINS) of each block; zeros without a network.

    Returns:
        Name of the figure -> label -> OD, None where nothing was measured.
    """
    total = sum(counts, np.zeros((len(labels), BINS), np.int64))
    figures: dict[str, dict[str, float | None]] = {"lattice_p999": {}, "lattice_max": {}}
    for label, row in zip(labels, total, strict=True):
        reached, windows = np.cumsum(row), int(row.sum())
        for name, share in (("lattice_p999", PERCENTILE / 100), ("lattice_max", 1.0)):
            at = int(np.searchsorted(reached, share * windows)) * BIN_OD
            figures[name][label] = at if windows else None
    return figures
