"""The same bytes however a run went: workers, kills, interruptions, torn files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import BALANCED, FAST, Slide, differing, stop_at
from wsi_pgdips.layers.reader import Layers, open_layers

STAGES = ("tissue", "calibrate", "fit", "render", "finalize")


def run_until(slide: Slide, output: Path, folder: Path, **options: Any) -> None:
    """Start the program, and kill it when the first finished piece lies in ``folder``."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    program = [sys.executable, "-c", "from wsi_pgdips.cli import main; main()"]
    asked = ["run", slide.path, output, f"--stains={slide.stains}", *given]
    process = subprocess.Popen([*program, *map(str, asked)], stderr=subprocess.PIPE)
    try:
        while not any(folder.glob("*.npz")):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def tear_what_is_not_done(output: Path) -> None:
    """Leave what a kill in the middle of a write may leave."""
    work = output / "work"
    planned = {path.stem for path in (work / "fit").glob("*.npz")}
    for block in planned - {path.stem for path in (work / "render").glob("*.npz")}:
        for level in ("1", "0"):
            shard = output / level / "c" / "0" / block.replace("_", "/")
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.write_bytes(b"torn")
    (work / "render" / "9_9.npz.1.partial").write_bytes(b"torn")
    (output / "0" / "c" / "x.partial").write_bytes(b"torn")


@pytest.mark.parametrize(("preset", "workers"), [("fast", 1), ("balanced", 2)])
def test_killed_in_fit_and_in_render_and_resumed(
    preset: str, workers: int, slide: Slide, output: Path, request: pytest.FixtureRequest
) -> None:
    reference: Layers = request.getfixturevalue("finished" if preset == "fast" else preset)
    options = FAST if preset == "fast" else BALANCED
    stop_at(slide, output, "calibrate", **options)  # what needs no second process
    for stage in ("fit", "render"):
        run_until(slide, output, output / "work" / stage, workers=workers, **options)
        assert not open_layers(output, unfinished=True).finished
        assert (output / "work" / stage).is_dir()
    tear_what_is_not_done(output)
    assert slide.run(output, **options).exit_code == 0
    assert differing(reference.path, output) == []
    assert not (output / "work").exists()


def test_interrupted_at_every_stage_and_resumed(
    slide: Slide, finished: Layers, output: Path
) -> None:
    for stage in STAGES:
        stop_at(slide, output, stage, **FAST)
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_one_worker_or_two(slide: Slide, finished: Layers, output: Path) -> None:
    assert slide.run(output, workers=2, **FAST).exit_code == 0
    assert open_layers(output).run_record["workers"] == 2
    assert differing(finished.path, output) == []


def test_threads_do_not_count(slide: Slide, balanced: Layers, output: Path) -> None:
    threads = 3 if (os.cpu_count() or 1) != 3 else 2
    slide.run(output, threads=threads, **BALANCED)
    assert differing(balanced.path, output) == []


def test_interrupted_before_the_plan_was_kept(slide: Slide, finished: Layers, output: Path) -> None:
    stop_at(slide, output, "calibrate", **FAST)
    (output / "work" / "plan.npz").unlink()
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []
