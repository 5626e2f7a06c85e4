"""The regression guard: the small slice of the benchmark against committed bounds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.cases import QUICK_CASES
from benchmarks.quality.run import Request, run
from benchmarks.records import Record, select

BOUNDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("quality_bounds.toml").read_text())
TOLERANCE = BOUNDS.pop("tolerance")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return run(Request(tmp_path_factory.mktemp("quick") / "quick.json", quick=True)).records


def test_every_case_of_the_slice_has_bounds() -> None:
    assert set(BOUNDS) == set(QUICK_CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "other", "bound"),
    [(case, other, bound) for case, row in BOUNDS.items() for other, bound in row.items()],
)
def test_the_product_keeps_its_distance(
    records: list[Record], case: str, other: str, bound: float
) -> None:
    found = select(records, case=case, metric="rmse_joint", blur_px=0)
    ours, theirs = (select(found, method=m)[0]["value"] for m in ("balanced", other))
    assert ours / theirs <= bound * (1 + TOLERANCE)
