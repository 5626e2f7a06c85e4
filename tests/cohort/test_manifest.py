"""Which slides make a cohort: tables as people and spreadsheets write them, and folders."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.cohort.manifest import ENDINGS, Entry, read_cohort
from wsi_pgdips.errors import SettingsError


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job"


def table(folder: Path, content: str | bytes) -> Path:
    path = folder / "cohort.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes) -> tuple[Entry, ...]:
    return read_cohort(table(folder, content), folder / "job")


def refused(folder: Path, content: str | bytes) -> str:
    with pytest.raises(SettingsError) as caught:
        read(folder, content)
    assert "cohort.csv" in str(caught.value)
    return str(caught.value)


def test_a_row_says_all_of_a_slide(tmp_path: Path) -> None:
    text = (
        "slide,output,reference,stains,mpp,mask,icc,seed\n"
        "a.svs,,,,,,,\n"
        "sub/b.svs,of b/b.ome.zarr,look.json,my.toml,0.25,m.png,yes,3\n"
        "/abs/c.svs,/out/c.ome.zarr,he,hdab,native,/abs/m.png,NO,\n"
    )
    a, b, c = read(tmp_path, text)
    assert a == Entry("a", str(tmp_path / "a.svs"), "layers/a.ome.zarr")
    assert (b.name, b.slide, b.output) == (
        "of b/b",
        str(tmp_path / "sub/b.svs"),
        "of b/b.ome.zarr",
    )
    assert b.reference == str(tmp_path / "look.json")
    assert b.settings == {
        "stains": str(tmp_path / "my.toml"),
        "mpp": "0.25",
        "mask": str(tmp_path / "m.png"),
        "icc": "yes",
        "seed": "3",
    }
    assert (c.name, c.slide, c.output, c.reference) == (
        "out/c",
        "/abs/c.svs",
        "/out/c.ome.zarr",
        "he",
    )
    assert c.settings == {"stains": "hdab", "mpp": "native", "mask": "/abs/m.png", "icc": "NO"}


@pytest.mark.parametrize("look", ["self", "he", "look.json", "look.toml", "look.groovy"])
def test_references_that_are_files_are_beside_the_manifest(look: str, tmp_path: Path) -> None:
    (entry,) = read(tmp_path, f"slide,reference\na.svs,{look}\n")
    assert entry.reference == (str(tmp_path / look) if "." in look else look)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_as_spreadsheets_write_it(delimiter: str, end: str, tmp_path: Path) -> None:
    rows = ["Slide ,MPP", "a.svs,0.5", ",", '"b, 1;\t2.svs",', "", ' "x" c.svs , 1 ']
    written = [row.replace(",", delimiter) if "b, 1" not in row else row for row in rows]
    written[3] = f'"b, 1;\t2.svs"{delimiter}'
    found = read(tmp_path, "\ufeff" + end.join(["", *written]) + end)
    assert [e.name for e in found] == ["a", "b, 1;\t2", '"x" c']
    assert [e.settings for e in found] == [{"mpp": "0.5"}, {}, {"mpp": "1"}]


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(
    lambda s: s.strip() == s and "/" not in s and s not in (".", "..") and "\0" not in s
)


@given(
    names=st.lists(CELLS, min_size=1, max_size=8, unique=True), delimiter=st.sampled_from(",;\t")
)
def test_any_name_comes_back(
    names: list[str], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(
        [("slide", "output"), *((n, f"{i}.ome.zarr") for i, n in enumerate(names))]
    )
    found = read(folder, text.getvalue())
    assert [Path(e.slide).name for e in found] == names
    assert [e.name for e in found] == [str(i) for i in range(len(names))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found: nothing"),
        ("\n\n", "found: nothing"),
        ("a.svs\nb.svs\n", "found: a.svs"),
        ("slide,colour\na.svs,red\n", "found: slide, colour"),
        ("slide,mpp,mpp\na.svs,1,1\n", "each once"),
        ("output\na.ome.zarr\n", "other columns"),
        ("slide,workers\na.svs,2\n", "other columns"),  # of the machine, not of a slide
        ("slide\n", "names no slide"),
        ("slide,mpp\n,\n,0.5\n", "line 3"),
        ("slide,mpp\na.svs,1\n,0.5\n", "line 3"),
        ("slide\n\na,b.svs\n", "line 3"),
        ('slide,mpp\na.svs,1\n"b.svs,1\nc.svs,1\n', "not a valid CSV"),
        ("slide\na\0.svs\n", "NUL"),
        ("slide\n" + "x" * 200_000 + "\n", "not a valid CSV"),
        ("slide\na.svs\ndeep/a.svs\n", "both a"),
        ("slide\na.svs\na.tiff\n", "both a"),
        ("slide,output\na.svs,x.ome.zarr\nb.svs,./x.zarr\n", "same place"),
        ("slide,output\na.svs,\nb.svs,./layers/a.ome.zarr\n", "same place"),
        ("slide,output\na.svs,x\nb.svs,x/b.ome.zarr\n", "b.svs would be in"),
        ("slide,output\na.svs,layers\nb.svs,\n", "b.svs would be in"),
        ("slide,output\na.svs,state/a.ome.zarr\n", "a.svs would be in"),
        ("slide,output\na.svs,./logs\n", "a.svs would be in"),
        ("slide,output\na.svs,cohort.json\n", "a.svs would be in"),
        ("slide,output\na.svs,.\n", "state of the job folder would be in"),
        ("slide,output\na.svs,../a.ome.zarr\n", "leads out of the job folder"),
        ("slide,output\na.svs,in/../../a.ome.zarr\n", "leads out of the job folder"),
        ("slide\n..\n", "leads out of the job folder"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, text)


def test_the_line_of_a_file_is_told_after_cells_of_several_lines(tmp_path: Path) -> None:
    assert "line 4" in refused(tmp_path, 'slide,mpp\n"a\nb.svs",1\n,1\n')
    (entry,) = read(tmp_path, 'slide,mpp\n"a\nb.svs",1\n')
    assert Path(entry.slide).name == "a\nb.svs"


def test_an_output_may_be_given_in_full(tmp_path: Path) -> None:
    same = tmp_path / "job" / "layers" / "a.ome.zarr"
    text = f"slide,output\na.svs,\nb.svs,{same}\n"
    assert "same place" in refused(tmp_path, text)
    text = f"slide,output\na.svs,\nb.svs,{tmp_path}/elsewhere/../b.zarr\n"
    assert [e.name for e in read(tmp_path, text)] == ["a", f"{tmp_path}/b".lstrip("/")]
    text = "slide,output\na.svs,/o/1/slide.ome.zarr\nb.svs,/o/2/slide.ome.zarr\n"
    assert [e.name for e in read(tmp_path, text)] == ["o/1/slide", "o/2/slide"]


def test_a_manifest_that_cannot_be_read(tmp_path: Path, job: Path) -> None:
    with pytest.raises(SettingsError, match="no such manifest"):
        read_cohort(tmp_path / "missing.csv", job)
    assert "a CSV in UTF-8" in refused(tmp_path, "slide\ngr\u00fcn.svs\n".encode("latin-1"))
    assert "a CSV in UTF-8" in refused(tmp_path, "slide\na.svs\n".encode("utf-16"))


def test_thousands_of_slides(tmp_path: Path) -> None:
    rows = "".join(f"s{i}.svs,{i}\n" for i in range(20_000))
    found = read(tmp_path, "slide,seed\n" + rows)
    assert len(found) == 20_000
    assert found[-1].settings == {"seed": "19999"}


def lay(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_is_searched(tmp_path: Path, job: Path) -> None:
    slides = tmp_path / "slides"
    lay(
        slides,
        "b.SVS",
        "a.1.ndpi",
        "deep/er/a.1.tiff",
        "notes.txt",
        ".hidden.svs",
        ".hidden/c.svs",
        "old.ome.zarr/0/c.tiff",
        "old.ZARR/c.tiff",
    )
    found = read_cohort(slides, job)
    assert [e.name for e in found] == ["a.1", "b", "deep/er/a.1"]
    assert [e.output for e in found] == [f"layers/{e.name}.ome.zarr" for e in found]
    assert all(Path(e.slide).is_file() and Path(e.slide).is_absolute() for e in found)
    assert all(Path(e.slide).suffix.lower() in ENDINGS for e in found)


@pytest.mark.parametrize("where", ["slides/job", "slides/deep/job", "slides"])
def test_what_a_cohort_made_is_no_slide_of_it(where: str, tmp_path: Path) -> None:
    slides, job = tmp_path / "slides", tmp_path / where
    lay(slides, "a.svs", "deep/b.svs")
    lay(job, "layers/a.he.tiff", "layers/deep/b.he.tiff")
    assert [e.name for e in read_cohort(slides, job)] == ["a", "deep/b"]


def test_links_that_lead_back_are_not_followed(tmp_path: Path, job: Path) -> None:
    slides = tmp_path / "slides"
    lay(slides, "deep/a.svs")
    lay(tmp_path / "other", "b.svs")
    (slides / "deep" / "up").symlink_to(slides)
    (slides / "other").symlink_to(tmp_path / "other")
    assert [e.name for e in read_cohort(slides, job)] == ["deep/a", "other/b"]


def test_folders_without_slides_or_with_twins(tmp_path: Path, job: Path) -> None:
    slides = tmp_path / "slides"
    lay(slides, "notes.txt")
    with pytest.raises(SettingsError, match=r"no slide in the folder(.|\n)*\.svs"):
        read_cohort(slides, job)
    lay(slides, "a.svs", "a.tiff")
    with pytest.raises(SettingsError, match="same place"):
        read_cohort(slides, job)


def test_a_folder_that_cannot_be_read(
    tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "slides/closed/a.svs")
    genuine = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self.name == "closed":
            raise PermissionError(13, os.strerror(13), str(self))
        return genuine(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SettingsError, match=r"Permission denied(.|\n)*closed"):
        read_cohort(tmp_path / "slides", job)
