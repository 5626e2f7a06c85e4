"""Looks of made-up stains."""

from __future__ import annotations

import numpy as np

from wsi_pgdips.looks.reference import Reference

TILE = 64


def unit(row):
    return tuple(np.asarray(row, float) / np.linalg.norm(row))


def look(n=2, scale=1.0, tilt=0.0, glass=0.02, name="look") -> Reference:
    vectors = [(0.65, 0.70 + tilt, 0.29), (0.27 + tilt, 0.57, 0.78), (0.15, 0.9, 0.2 + tilt)][:n]
    typical = [tuple(scale * 0.5 * np.array(unit(v))) for v in vectors]
    return Reference(
        name,
        ("A", "B", "C")[:n],
        ("ff0000", "00ff00", "0000ff")[:n],
        tuple(unit(v) for v in vectors),
        (glass, glass + 0.01, glass),
        tuple(scale * m for m in (1.2, 1.5, 0.9)[:n]),
        tuple(typical),
    )
