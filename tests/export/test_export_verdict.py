"""A slide whose verdict is ``fail`` is not normalised unless that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import Slide
from support.foreign import judged_copy
from wsi_pgdips.errors import OutputError
from wsi_pgdips.export.normalize import normalize_slide
from wsi_pgdips.layers.reader import Layers

REASONS = ("40 % of the tissue has a colour that H and E cannot make", "no glass")


@pytest.fixture
def failed(finished: Layers, tmp_path: Path) -> Path:
    return judged_copy(finished.path, tmp_path / "bad.ome.zarr", "fail", *REASONS)


def test_it_is_refused_with_its_reasons(failed: Path, slide: Slide, tmp_path: Path) -> None:
    out = tmp_path / "x.tif"
    with pytest.raises(OutputError, match="verdict on this slide is `fail`") as caught:
        normalize_slide(failed, out, reference="self", slide=slide.path)
    for said in (*REASONS, "--even-if-failed", str(failed)):
        assert said in str(caught.value)
    assert not out.exists()


def test_it_is_written_where_that_is_asked_for(
    failed: Path, finished: Layers, slide: Slide, tmp_path: Path
) -> None:
    one, other = tmp_path / "x.tif", tmp_path / "y.tif"
    normalize_slide(failed, one, reference="he", slide=slide.path, even_if_failed=True)
    normalize_slide(finished.path, other, reference="he", slide=slide.path)
    assert one.stat().st_size == other.stat().st_size


@pytest.mark.parametrize("status", ["pass", "review", "unknown"])
def test_any_other_verdict_is_good_enough(status: str, finished: Layers, tmp_path: Path) -> None:
    layers = judged_copy(finished.path, tmp_path / "a.ome.zarr", status, "why")
    assert normalize_slide(layers, tmp_path / "x.tif", only="eosin").is_file()


def test_as_it_is_typed(call: Any, capfd: Any, failed: Path, tmp_path: Path) -> None:
    words = ("normalize", failed, "-o", tmp_path / "x.tif", "--only", "eosin", "-q")
    assert call(*words) == 2
    shown = capfd.readouterr().err
    assert REASONS[0] in shown
    assert "--even-if-failed" in shown
    assert call(*words, "--even-if-failed") == 0
    assert (tmp_path / "x.tif").is_file()
    # concentrations are exported all the same: they carry their verdict
    assert call("export", failed, "-q", "-o", tmp_path / "q.ome.zarr") == 0
