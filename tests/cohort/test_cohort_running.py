"""A cohort from its first run to one that finds nothing to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import differing
from support.cohorts import GOOD, OPTIONS, OneByOne, Study, failing, program, table, times
from wsi_pgdips.errors import ClusterError
from wsi_pgdips.pipeline import pool
from wsi_pgdips.pipeline import slide as pipeline


def test_the_others_are_done_and_failures_are_told(ran: Study, separate: dict[str, Path]) -> None:
    found = ran.summary()
    counts = {"slides": 4, "done": 2, "failed": 2, "exit_code": 3}
    assert {k: found[k] for k in counts} == counts
    standings = {"a": "done", "truncated": "failed", "b": "done", "blank": "failed"}
    assert ran.standings() == standings
    rows = ran.failures()
    assert rows.keys() == {"truncated", "blank"}
    assert "damaged or truncated" in rows["truncated"]["reason"]
    assert "no tissue" in rows["blank"]["reason"]
    for name, row in rows.items():
        assert row["exit_code"] == "2"
        assert row["status"] == "failed"
        assert Path(row["log"]).read_text().count("tissue" if name == "blank" else "truncated")
        assert Path(row["slide"]).is_file()
        assert row["what_to_do"]
        assert not Path(row["output"]).exists()
    assert ran.leftovers() == []
    for name in GOOD:
        assert differing(separate[name], ran.layers(name)) == []
        assert "finalize" in (ran.job / "logs" / f"{name}.log").read_text()


def test_again_nothing_is_to_do(
    ran: Study, here: OneByOne, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ran.copied(tmp_path, call)
    folders = [mine.job / name for name in ("layers", "logs", "state")]
    before = times(*folders)
    assert mine.run() == 3
    assert "2 done, 2 failed" in capsys.readouterr().out
    assert mine.retry() == 3
    assert here.seen == []
    assert times(*folders) == before
    assert mine.failures().keys() == {"truncated", "blank"}


def test_a_manifest_may_grow_and_settings_may_not_change(
    two: Study, here: OneByOne, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    table(two.slides, "slide", "a.tiff")
    assert two.run() == 0
    table(two.slides, "slide", "b.tiff", "a.tiff")
    before = times(two.layers("a"))
    assert two.run("--retries=7") == 0
    assert here.seen == ["a", "b"]
    assert times(two.layers("a")) == before
    assert list(two.standings()) == ["b", "a"]

    plan = (two.job / "cohort.json").read_bytes()
    kept = json.loads(plan)
    assert (kept["retries"], kept["options"]["preset"]) == (7, "fast")
    assert [e["name"] for e in kept["entries"]] == ["b", "a"]
    for options, said in ((("--seed=5",), "seed = 0, now 5"), (("--mpp=1",), "mpp = 0.5, now 1")):
        capsys.readouterr()
        assert two.run(*options) == 2
        assert said in capsys.readouterr().err
    shutil.copytree(two.slides, two.slides / "moved")
    table(two.slides, "slide", "moved/a.tiff")
    assert two.run() == 2
    assert "moved/a.tiff" in capsys.readouterr().err
    assert (two.job / "cohort.json").read_bytes() == plan
    assert two.leftovers() == []
    assert call("cohort", "run", two.manifest, two.job / "cohort.json", *OPTIONS) == 2
    (two.job / "cohort.json").write_text('{"version": 99}')
    assert call("cohort", "status", two.job) == 2
    assert "another version" in capsys.readouterr().err
    for broken in ("{", "[]", '{"version": 1, "entries": [{}], "options": {}, "retries": 2}'):
        (two.job / "cohort.json").write_text(broken)
        assert call("cohort", "status", two.job) == 2
        assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("mpp", "fine", "mpp = 'fine'"),
        ("tile", "300", "tile = '300'"),
        ("icc", "maybe", "icc = 'maybe'"),
        ("stains", "turquoise", "unknown stain set"),
        ("stains", "missing.toml", "missing.toml"),
        ("mask", "missing.png", "no such file"),
        ("roi", "missing.geojson", "no such file"),
        ("reference", "nice", "unknown reference"),
        ("reference", "missing.json", "missing.json"),
    ],
)
def test_a_bad_row_is_told_before_anything_is_begun(
    header: str, row: str, said: str, two: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    table(two.slides, f"slide,{header}", "a.tiff,", f"b.tiff,{row}")
    assert two.run() == 2
    told = capsys.readouterr().err
    assert said in told
    assert "slide b" in told
    assert not two.job.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode here")
def test_names_that_are_not_unicode(
    slides: Path, here: OneByOne, tmp_path: Path, call: Any
) -> None:
    folder = tmp_path / "slides"
    study = Study(folder, folder, tmp_path / "job", call)
    folder.mkdir()
    shutil.copyfile(slides / "a.tiff", folder / os.fsdecode(b"caf\xe9.tiff"))
    shutil.copyfile(slides / "truncated.tiff", folder / os.fsdecode(b"caf\xe8.tiff"))
    assert study.run() == 3
    names = {r"caf\udce9": "done", r"caf\udce8": "failed"}
    assert study.standings() == names
    assert list(study.failures()) == [r"caf\udce8"]
    said = program("cohort", "status", study.job).stdout  # with the encoding of a real terminal
    assert all(name in said for name in names)
    assert call("cohort", "verify", study.job, "--quiet") == 0


def test_stopping_at_the_first_failure(two: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run_part", failing(RuntimeError("a surprise")))
    config = two.slides / "s.toml"
    config.write_text("skip_errors = false\n")
    assert two.run(f"--config={config}") == 3
    assert two.standings() == {"a": "failed", "b": "waiting"}
    assert two.run(f"--config={config}", "--skip-errors") == 3
    assert two.standings() == {"a": "failed", "b": "done"}
    for broken in ("skip_errors = 1", "retries = true", "retries = -1", "slides = 3"):
        config.write_text(broken)
        assert two.run(f"--config={config}") == 2


def test_a_cohort_that_is_broken_off_is_reported(
    two: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(name: str) -> None:
        if name == "b":
            raise ClusterError("the scheduler was lost")

    monkeypatch.setattr(pool, "slide_pool", OneByOne(lost))
    assert two.run() == 2
    assert two.standings() == {"a": "done", "b": "waiting"}
