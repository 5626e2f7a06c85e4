"""Pixels along the four sides of a tile, kept for the seam step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_pgdips.records import BoolArray, FloatArray

SIDES = ("top", "bottom", "left", "right")
TileIndex = tuple[int, int]
BORDER = 2  # pixel rows or columns kept along each side


@dataclass(frozen=True)
class Strips:
    """Along the four sides of one tile: d = q - q(S0, B0) of the same pixels.

    Attributes:
        blended: side -> (N, L, 2), outermost pixel first. unblended: the same with the tile's own
            parameters instead of the fields. tissue: side -> (L, 2) bool.
    """

    blended: dict[str, FloatArray]
    unblended: dict[str, FloatArray]
    tissue: dict[str, BoolArray]


def pack(strips: dict[TileIndex, Strips], side: int) -> dict[str, npt.NDArray[Any]]:
    """The strips of a block in four arrays: a file of hundreds takes longer to write than they do.

    Args:
        side: of a tile; shorter sides are filled up, with NaN and False.

    Returns:
        ``tiles`` (T, 2), ``blended`` and ``unblended`` (T, 4, N, side, 2) float32, ``tissue``
        (T, 4, side, 2) bool; the second axis is that of ``SIDES``.
    """
    tiles = sorted(strips)
    stains = len(strips[tiles[0]].blended[SIDES[0]]) if tiles else 0
    shape = (len(tiles), len(SIDES), stains, side, BORDER)
    blended, unblended = (np.full(shape, np.nan, np.float32) for _ in range(2))
    tissue = np.zeros((*shape[:2], side, BORDER), bool)
    for t, tile in enumerate(tiles):
        own = strips[tile]
        for s, name in enumerate(SIDES):
            length, depth = own.tissue[name].shape
            blended[t, s, :, :length, :depth] = own.blended[name]
            unblended[t, s, :, :length, :depth] = own.unblended[name]
            tissue[t, s, :length, :depth] = own.tissue[name]
    index = np.array(tiles, np.int32).reshape(-1, 2)
    return {"tiles": index, "blended": blended, "unblended": unblended, "tissue": tissue}


def along_sides(a: Tensor) -> Tensor:
    """(C, h, w) -> (C, P): its four strips of (L, 2), outermost pixel first, end to end."""
    strips = (
        a[:, :BORDER].mT,
        a[:, -BORDER:].mT.flip(-1),
        a[:, :, :BORDER],
        a[:, :, -BORDER:].flip(-1),
    )
    return torch.cat([s.reshape(len(a), -1) for s in strips], 1)


def by_side(along: Tensor, size: tuple[int, int]) -> dict[str, FloatArray]:
    """(C, P) of :func:`along_sides` of (C, h, w) as side -> (C, L, 2)."""
    h, w = size
    rows, columns = min(BORDER, h), min(BORDER, w)
    shapes = ((w, rows), (w, rows), (h, columns), (h, columns))
    parts = along.tensor_split(np.cumsum([a * b for a, b in shapes])[:-1].tolist(), 1)
    return {
        side: part.reshape(len(along), *shape).numpy()
        for side, part, shape in zip(SIDES, parts, shapes, strict=True)
    }
