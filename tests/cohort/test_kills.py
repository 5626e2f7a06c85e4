"""Killed before the first and last changes of the disk, and some between: nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.cheap_runs import FAST, Slide, stop_at
from wsi_pgdips.phantom.make import make_phantom
from wsi_pgdips.pipeline.lock import lock_output, lock_path, remove_dead_locks


def test_killed_before_a_change_of_the_disk(tmp_path: Path) -> None:
    made = make_phantom(tmp_path / "slide.tiff", shape=(384, 320), seed=1)
    program = [sys.executable, "-m", "support.killed_at"]
    asked = [*program, str(made.truth.path), str(made.stains), str(tmp_path)]
    done = subprocess.run(
        asked, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 20
    assert [f for f in found if f["killed"] != -9] == []
    assert [f for f in found if f["code"] or f["differing"] or f["left"]] == []


@pytest.mark.parametrize("name", ["zarr.0123abcd.partial", "zarr.json.0123abcd.partial"])
def test_killed_on_its_very_first_write(name: str, slide: Slide, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.zarr"
    output.mkdir()
    (output / name).write_bytes(b"{")
    stop_at(slide, output, "calibrate", **FAST)
    assert not (output / name).exists()


def test_who_was_killed_after_the_end_is_forgotten(output: Path) -> None:
    dead = lock_path(output, "run")
    dead.write_text(json.dumps({**_of_this_process(output), "born": "of an earlier process"}))
    remove_dead_locks(output)
    assert not dead.exists()
    with lock_output(output):
        remove_dead_locks(output)
        assert lock_path(output, "run").exists()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.ome.zarr"


def _of_this_process(output: Path) -> dict[str, object]:
    with lock_output(output):
        return dict(json.loads(lock_path(output, "run").read_bytes()))
