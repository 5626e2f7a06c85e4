"""What may be done to something that lies where the output goes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.cheap_runs import FAST, Slide, differing, stop_at, tree
from wsi_pgdips.errors import OutputError, SlideError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.pipeline import output as claim
from wsi_pgdips.slurm import queue
from wsi_pgdips.stages import fit as fitting


@pytest.fixture(scope="module")
def started(slide: Slide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted early."""
    output = tmp_path_factory.mktemp("started") / "out.ome.zarr"
    stop_at(slide, output, "calibrate", **FAST)
    return output


def test_a_finished_output_is_left_alone(
    slide: Slide, finished: Layers, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]
    assert call("run", slide.path, finished.path, f"--stains={slide.stains}", *options) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before
    again = slide.run(finished.path, **FAST)
    assert again.already_done
    assert again.tiles == finished.tiles.num_rows


@pytest.mark.parametrize("which", ["started", "finished"])
def test_other_settings_are_refused_by_name(
    which: str, slide: Slide, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(which)
    output = found if which == "started" else found.path
    before = tree(output)
    with pytest.raises(OutputError, match="another run") as caught:
        slide.run(output, **{**FAST, "seed": 1, "min_tissue": 0.2})
    for part in ("seed = 0, now 1", "min_tissue = 0.05, now 0.2", "--overwrite"):
        assert part in str(caught.value)
    assert "tile" not in str(caught.value.found)
    assert tree(output) == before


def test_settings_of_the_machine_may_differ(slide: Slide, finished: Layers) -> None:
    assert slide.run(finished.path, **{**FAST, "threads": 1, "batch": 2}).already_done


def test_another_slide_is_refused(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    other = tmp_path / "other.tiff"
    other.write_bytes(slide.path.read_bytes() + b"\0")
    with pytest.raises(OutputError, match="another slide"):
        Slide(other, slide.stains).run(finished.path, **FAST)


def test_no_resume_refuses(slide: Slide, started: Path) -> None:
    before = tree(started)
    with pytest.raises(OutputError, match="the output exists"):
        slide.run(started, resume=False, **FAST)
    assert tree(started) == before


def test_overwrite_replaces(slide: Slide, started: Path) -> None:
    (started / "left.over").write_text("of an older version")
    stop_at(slide, started, "calibrate", overwrite=True, **{**FAST, "seed": 5})
    assert not (started / "left.over").exists()
    with pytest.raises(OutputError, match="seed = 5, now 0"):
        slide.run(started, **FAST)
    stop_at(slide, started, "calibrate", overwrite=True, **FAST)


def test_overwrite_keeps_the_old_where_the_new_cannot_begin(
    started: Path, slide: Slide, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    Image.fromarray(np.full((600, 700, 3), 243, np.uint8)).save(blank)
    before = tree(started)
    with pytest.raises(SlideError, match="no tissue"):
        Slide(blank, slide.stains).run(started, overwrite=True, mpp_source=0.5, **FAST)
    assert tree(started) == before


@pytest.mark.parametrize("folder", [1, 3, 5])
def test_layers_that_were_half_discarded_are_not_taken_for_whole(
    folder: int, slide: Slide, finished: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(finished.path, tmp_path / "out.ome.zarr"))
    genuine, removed = shutil.rmtree, list[str]()

    def rmtree(path: Path, **options: Any) -> None:
        removed.append(path.name)
        if len(removed) == folder:
            raise KeyboardInterrupt  # as if it were killed
        genuine(path, **options)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(claim.shutil, "rmtree", rmtree)
        with pytest.raises(KeyboardInterrupt):
            slide.run(output, overwrite=True, **FAST)
    done = slide.run(output, **FAST)
    assert (done.exit_code, done.already_done) == (0, False)
    assert differing(finished.path, output) == []


def test_a_job_that_is_started_anew_replaces_once(
    slide: Slide, finished: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(finished.path, tmp_path / "out.ome.zarr"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    # its first start did not come to replace what others have made
    stop_at(slide, output, "render", overwrite=True, **FAST)

    def fit_block(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is fitted already")

    with monkeypatch.context() as fitted:
        fitted.setattr(fitting, "fit_block", fit_block)
        assert slide.run(output, overwrite=True, **FAST).exit_code == 0
    assert differing(finished.path, output) == []
    assert slide.run(output, overwrite=True, **FAST).already_done  # by this job
    assert slide.run(output, overwrite=True, **{**FAST, "seed": 5}).exit_code == 0
    with pytest.raises(OutputError, match="seed = 5, now 0"):
        slide.run(output, **FAST)


def test_a_job_that_finishes_nothing_is_not_started_for_ever(
    slide: Slide,
    tmp_path: Path,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(queue, "requeue_this", lambda: not asked.append("again"))

    def fit_block(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)
        raise AssertionError("it goes on")

    monkeypatch.setattr(fitting, "fit_block", fit_block)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]
    command = ("run", slide.path, tmp_path / "out.ome.zarr", f"--stains={slide.stains}", *options)
    assert call(*command, "--quiet") == 75
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call(*command, "--quiet") == 3
    assert asked == ["again"]
    assert "time limit is too short" in capsys.readouterr().err


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "zarr"])
def test_what_is_not_ours_stays(kind: str, overwrite: bool, slide: Slide, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    if kind == "file":
        output.write_text("precious")
    else:
        output.mkdir()
        name = "zarr.json" if kind == "zarr" else "thesis.txt"
        (output / name).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = output.read_bytes() if kind == "file" else tree(output)
    with pytest.raises(OutputError, match="not ours"):
        slide.run(output, overwrite=overwrite, **FAST)
    assert (output.read_bytes() if kind == "file" else tree(output)) == before


def test_the_slide_itself_is_not_an_output(slide: Slide) -> None:
    before = slide.path.read_bytes()
    with pytest.raises(OutputError, match="not ours"):
        slide.run(slide.path, overwrite=True, **FAST)
    assert slide.path.read_bytes() == before
