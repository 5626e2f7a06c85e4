"""The stain library: named sets of OD colour vectors. Sets are read from TOML, checked and saved,
and a single stain is fitted to pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import StainError
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import FloatArray, StainSet

MAX_STAINS = 8
MIN_ANGLE_DEG = 5.0
MIN_COMPONENT = -0.1
# the direction of a shorter vector is mostly noise of 8-bit pixels near white
MIN_SIGNAL_OD = 0.15
MIN_PIXELS = 16
_HEX = re.compile(r"[0-9a-fA-F]{6}")


def make_stain_set(
    name: str,
    labels: Sequence[str],
    matrix: npt.ArrayLike,
    *,
    colors: Sequence[str | None] | None = None,
    source: str = "",
    freedom_deg: Sequence[float] = (),
    alternatives: Sequence[Sequence[Sequence[float]]] = (),
    saturating: int = -1,
    where: object = None,
) -> StainSet:
    """Check the parts of a stain set and make it.

    Args:
        name: short name of the set.
        labels: N distinct display names.
        matrix: (N, 3) OD vectors (R, G, B) of any length; stored as unit rows.
        colors: N colours of six hex digits; None, for the whole or for one stain, derives them.
        source: origin of the vectors.
        freedom_deg, alternatives, saturating: see ``StainSet``; by default all vectors are
            estimated, and there is nothing else.
        where: file or option that an error message names.

    Raises:
        StainError: the number of stains is not 1 to 8; labels are equal or empty; a vector is zero
            or not finite, or has a part below -0.1 after scaling; two vectors are closer than 5
            degrees; a colour is malformed.
    """
    try:
        rows = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or rows.shape != (len(labels), 3) or not 1 <= len(rows) <= MAX_STAINS:
        raise StainError(
            "a stain set needs one OD vector of three numbers for each label",
            expected=f"1 to {MAX_STAINS} labels and a matrix of shape (labels, 3)",
            found=f"{len(labels)} labels, matrix of shape {rows.shape}",
            where=where,
        )
    if len({label.strip().lower() for label in labels}) < len(labels) or not all(
        label.strip() for label in labels
    ):
        raise StainError("stain labels must be distinct and not empty", found=labels, where=where)
    unit = _checked_unit_rows(rows, labels, where)
    given = list(colors) if colors is not None else [None] * len(labels)
    if len(given) != len(labels):
        raise StainError(
            "a stain set needs one colour for each stain",
            expected=f"{len(labels)} colours",
            found=len(given),
            where=where,
        )
    chosen = tuple(
        color if color is not None else derive_color(row)
        for color, row in zip(given, unit, strict=True)
    )
    for color in chosen:
        if not _HEX.fullmatch(color):
            raise StainError(
                "a stain colour is malformed",
                expected="six hex digits without #, such as 8a5a2b",
                found=color,
                where=where,
            )
    others = tuple(
        _checked_unit_rows(np.asarray(rows, np.float64), [label] * len(rows), where, apart=False)
        for label, rows in zip(labels, alternatives or ((),) * len(labels), strict=True)
    )
    freedom = tuple(freedom_deg) or (math.inf,) * len(labels)
    return StainSet(name, tuple(labels), chosen, unit, source, freedom, others, saturating)


def derive_color(od: npt.ArrayLike) -> str:
    """Derive a display colour, six hex digits: the hue of light after one OD of the stain.

    Its brightest channel is 255, so that channels drawn additively on black remain distinct.
    """
    light = np.power(10.0, -np.asarray(od, np.float64))
    return "".join(f"{int(v):02x}" for v in np.rint(255 * light / light.max()))


def fit_single_stain(od: npt.ArrayLike, background: npt.ArrayLike) -> FloatArray:
    """Fit the direction of one stain to pixels that hold no other stain.

    The result is the spherical median (Weiszfeld iterations, each pixel weighted by its length) of
    OD - B over the pixels that are dark enough to have a direction. A minority of other colours
    moves it little.

    Args:
        od: (M, 3) optical densities of a region of one stain.
        background: (3,) OD of glass.

    Returns:
        (3,) float32 unit vector.

    Raises:
        StainError: too few pixels are darker than the background.
    """
    signal = np.asarray(od, np.float64).reshape(-1, 3) - np.asarray(background, np.float64)
    length = np.linalg.norm(signal, axis=1)
    keep = np.isfinite(length) & (length >= MIN_SIGNAL_OD) & (signal.sum(axis=1) > 0)
    if keep.sum() < MIN_PIXELS:
        raise StainError(
            "the region is too pale to fit a stain",
            expected=f"at least {MIN_PIXELS} pixels with an OD of {MIN_SIGNAL_OD} over glass",
            found=f"{int(keep.sum())} pixels",
            hint="choose a region that the stain fills",
        )
    length, direction = length[keep], signal[keep] / length[keep, None]
    mean = np.median(direction, axis=0)
    for _ in range(50):
        distance = np.linalg.norm(direction - mean, axis=1)
        new = (length / np.maximum(distance, 1e-6)) @ direction
        new /= np.linalg.norm(new)
        moved, mean = float(np.linalg.norm(new - mean)), new
        if moved < 1e-7:
            break
    return unit_rows(mean)


def match_rows(
    estimated: npt.ArrayLike, library: npt.ArrayLike
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Match estimated rows to library stains, by the least total squared angle.

    Args:
        estimated: (N, 3) OD vectors in any order.
        library: (N, 3) OD vectors in the wanted order.

    Returns:
        A permutation (N,) such that ``estimated[permutation]`` is in the library's order, and the
        angles (N,) in degrees of the matched rows.

    Raises:
        ValueError: the two arrays do not have one shape (N, 3).
    """
    from scipy.optimize import linear_sum_assignment

    a, b = np.asarray(estimated, np.float64), np.asarray(library, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 3:
        raise ValueError(
            f"match_rows needs two arrays of one shape (N, 3), got {a.shape}, {b.shape}"
        )
    angles = angle_deg(b[:, None], a[None])  # (library, estimated)
    rows, permutation = linear_sum_assignment(angles**2)
    return np.asarray(permutation), angles[rows, permutation]


def _checked_unit_rows(
    rows: npt.NDArray[np.float64], labels: Sequence[str], where: object, *, apart: bool = True
) -> tuple[tuple[float, float, float], ...]:
    unit = []
    for label, row in zip(labels, rows, strict=True):
        norm = float(np.linalg.norm(row))
        if not math.isfinite(norm) or norm == 0:
            raise StainError(
                "an OD vector must be finite and not zero",
                found=f"{label}: {row.tolist()}",
                where=where,
            )
        # unit rows keep their bits, so that saving and loading is exact
        r, g, b = (float(v) for v in (row if abs(norm - 1) < 1e-6 else row / norm))
        if min(r, g, b) < MIN_COMPONENT:
            raise StainError(
                "an OD vector has a negative part: a stain absorbs light, it does not emit",
                expected=f"unit-length components of at least {MIN_COMPONENT}",
                found=f"{label}: {[round(v, 3) for v in (r, g, b)]}",
                where=where,
            )
        unit.append((r, g, b))
    for i in range(len(unit) if apart else 0):
        for j in range(i):
            angle = float(angle_deg(unit[i], unit[j]))
            if angle < MIN_ANGLE_DEG:
                raise StainError(
                    "two stains have nearly the same colour and cannot be told apart",
                    expected=f"at least {MIN_ANGLE_DEG:g} degrees between any two",
                    found=f"{angle:.1f} degrees between {labels[j]} and {labels[i]}",
                    where=where,
                )
    return tuple(unit)
