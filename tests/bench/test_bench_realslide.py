"""The protocol for pictures gives the figures that were found before the benchmark was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.cases import all_cases, choose
from benchmarks.quality.methods import choose as choose_methods
from benchmarks.quality.pictures import measure_picture
from benchmarks.records import lookup

pytestmark = pytest.mark.realslide

# PCC H, DAPI, Ki67; SSIM H, DAPI; sharpness of hematoxylin
KNOWN = {
    ("fixed", 0): (0.864, 0.876, 0.730, 0.37, 0.38, 0.062),
    ("fixed", 2): (0.914, 0.933, 0.798, 0.57, 0.76, 0.016),
    ("macenko-slide", 0): (0.794, 0.821, 0.758, 0.32, 0.36, 0.070),
}


def test_lung1_is_what_it_was(data_dir: Path) -> None:
    (case,) = choose(all_cases(data_dir), ["Lung1"])
    records = measure_picture(case, choose_methods(["fixed", "macenko-slide"])).frame
    found = lookup(records, "method", "blur_px", "metric", "stain")
    for (method, blur), known in KNOWN.items():
        h, dapi, ki67 = "Hematoxylin:H", "Hematoxylin:DAPI", "DAB:Ki67"
        for label, wanted in zip((h, dapi, ki67), known, strict=False):
            assert found(method, blur, "pcc", label) == pytest.approx(wanted, abs=0.002)
        for label, wanted in zip((h, dapi), known[3:], strict=False):
            assert found(method, blur, "ssim", label) == pytest.approx(wanted, abs=0.01)
        assert found(method, blur, "sharpness", h) == pytest.approx(known[5], abs=0.001)


def test_every_kind_of_real_image_is_a_case(data_dir: Path) -> None:
    kinds = {case.kind for case in all_cases(data_dir)}
    assert kinds == {"phantom", "spectral", "paired", "semisynthetic", "consistency"}
