"""Looks of made-up stains."""

from __future__ import annotations

import numpy as np

from wsi_pgdips.looks.reference import Reference, rows_of
from wsi_pgdips.looks.slide_look import MEASURES

TILE = 64
TEXTURE = (0.7, 0.55, 0.4, 0.3)


def unit(row):
    return tuple(np.asarray(row, float) / np.linalg.norm(row))


def vectors(n=2, tilt=0.0):
    rows = [(0.65, 0.70 + tilt, 0.29), (0.27 + tilt, 0.57, 0.78), (0.15, 0.9, 0.2 + tilt)][:n]
    return tuple(unit(v) for v in rows)


def amounts(n=2, tissue=0):
    """(14, n) amounts of stain in the parts of a tissue; each number is another tissue."""
    rng = np.random.default_rng(tissue)
    return rng.uniform(0.05, 0.6, (MEASURES[0], n)) ** (1 + tissue % 3)


def look(n=2, scale=1.0, tilt=0.0, glass=0.02, name="look", tissue=0, label=None) -> Reference:
    """The look of a tissue, by a scanner that makes it so dark and turns its stains."""
    rows = vectors(n, tilt)
    return Reference(
        name,
        ("A", "B", "C")[:n],
        ("ff0000", "00ff00", "0000ff")[:n],
        rows_of(rows),
        (glass, glass + 0.01, glass),
        True,
        tuple(scale * m for m in (1.2, 1.5, 0.9)[:n]),
        rows_of(scale * amounts(n, tissue) @ np.array(rows)),
        tuple(t + 0.07 * (tissue % 4) for t in TEXTURE),
        label,
    )
