"""The map of colours between two looks: what the scanner changes, and not what the tissue is.

The look of one slide mixes what scanner and laboratory do with what the tissue is. So two slides
are compared only where their tissue is alike, which two properties tell that no scanner changes:

* texture: how much of the variation of ranks of density survives blurring at several scales;
* whether *one* linear map of optical density takes the mean colours of all parts of one tissue to
  those of the other, parts being told apart by rank alone.

The probability that two slides show alike tissue is the weight with which they count in the map,
and the map is applied as far as any two are alike (decision 60). Without such evidence it is the
identity, and glass alone is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.looks.groups import robust_mean
from wsi_pgdips.looks.reference import Reference

Float64 = npt.NDArray[np.float64]
# what alike tissue differs by on two scanners: colours after the map, relative; texture
_COLOUR, _TEXTURE = 0.035, 0.018
_LIMIT = 8.0  # sum of both squares at which alike and different are equally probable
_ODDS, _LABELLED = 0.5, 50.0  # of alike tissue before anything is compared, without labels and with
_JUDGED, _RIDGE = 0.01, 0.01  # strength of the prior in judging a pair, and in the final map
_OWN_RIDGE = 0.05  # of a slide's own map, towards its group's
_MANY = 12  # slides on both sides, from which their mixtures of tissues are alike
_EVEN, _CERTAIN = 0.5, 0.9  # probabilities that two sides are alike: nothing done, all done
_SURE = 4  # slides that need not all find a partner
MARGIN = 0.02  # of the shares of channels, beyond which colours count as outside


@dataclass(frozen=True)
class Inside:
    """The colours that a map was estimated on: y = OD - B, and t its sum over the channels.

    Attributes:
        top: largest t. low, high: least and largest shares of t in the red and the blue channel.
    """

    top: float
    low: tuple[float, float]
    high: tuple[float, float]

    @classmethod
    def of(cls, colours: npt.ArrayLike) -> Inside:
        """The colours around (..., 3) mean colours of tissue."""
        y = np.asarray(colours, np.float64).reshape(-1, 3)
        total = y.sum(1)
        strong = total > 0.2 * total.max()  # the shares of pale colours are noise
        share = y[strong][:, [0, 2]] / total[strong, None]
        low, high = share.min(0) - MARGIN, share.max(0) + MARGIN
        return cls(float(total.max()), (low[0], low[1]), (high[0], high[1]))

    def nearest(self, y: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Return the nearest colours inside, for (3, ...) y."""
        total = np.clip(y.sum(0), 0, self.top)
        divisor = np.maximum(y.sum(0), 1e-6)
        red, blue = (
            np.clip(y[c] / divisor, self.low[k], self.high[k]) for k, c in enumerate((0, 2))
        )
        return np.stack([red * total, (1 - red - blue) * total, blue * total])


@dataclass(frozen=True)
class ColourChange:
    """A linear map of OD over glass, and what it rests on.

    Attributes:
        matrix: (3, 3) A, y' = A y. inside: the colours that it was estimated on.
        evidence: 0 to 1, how far the looks support it; it is already in ``matrix``.
        compared: how many slides of both sides are more probably alike than not.
        labelled: tissues of both sides that were compared by name, None where no names are known.
    """

    matrix: Float64
    inside: Inside | None
    evidence: float
    compared: int
    labelled: tuple[str, ...] | None = None


