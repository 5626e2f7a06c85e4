"""Jobs that are requeued, cancelled, killed, or on a node that goes down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cheap_runs import differing, unlike
from support.cluster import CHEAP, JOB, jobs_of, logs, program, slurm, states, until
from support.cluster import wait_for_jobs as wait
from support.cohorts import leftovers, summary

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# some seconds a tile: there is time to interrupt it
SLOW = (*CHEAP, "--preset=paper", "--iterations=3")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slow.tiff"
    program("phantom", path, "--size", "1500x1100", "--quiet")
    return path


@pytest.fixture(scope="module")
def undisturbed(slide: Path) -> Path:
    output = slide.with_name("undisturbed.ome.zarr")
    program("run", slide, output, *SLOW, "--quiet")
    return output


@pytest.fixture
def folder(slide: Path, tmp_path: Path) -> Path:
    """Of a cohort of one slide that is in the middle of ``fit``, in a job of Slurm."""
    manifest, folder = tmp_path / "manifest.csv", tmp_path / "job"
    manifest.write_text(f"slide\n{slide}\n")
    program("slurm", "submit", manifest, folder, *SLOW, *JOB)
    until(lambda: one_block(folder), folder)
    return folder


def one_block(folder: Path) -> bool:
    """Whether a block is fitted, and others are not."""
    return any(folder.glob("layers/*.ome.zarr/work/fit/*.npz"))


def state(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "state" / "slow" / "run.json").read_bytes()))


def array(folder: Path) -> str:
    return jobs_of(folder)["slides-0"]


def assert_as_undisturbed(folder: Path, undisturbed: Path) -> None:
    assert summary(folder)["done"] == 1, logs(folder)
    found = folder / "layers" / "slow.ome.zarr"
    assert differing(undisturbed, found) == [], f"{unlike(undisturbed, found)}\n{logs(folder)}"
    assert leftovers(folder) == []
    assert program("cohort", "verify", folder).stdout.split() == [
        *("verified", "1", "slides,", "0", "with", "faults")
    ]


def requeue(folder: Path) -> None:
    slurm("scontrol", "requeue", f"{array(folder)}_0")


def node_down_and_up(folder: Path) -> None:
    node = slurm("squeue", "-h", "-j", array(folder), "-o", "%N").strip()
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        until(lambda: states(array(folder)) == ["PENDING"], folder)
    finally:
        up = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(up, check=False, capture_output=True)  # it may have come back by itself


@pytest.mark.parametrize("disturb", [requeue, node_down_and_up])
def test_slurm_starts_it_anew_and_it_goes_on(
    disturb: Callable[[Path], None], folder: Path, undisturbed: Path
) -> None:
    fitted = {p.name: p.stat().st_mtime_ns for p in folder.glob("layers/*/work/fit/*.npz")}
    disturb(folder)
    until(lambda: states(array(folder)) == ["PENDING"], folder)
    until(lambda: states(array(folder)) == ["RUNNING"], folder)
    # what was done is not done again
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("layers/*/work/fit/*.npz")}
    assert fitted.items() <= kept.items()
    wait(folder)
    assert "Restarts=1" in slurm("scontrol", "show", "job", array(folder))
    assert_as_undisturbed(folder, undisturbed)


def test_cancelled_and_tried_again(folder: Path, undisturbed: Path) -> None:
    said = program("slurm", "cancel", folder).stdout
    assert array(folder) in said
    wait(folder)
    assert states(array(folder)) == ["CANCELLED"]
    assert state(folder)["status"] == "stopped"
    assert "interrupted" in program("cohort", "status", folder, code=3).stdout
    program("cohort", "retry", folder)
    wait(folder, "002")
    assert_as_undisturbed(folder, undisturbed)


def test_killed_and_tried_again(folder: Path, undisturbed: Path) -> None:
    os.kill(int(str(state(folder)["pid"])), signal.SIGKILL)
    wait(folder)  # the report comes all the same
    assert summary(folder)["interrupted"] == 1
    assert (folder / "failures.csv").read_text().count("gone: killed, or out of time") == 1
    assert leftovers(folder) != []  # it had no time to clear away what it had in hand
    program("cohort", "retry", folder)
    wait(folder, "002")
    assert_as_undisturbed(folder, undisturbed)
