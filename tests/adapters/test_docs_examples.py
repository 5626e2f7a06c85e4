"""The Python blocks of docs/adapters.md, run as they stand beside a slide and its layers."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path

import pytest

from support.adapter_case import Case

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
# what a block may need that is not among our own dependencies
OPTIONAL = {"to_spatialdata": "spatialdata", "napari_ome_zarr": "napari_ome_zarr"}


def blocks() -> list[tuple[str, str]]:
    """(heading, code) of every Python block, in order."""
    found, heading = [], ""
    for part in re.finditer(
        r"^## ([^\n]+)$|^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    ):
        if part[1]:
            heading = part[1]
        else:
            found.append((heading, part[2]))
    return found


def test_every_section_has_an_example() -> None:
    headings = re.findall(r"^## (.+)$", PAGE.read_text("utf-8"), re.M)
    assert [heading for heading, _ in blocks()] == headings


@pytest.mark.parametrize(("heading", "code"), blocks(), ids=[h for h, _ in blocks()])
def test_the_example_runs(
    heading: str, code: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mark, needed in OPTIONAL.items():
        if mark in code and importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed here")
    monkeypatch.chdir(case.folder)
    with warnings.catch_warnings():
        if any(mark in code for mark in OPTIONAL):
            warnings.simplefilter("ignore")  # theirs, not ours
        exec(compile(code, f"{PAGE.name}: {heading}", "exec"), {"__name__": "__main__"})
