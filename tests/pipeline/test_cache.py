"""``--cache``: the slide is worked on from a copy, which is gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import FAST, Slide, differing, stop_at
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.slide.source import PyramidSource


def test_the_copy_is_read_and_removed(
    slide: Slide, finished: Layers, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "scratch"
    genuine, read_from = PyramidSource.read, set()

    def read(self: PyramidSource, *region: int) -> Any:
        read_from.add(self._pyramid._path)  # type: ignore[attr-defined]
        return genuine(self, *region)

    monkeypatch.setattr(PyramidSource, "read", read)
    assert slide.run(output, cache=str(cache), **FAST).exit_code == 0
    assert {cache in path.parents for path in read_from} == {True}
    assert list(cache.iterdir()) == []
    assert differing(finished.path, output) == []


def test_an_interrupted_run_takes_its_copy_along(
    slide: Slide, finished: Layers, output: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "scratch"
    stop_at(slide, output, "render", cache=str(cache), **FAST)
    assert list(cache.iterdir()) == []
    assert slide.run(output, **FAST).exit_code == 0  # without a copy: the same run
    assert differing(finished.path, output) == []


def test_the_output_is_no_place_for_it(slide: Slide, output: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be staged in the output"):
        slide.run(output, cache=str(output / "scratch"), **FAST)
    assert not output.exists()
