"""The benchmark of cohorts: its small slice, where a kill falls, what a page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cohort.kills import FAULTS, KILLS
from benchmarks.cohort.moments import MOMENTS, Place, blocks_of, difference
from benchmarks.cohort.page import render
from benchmarks.cohort.run import QUICK_KILLS, run
from benchmarks.cohort.slides import SLIDES
from benchmarks.records import Records, load_records, lookup
from wsi_pgdips.errors import OutputError
from wsi_pgdips.pipeline.ledger import Ledger


def test_the_small_slice_loses_no_byte(tmp_path: Path) -> None:
    out = tmp_path / "cohort.json"
    said: list[str] = []
    run(out, slides=6, quick=True, say=said.append)
    records = load_records("cohort", out).frame
    value = lookup(records, "case", "metric")
    total = records.groupby("metric")["value"].sum()
    assert value(SLIDES, "slides") == 6
    assert 1 <= value(SLIDES, "worker_processes") <= 2
    assert 0.5 < value(SLIDES, "worker_mb_growth") < 1.5
    assert value(SLIDES, "work_s") > 0
    assert total["kills"] == QUICK_KILLS
    assert sum(total[f"killed_in_{m}"] for m in MOMENTS) == QUICK_KILLS
    assert total["runs"] >= 1
    assert total["files_compared"] > 100
    assert {f: total[f] for f in FAULTS} == dict.fromkeys(FAULTS, 0), said
    assert "### 6 small slides" in render(records, "cohort.json", tmp_path)


def test_a_place_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        run(tmp_path / "nowhere" / "a.json")


def test_where_a_kill_falls_is_told_by_the_files(tmp_path: Path) -> None:
    place = Place(tmp_path / "out.ome.zarr", blocks=2)
    ledger, nobody = Ledger(place.output), place.holders()
    assert place.moment(nobody) == "start"
    holder = tmp_path / "out.ome.zarr.run.0.running"
    holder.touch()
    steps: list[tuple[str, list[Path]]] = [
        ("prepare", [ledger.plan]),
        ("calibrate", [ledger.prior]),
        ("fit", [ledger.fit((0, 0)), ledger.fit((0, 1))]),
        ("blend", [ledger.fields]),
        ("render", [ledger.render((0, 0)), ledger.render((0, 1))]),
    ]
    for moment, paths in steps:
        for path in paths:
            assert place.moment(nobody) == moment
            assert place.moment(place.holders()) == "start"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert place.moment(nobody) == "finalize"
    assert place.left_behind() == [holder.name, "work"]
    (place.output / "provenance").mkdir()
    (place.output / "provenance" / "run.json").write_text('{"status": "done"}')
    assert place.moment(place.holders()) == "end"


def test_what_was_lost_and_what_is_wrong(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for output in (one, other):
        for name in ("0/c/0", "0/c/1", "a.partial", "provenance/run.json", "same"):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(b"the same")
        checksums = {"0/c/0": "", "0/c/1": "", "1/c/0": ""}
        (output / "provenance" / "checksums.json").write_text(json.dumps(checksums))
    assert blocks_of(one) == 2
    assert difference(one, other).wrong == difference(one, other).lost == ()
    (other / "provenance" / "run.json").write_bytes(b"of another run")
    (other / "0/c/0").write_bytes(b"others")
    (other / "0/c/1").unlink()
    (other / "more").touch()
    found = difference(one, other)
    assert (found.files, found.wrong, found.lost) == (5, ("0/c/0", "more"), ("0/c/1",))


@pytest.mark.parametrize(("wrong", "growth", "said"), [(0, 1.1, "yes"), (2, 1.3, "no")])
def test_a_page_says_whether_bars_are_met(wrong: int, growth: float, said: str) -> None:
    records = Records("cohort", {"device": "Some Processor, 2 cores"})
    overhead = 0.1 if said == "yes" else 0.6
    found = {"slides": 200, "overhead_s_per_slide": overhead, "worker_mb_growth": growth}
    records.add(found, case=SLIDES, how="fast")
    faults = dict.fromkeys(FAULTS, wrong)
    records.add({**faults, "killed_in_fit": 3}, case=KILLS, how="fast, one process")
    text = render(records.frame, "cohort.json", Path())
    bars = [line for line in text.splitlines() if " ≤ " in line]
    assert len(bars) == 3
    assert all(line.endswith(f"| {said} |") for line in bars)
    assert "| all | 0 | 0 | 0 | 3 | 0 | 0 | 0 | 0 |" in text
