"""The regression guard: the small slice of the benchmark against committed bounds."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.cases import QUICK_CASES
from benchmarks.quality.run import run
from benchmarks.records import lookup, only

BOUNDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("quality_bounds.toml").read_text())
TOLERANCE = BOUNDS.pop("tolerance")


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """Joint RMSE of the unblurred maps, by case and method."""
    records = run(tmp_path_factory.mktemp("quick") / "quick.json", quick=True).frame
    return lookup(only(records, metric="rmse_joint", blur_px=0), "case", "method")


def test_every_case_of_the_slice_has_bounds() -> None:
    assert set(BOUNDS) == set(QUICK_CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "other", "bound"),
    [(case, other, bound) for case, row in BOUNDS.items() for other, bound in row.items()],
)
def test_the_product_keeps_its_distance(
    joint: Callable[..., float], case: str, other: str, bound: float
) -> None:
    assert joint(case, "balanced") / joint(case, other) <= bound * (1 + TOLERANCE)
