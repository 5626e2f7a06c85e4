"""Colour distances between two slides, structure by structure, on samples of their tissue."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_pgdips.looks.distance import Masks, distances, structures
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.stains import load_stains
from wsi_pgdips.records import ByteArray, StainSet
from wsi_pgdips.slide.reader import fallback_mpp, open_source
from wsi_pgdips.tiles.glass import background_field
from wsi_pgdips.tiles.tissue import find_tissue

WINDOWS, SIDE = 48, 256

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """Structure -> ``od`` and ``lab`` distance of A to B, and of what A was made of, if given."""

    after: Table
    before: Table | None


def compare_slides(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    before: str | os.PathLike[str] | None = None,
    stains: str = "he",
    mpp: float = 0.5,
    mpp_source: float | None = None,
) -> Comparison:
    """1-Wasserstein distances of colour, in optical density and CIELAB.

    Each over its own tissue, and over nuclei, stroma and DAB as library vectors and Otsu's
    thresholds find them: a distance over the whole also says how much of what the slides hold.

    Args:
        a, b: slides or images, e.g. a normalised export and a slide it is to look like.
        before: what ``a`` was made of, for the distance before.
        stains: library set whose fixed vectors find the structures. mpp: of the comparison.
        mpp_source: of files that do not say theirs.
    """
    library = load_stains(stains)
    seen = [_sample(path, library, mpp, mpp_source) for path in (a, b)]
    after = distances(seen[0][0], seen[1][0], seen[0][1], seen[1][1])
    if before is None:
        return Comparison(after, None)
    rgb, masks = _sample(before, library, mpp, mpp_source)
    return Comparison(after, distances(rgb, seen[1][0], masks, seen[1][1]))


def _sample(
    path: str | os.PathLike[str], library: StainSet, mpp: float, mpp_source: float | None
) -> tuple[ByteArray, Masks]:
    """Windows of a slide in one tall picture, and the masks of its structures."""
    told = fallback_mpp(path, mpp_source)
    with contextlib.closing(open_source(Path(path), mpp=mpp, mpp_source=told)) as source:
        tissue, grid = find_tissue(source), source.grid
        glass, _, _ = background_field(tissue, grid)  # (CY, CX, 3)
        height, width = grid.shape
        side = min(SIDE, height, width)
        places = [
            (y, x)
            for y in range(0, height - side + 1, side)
            for x in range(0, width - side + 1, side)
            if tissue.window(y, x, side, side).mean() > 0.5
        ] or [((height - side) // 2, (width - side) // 2)]
        picked = np.unique(np.linspace(0, len(places) - 1, WINDOWS).astype(int))
        windows = [(*places[i], side, side) for i in picked]
        rgb = np.concatenate([source.read(*w) for w in windows])
        inside = np.concatenate([tissue.window(*w) for w in windows])
    od = rgb_to_od(rgb).transpose(2, 0, 1) - glass.reshape(-1, 3).mean(0)[:, None, None]
    return rgb, structures(np.asarray(od, np.float32), inside, library, grid.mpp)
