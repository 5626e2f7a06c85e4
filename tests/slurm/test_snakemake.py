"""A small cohort through Snakemake on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SNAKEFILE = ROOT / "pipelines" / "snakemake" / "Snakefile"
PATIENCE_S = 600

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(PATIENCE_S + 300)]

# --slurm-status-command: without accounting, sacct never says that a job has ended
ON_SLURM = (
    *("--executor", "slurm", "--jobs", "3", "--slurm-no-account"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"),
    *("--seconds-between-status-checks", "3", "--latency-wait", "30"),
)


def run_snakemake(snakemake: str, folder: Path, *options: str) -> tuple[int, str]:
    """Its exit code and what it said; ends it, and its jobs, where it does not end itself."""
    command = [snakemake, "-s", str(SNAKEFILE), "--configfile", "config.json", *options]
    # so named that no job of others is cancelled
    prefix = f"wsi-pgdips-test-{os.getpid()}"
    if "--executor" in options:
        command += ["--slurm-jobname-prefix", prefix]
    log = folder / "snakemake.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=PATIENCE_S)
        except BaseException:
            # told to end, it waits for its jobs, and may wait for ever
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            cancel_jobs(prefix)
            raise
    return code, log.read_text()


def cancel_jobs(prefix: str) -> None:
    """Cancel the jobs whose names begin so."""
    asked = subprocess.run(["squeue", "-h", "-o", "%i %j"], capture_output=True, text=True)
    jobs = [line.split(maxsplit=1) for line in asked.stdout.splitlines()]
    ours = [job for job, name in jobs if name.startswith(prefix)]
    if ours:
        subprocess.run(["scancel", *ours], check=False)


def contents(layers: Path) -> dict[str, bytes]:
    """Every file but the one that differs from run to run."""
    files = {str(p.relative_to(layers)): p.read_bytes() for p in layers.rglob("*") if p.is_file()}
    del files["provenance/run.json"]
    return files


def test_a_cohort_ends_as_direct_runs_do_and_a_broken_slide_stops_no_other(
    snakemake: str, tmp_path: Path
):
    from wsi_pgdips.layers.provenance import is_done

    found = shutil.which("wsi-pgdips", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.fail("wsi-pgdips is not installed beside the running Python: pip install -e .")
    names = "with space", "plain"
    for seed, name in enumerate(names):
        slide = tmp_path / f"{name}.tiff"
        subprocess.run(
            [found, "phantom", slide, "--size", "512", "--seed", str(seed)],
            check=True,
            capture_output=True,
        )
    (tmp_path / "broken.svs").write_text("no slide at all\n")
    (tmp_path / "cohort.csv").write_text(
        "slide,reference\nwith space.tiff,he\nbroken.svs,he\nplain.tiff,\n"
    )
    (tmp_path / "fast.toml").write_text('preset = "fast"\n')
    config = {
        "manifest": "cohort.csv",
        "settings": "fast.toml",
        "program": found,
        "threads": 1,
        # for the imports, which take most of it, and differ between machines
        "resources": {"mem_mb": 4000, "runtime": 10},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    code, said = run_snakemake(snakemake, tmp_path, *ON_SLURM, "--keep-going")
    logs = tmp_path / "layers" / "logs"
    for log in logs.glob("*.log"):
        said += f"\n{log.name}:\n{log.read_text()}"
    assert code != 0, said
    assert "not a slide or image" in (logs / "broken.run.log").read_text(), said
    assert not (tmp_path / "layers" / "broken.ome.zarr").exists()
    for name in names:
        layers = tmp_path / "layers" / f"{name}.ome.zarr"
        assert is_done(layers), said
        direct = tmp_path / "direct" / f"{name}.ome.zarr"
        slide = tmp_path / f"{name}.tiff"
        subprocess.run(
            [found, "run", slide, direct, "--preset", "fast", "--threads", "1"],
            check=True,
            capture_output=True,
        )
        assert contents(layers) == contents(direct)
    pictures = [path.name for path in (tmp_path / "layers").glob("*.tiff")]
    assert pictures == ["with space.he.tiff"], said

    # given again, only the broken slide is left to do
    code, said = run_snakemake(snakemake, tmp_path, "--dry-run", "--cores", "1")
    assert code == 0, said
    counts = dict(re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE))
    assert counts == {"deconvolve": "1", "normalize": "1", "all": "1", "total": "3"}, said
    assert "wildcards: key=broken" in said
