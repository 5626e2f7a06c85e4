"""Looks of a cohort's slides, groups of them, and copies that groups have a say in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.cohorts import OneByOne, Study, table, times
from wsi_pgdips.export.place import tiff_record
from wsi_pgdips.looks.files import load_reference


def copy_of(study: Study, name: str, look: str = "he") -> Path:
    return study.job / "layers" / f"{name}.{look}.tiff"


def group_of(study: Study, name: str = "lab") -> str:
    return load_reference(study.job / "groups" / f"{name}.json").digest


def test_looks_alone_and_one_broken_slide(two: Study, here: OneByOne) -> None:
    (two.slides / "broken.tiff").write_bytes((two.slides / "a.tiff").read_bytes()[:9000])
    table(two.slides, "slide,tissue", "a.tiff,liver", "broken.tiff,", "b.tiff,skin")
    assert two.run("--looks-only") == 3
    assert two.standings() == {"a": "done", "broken": "failed", "b": "done"}
    assert not list(two.job.rglob("*.zarr"))
    for name, tissue in (("a", "liver"), ("b", "skin")):
        look = load_reference(two.job / "looks" / f"{name}.json")
        assert (look.name, look.tissue, len(look.tissue_od)) == (name, tissue, 14)
    before = times(two.job / "looks")
    here.seen.clear()
    assert two.run("--looks-only") == 3
    assert here.seen == []
    assert times(two.job / "looks") == before
    # with a reference, each gets its copy by the look that is there
    assert two.run("--looks-only", "--reference=he") == 3
    assert times(two.job / "looks") == before
    assert copy_of(two, "a").is_file()
    assert "glass from" in tiff_record(copy_of(two, "a"))["account"]


@pytest.mark.parametrize("looks_only", [True, False])
def test_a_slide_added_later_updates_its_group_and_the_copies(
    two: Study, here: OneByOne, looks_only: bool
) -> None:
    options = ["--reference=he", *(["--looks-only"] if looks_only else [])]
    table(two.slides, "slide,group", "a.tiff,lab", "b.tiff,")
    assert two.run(*options) == 0
    first = group_of(two)
    assert tiff_record(copy_of(two, "a"))["group_sha256"] == first
    assert "group_sha256" not in tiff_record(copy_of(two, "b"))
    here.seen.clear()
    assert two.run(*options) == 0
    assert here.seen == []
    (two.slides / "later.tiff").write_bytes((two.slides / "b.tiff").read_bytes())
    table(two.slides, "slide,group", "a.tiff,lab", "b.tiff,", "later.tiff,lab")
    alone = times(copy_of(two, "b").parent)[str(copy_of(two, "b"))]
    assert two.run(*options) == 0
    assert group_of(two) != first
    for name in ("a", "later"):
        assert tiff_record(copy_of(two, name))["group_sha256"] == group_of(two)
    assert times(copy_of(two, "b").parent)[str(copy_of(two, "b"))] == alone
    here.seen.clear()
    assert two.run(*options) == 0
    assert here.seen == []


def test_the_group_s_own_look_as_the_reference(two: Study) -> None:
    table(two.slides, "slide,group", "a.tiff,lab", "b.tiff,lab")
    assert two.run("--looks-only", "--reference=group") == 0
    for name in ("a", "b"):
        record = tiff_record(copy_of(two, name, "group"))
        assert record["reference_sha256"] == record["group_sha256"] == group_of(two)


def test_what_cannot_be_a_group_is_refused(two: Study, capsys: Any) -> None:
    table(two.slides, "slide", "a.tiff")
    assert two.run("--looks-only", "--reference=group") == 2
    assert "no group" in capsys.readouterr().err
    table(two.slides, "slide,group", "a.tiff,../lab")
    assert two.run() == 2
    assert "no file can have" in capsys.readouterr().err
