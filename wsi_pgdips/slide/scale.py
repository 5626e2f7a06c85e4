"""How large a pixel is, and the output grid that follows from it."""

from __future__ import annotations

from typing import Literal

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import MPP_LIMITS, OutputGrid, choose_factor
from wsi_pgdips.slide.pyramid import FileFacts

MAX_ANISOTROPY = 0.02


def make_grid(
    shape_l0: tuple[int, int],
    facts: FileFacts,
    *,
    mpp: float | Literal["native"],
    mpp_source: float | None,
    tile: int,
    block: int,
    where: object = None,
) -> OutputGrid:
    """The output grid for a wanted mpp; ``mpp_source`` overrides the file's.

    Raises:
        SlideError: no mpp, one that is absurd or differs between the directions by more than 2 %,
            or a wanted mpp finer than the slide's.
        SettingsError: an option outside its limits.
    """
    for option, value in (("--mpp", mpp), ("--mpp-source", mpp_source)):
        if isinstance(value, float | int) and not MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
            raise SettingsError(
                "mpp outside what a microscope gives",
                expected=f"{MPP_LIMITS[0]} to {MPP_LIMITS[1]} um/px",
                found=f"{value:g}",
                where=option,
            )
    mpp_l0 = _checked_mpp(facts, where) if mpp_source is None else mpp_source
    factor = 1.0 if mpp == "native" else choose_factor(mpp_l0, mpp)
    return OutputGrid(shape_l0, factor, mpp_l0 * factor, tile, block)


def says_mpp(facts: FileFacts) -> bool:
    """Whether a file's own mpp can be taken."""
    try:
        _checked_mpp(facts, None)
    except SlideError:
        return False
    return True


def _checked_mpp(facts: FileFacts, where: object) -> float:
    value, mpp_yx = facts.mpp, facts.mpp_yx
    if mpp_yx is None or value is None:
        raise SlideError(
            "the slide does not say how large its pixels are",
            expected="micrometres per pixel in the file's metadata",
            found="none",
            where=where,
            hint="give it with --mpp-source, e.g. 0.25 for most 40x scans and 0.5 for 20x",
        )
    if not MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
        raise SlideError(
            "the slide's pixel size is absurd",
            expected=f"{MPP_LIMITS[0]} to {MPP_LIMITS[1]} um/px",
            found=f"{value:.4g} um/px",
            where=where,
            hint="give the true one with --mpp-source",
        )
    if abs(mpp_yx[0] - mpp_yx[1]) > MAX_ANISOTROPY * value:
        raise SlideError(
            "the slide's pixels are not square",
            expected=f"mpp down and across within {MAX_ANISOTROPY:.0%}",
            found=f"{mpp_yx[0]:.4g} down, {mpp_yx[1]:.4g} across",
            where=where,
            hint="if only the metadata is wrong, give the true mpp with --mpp-source",
        )
    return value
