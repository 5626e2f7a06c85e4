"""The examples in pipelines/ load, and the batch script refuses to start without its arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wsi_pgdips.config import make_settings
from wsi_pgdips.optics.stains import load_stains

PIPELINES = Path(__file__).parent.parent / "pipelines"


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.toml")), ids=lambda p: p.name)
def test_example_settings_load_and_their_stains_exist(path: Path):
    settings = make_settings({}, path)
    assert load_stains(settings.science.stains).n >= 1


def test_he_example_states_the_defaults():
    assert make_settings({}, PIPELINES / "he.toml").science == make_settings({}).science


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("**/*.sbatch")), ids=lambda p: p.name)
def test_batch_scripts_are_valid_bash(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_run_slide_passes_arguments_on(tmp_path: Path):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(PIPELINES / "slurm/run_slide.sbatch"), "a b.svs", "out", "--preset", "fast"],
        env={"PATH": "/usr/bin:/bin", "WSI_PGDIPS": str(program), "SLURM_CPUS_PER_TASK": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["run", "a b.svs", "out", "--threads", "3", "--preset", "fast"]
    assert done.stdout.splitlines() == expected


def test_run_slide_says_how_it_is_used():
    done = subprocess.run(
        ["bash", str(PIPELINES / "slurm/run_slide.sbatch"), "a.svs"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "usage: sbatch run_slide.sbatch SLIDE" in done.stderr