def match_looks(own: Reference, target: Reference, group: Reference | None = None) -> ColourChange:
    """Return the map of colours from a slide's look to a target's.

    Args:
        own: the look of the slide. target: of a slide or a group.
        group: of the slide's scanner, laboratory or staining day. Its map is taken, moved towards
            the slide's own by evidence.
    """
    base = _match((own if group is None else group).slides, target.slides)
    if group is None:
        return base
    mine = _match((own,), target.slides, prior=base.matrix, ridge=_OWN_RIDGE)
    return ColourChange(
        mine.matrix,
        base.inside or mine.inside,
        1 - (1 - base.evidence) * (1 - mine.evidence),
        base.compared,
        base.labelled,
    )


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: (n, K, 3) mean colours and (n, T) textures of slides or tissues."""

    colours: Float64
    texture: Float64
    tissue: tuple[str | None, ...]


def _match(
    sources: Sequence[Reference],
    targets: Sequence[Reference],
    prior: Float64 | None = None,
    ridge: float = _RIDGE,
) -> ColourChange:
    start = np.eye(3) if prior is None else prior
    known = [[m for m in side if m.tissue_od and m.texture] for side in (sources, targets)]
    names = [{m.tissue for m in side if m.tissue is not None} for side in known]
    shared = tuple(sorted(names[0] & names[1])) if names[0] and names[1] else None
    nothing = ColourChange(start, None, 0.0, 0, shared)
    if not all(known):
        return nothing
    here, there = (_side(side) for side in known)
    odds = np.array(
        [[_odds(a, b, len(there.tissue)) for b in there.tissue] for a in here.tissue], np.float64
    )
    alike = odds * np.exp(_LIMIT - _misfit(here, there))
    alike /= 1 + alike.sum(1, keepdims=True)
    found = _sure(1 - (1 - float(alike.sum(1).mean())) ** min(len(alike), _SURE))
    pairs = [(here.colours[i], there.colours[j]) for i, j in np.ndindex(*alike.shape)]
    weights = alike.ravel()
    if min(map(len, known)) >= _MANY and shared is None:
        mixed = [_mixture(side) for side in known]
        pairs.append((mixed[0].colours[0], mixed[1].colours[0]))
        likely = float(1 / (1 + np.exp(_misfit(*mixed)[0, 0] - _LIMIT)))
        weights, found = np.append(weights, likely), max(found, _sure(likely))
    if found < 1e-3:
        return nothing
    matrix = _fit(pairs, weights, ridge, prior)
    inside = Inside.of(
        [p[0] for p, w in zip(pairs, weights, strict=True) if w > 0.1] or here.colours
    )
    return ColourChange(
        start + found * (matrix - start), inside, found, int((weights > 0.5).sum()), shared
    )


def _sure(probability: float) -> float:
    """Return the share of a map to apply: 0 up to an even probability, 1 from ``_CERTAIN`` on."""
    return float(np.clip((probability - _EVEN) / (_CERTAIN - _EVEN), 0, 1))


def _side(looks: Sequence[Reference]) -> _Side:
    """Slides without a label stand alone; those of one tissue are pooled."""
    parts: list[list[Reference]] = [[m] for m in looks if m.tissue is None]
    for name in sorted({m.tissue for m in looks if m.tissue is not None}):
        parts.append([m for m in looks if m.tissue == name])
    sides = [_mixture(part) for part in parts]
    return _Side(
        np.concatenate([s.colours for s in sides]),
        np.concatenate([s.texture for s in sides]),
        tuple(part[0].tissue for part in parts),
    )


def _mixture(looks: Sequence[Reference]) -> _Side:
    even = np.ones(len(looks))
    colours = robust_mean(np.array([np.ravel(m.tissue_od) for m in looks]), even)
    texture = robust_mean(np.array([m.texture for m in looks]), even)
    return _Side(colours.reshape(1, -1, 3), texture[None], (None,))


def _odds(here: str | None, there: str | None, targets: int) -> float:
    """The odds that two parts show alike tissue, before they are compared."""
    if here is None or there is None:
        return _ODDS / targets
    return _LABELLED if here == there else 0.0


def _misfit(here: _Side, there: _Side) -> Float64:
    """Return the (n, m) misfits between the tissues of two sides; 0 for the same tissue."""
    out = np.empty((len(here.colours), len(there.colours)))
    for i, j in np.ndindex(*out.shape):
        x, y = here.colours[i], there.colours[j]
        left = x @ _fit([(x, y)], np.ones(1), _JUDGED).T - y
        colour = np.sqrt((left**2).mean() / max((y**2).mean(), 1e-12))
        texture = np.sqrt(((here.texture[i] - there.texture[j]) ** 2).mean())
        out[i, j] = (colour / _COLOUR) ** 2 + (texture / _TEXTURE) ** 2
    return out


def _fit(
    pairs: Sequence[tuple[Float64, Float64]],
    weights: Float64,
    ridge: float,
    prior: Float64 | None = None,
) -> Float64:
    """Return the (3, 3) A that minimises sum w |A x - y|^2 / |x|^2 + ridge |A - prior|^2.

    The prior is by default a gain, which alike slides on two scanners may well differ by.
    """
    square, cross, gain = np.zeros((3, 3)), np.zeros((3, 3)), 0.0
    weights = weights / weights.sum()
    for (x, y), w in zip(pairs, weights, strict=True):
        energy = max(float((x * x).sum()), 1e-12)
        square += w * x.T @ x / energy
        cross += w * x.T @ y / energy
        gain += w * np.log(max(float((x * y).sum()) / energy, 1e-3))
    start = np.exp(gain) * np.eye(3) if prior is None else prior
    change = np.linalg.solve(square + ridge / 3 * np.eye(3), cross - square @ start.T)
    return np.asarray(start + change.T, np.float64)
