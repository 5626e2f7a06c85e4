"""A slide through a real Slurm, by the batch script that users submit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "pipelines" / "slurm" / "run_slide.sbatch"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
PATIENCE_S = 1200

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(PATIENCE_S + 300)]


def installed_program() -> Path:
    """``wsi-pgdips`` of the environment that runs the tests."""
    found = shutil.which("wsi-pgdips", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.fail("wsi-pgdips is not installed beside the running Python: pip install -e .")
    return Path(found)


def wait_for(job: str) -> str:
    """The job's final state; polls, because ``sbatch --wait`` returns late."""
    give_up = time.monotonic() + PATIENCE_S
    state = "unknown"
    while time.monotonic() < give_up:
        query = ["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"]
        state = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        if state in ENDED:
            return state
        time.sleep(2)
    subprocess.run(["scancel", job], check=False)
    pytest.fail(f"job {job} was still {state} after {PATIENCE_S} s")


def test_a_phantom_slide_runs_as_a_job_and_its_output_is_complete(tmp_path: Path):
    # imported here: these pull in zarr, which a machine without Slurm need not load to skip
    import zarr

    from wsi_pgdips.layers.provenance import is_done

    program = installed_program()
    slide, out, log = tmp_path / "phantom.tif", tmp_path / "phantom.ome.zarr", tmp_path / "job.out"
    subprocess.run([program, "phantom", slide, "--size", "1024"], check=True)

    # all the node's memory: how much the imports alone take differs between machines
    resources = ["--cpus-per-task=2", "--mem=0", "--time=30", f"--output={log}"]
    submitted = subprocess.run(
        ["sbatch", "--parsable", *resources, SCRIPT, slide, out, "--preset", "fast"],
        env={**os.environ, "WSI_PGDIPS": str(program)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert submitted.returncode == 0, submitted.stderr
    state = wait_for(submitted.stdout.strip().split(";")[0])
    said = log.read_text() if log.exists() else "(no log)"
    assert state == "COMPLETED", said

    assert is_done(out), said
    level0 = zarr.open_group(out, mode="r")["0"]
    assert isinstance(level0, zarr.Array)
    assert level0.shape[0] == 2
    # 0 means "not measured": the tissue of the phantom was measured, for both stains
    assert (level0[:] > 0).any(axis=(1, 2)).all()
    assert not list(out.rglob("*.partial"))
