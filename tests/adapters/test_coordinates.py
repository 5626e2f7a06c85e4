"""Coordinates made on the original slide are valid on what is normalised: CLAM's and TRIDENT's way.

Both keep (x, y) of level 0, a level and a size, and read
``slide.read_region(coord, level, (size, size)).convert("RGB")``; neither is needed to do that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest

from support.adapter_case import Case
from wsi_pgdips.export.tiff import export_tiff
from wsi_pgdips.looks.normalized_slide import NormalizedSlide

SIZE = 128


@pytest.fixture(scope="module")
def coords(case: Case) -> npt.NDArray[np.int32]:
    """(n, 2) int32 as in CLAM's h5 file: squares of the original whose mean is not glass."""
    with openslide.OpenSlide(case.slide) as slide:
        width, height = slide.dimensions
        places = [
            (x, y)
            for y in range(0, height - SIZE, SIZE)
            for x in range(0, width - SIZE, SIZE)
            if read(slide, (x, y)).mean() < 215
        ]
    assert len(places) > 8
    return np.array(places, np.int32)


@pytest.fixture(scope="module")
def tiff(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "slide.tiff"
    with NormalizedSlide(case.slide, case.layers, "he") as slide:
        export_tiff(slide, path)
    return path


def read(slide: Any, coord: Any, level: Any = 0) -> npt.NDArray[np.uint8]:
    return np.array(slide.read_region(coord, level, (SIZE, SIZE)).convert("RGB"))


def grey(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return -np.log10(np.maximum(rgb, 1).mean(-1) / 255)


def correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_the_export_has_the_originals_frame(case: Case, tiff: Path) -> None:
    with openslide.open_slide(tiff) as export, openslide.OpenSlide(case.slide) as slide:
        assert export.dimensions == slide.dimensions
        for axis in ("x", "y"):
            found, wanted = (float(s.properties[f"openslide.mpp-{axis}"]) for s in (export, slide))
            assert found == pytest.approx(wanted, rel=1e-3)


def test_coordinates_of_the_original_on_the_export_and_the_reader(
    case: Case, tiff: Path, coords: npt.NDArray[np.int32]
) -> None:
    level = np.int64(0)  # as h5 attributes come
    with (
        openslide.OpenSlide(case.slide) as slide,
        openslide.open_slide(tiff) as export,
        NormalizedSlide(case.slide, case.layers, "he") as normalized,
    ):
        for coord in coords[:: max(len(coords) // 6, 1)]:
            original, exported = read(slide, coord, level), read(export, coord, level)
            dropped_in = read(normalized, coord, level)
            # the export is the reader's pixels after one JPEG
            assert np.abs(exported.astype(int) - dropped_in).mean() < 4
            assert np.abs(exported.astype(int) - original).mean() > 2
            # and in register with the original: two pixels aside it fits less well
            for other in (exported, dropped_in):
                here = correlation(grey(other), grey(original))
                for dx, dy in ((2, 0), (-2, 0), (0, 2), (0, -2)):
                    aside = grey(read(slide, (coord[0] + dx, coord[1] + dy)))
                    assert correlation(grey(other), aside) < here
