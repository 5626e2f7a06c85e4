"""What every room's tests share: real data, a real Slurm, and when their absence is a failure.

``WSI_PGDIPS_DATA``     folder of the real slides; without it tests marked ``realslide`` skip.
``WSI_PGDIPS_SLURM``    ``1`` promises a Slurm; else ``slurm`` tests skip where none answers.
``WSI_PGDIPS_SNAKEMAKE``  the program; else ``snakemake`` on PATH; tests that run it skip without.
``WSI_PGDIPS_REQUIRE``  ``1``: a ``realslide`` or ``slurm`` test that skips fails instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support.cheap_runs import BALANCED, FAST, SHAPE, Slide, phantom
from support.foreign import OPTIONS, Specked, specked_slide
from wsi_pgdips import cli
from wsi_pgdips.layers.reader import Layers, open_layers

REQUIRED_MARKERS = ("realslide", "slurm")

# the machines that run this are shared: how long an example takes says nothing about the code
# and a check of a submission must not depend on which examples were drawn that day
settings.register_profile("project", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("project")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real slides; skips where there is none."""
    value = os.environ.get("WSI_PGDIPS_DATA")
    if not value:
        pytest.skip("WSI_PGDIPS_DATA is not set: no real slides to test with")
    path = Path(value).resolve()
    if not path.is_dir():
        pytest.fail(f"WSI_PGDIPS_DATA is set, but {path} is no folder")
    return path


@pytest.fixture(scope="session")
def snakemake() -> str:
    """Snakemake's program, usually of an environment of its own; skips where there is none."""
    found = os.environ.get("WSI_PGDIPS_SNAKEMAKE") or shutil.which("snakemake")
    if found is None:
        pytest.skip(
            "no Snakemake here: `pip install snakemake snakemake-executor-plugin-slurm` in an "
            "environment of its own, and WSI_PGDIPS_SNAKEMAKE names its program"
        )
    return found


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return phantom(tmp_path_factory.mktemp("slide"), "tiny", SHAPE)


@pytest.fixture(scope="session")
def finished(slide: Slide, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """A clean ``fast`` run of ``slide``."""
    output = tmp_path_factory.mktemp("fast") / "out.ome.zarr"
    assert slide.run(output, **FAST).exit_code == 0
    return open_layers(output)


@pytest.fixture(scope="session")
def balanced(slide: Slide, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """A clean ``balanced`` run of ``slide``."""
    output = tmp_path_factory.mktemp("balanced") / "out.ome.zarr"
    assert slide.run(output, **BALANCED).exit_code == 0
    return open_layers(output)


@pytest.fixture(scope="session")
def specked(tmp_path_factory: pytest.TempPathFactory) -> Specked:
    """A slide with grains of pigment."""
    return specked_slide(tmp_path_factory.mktemp("specked"))


@pytest.fixture(scope="session")
def specked_layers(specked: Specked, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """A ``fast`` run of ``specked``."""
    output = tmp_path_factory.mktemp("specked_run") / "out.ome.zarr"
    assert specked.slide.run(output, **OPTIONS).exit_code == 0
    return open_layers(output)


@pytest.fixture
def one_thread() -> Generator[None]:
    """Let torch use one thread in the test, and as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program in this process; returns its exit code."""

    def program(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["wsi-pgdips", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return program


@cache
def slurm_answers() -> bool:
    """Whether a Slurm can be submitted to from here."""
    if os.environ.get("WSI_PGDIPS_SLURM") == "1":
        return True
    if shutil.which("sbatch") is None:
        return False
    try:
        return subprocess.run(["squeue", "-h"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, so that the markers alone are enough."""
    if item.get_closest_marker("realslide") and not os.environ.get("WSI_PGDIPS_DATA"):
        pytest.skip("WSI_PGDIPS_DATA is not set: no real slides to test with")
    if item.get_closest_marker("slurm") and not slurm_answers():
        pytest.skip("no Slurm answers here: tests/slurm/start_slurm.sh brings one up on loopback")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that was asked for into a failure (``WSI_PGDIPS_REQUIRE=1``)."""
    report = yield
    asked = os.environ.get("WSI_PGDIPS_REQUIRE") == "1"
    marked = any(item.get_closest_marker(name) for name in REQUIRED_MARKERS)
    if asked and marked and report.skipped and not hasattr(report, "wasxfail"):
        reason = call.excinfo.value if call.excinfo else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped although WSI_PGDIPS_REQUIRE=1: {reason}"
    return report
