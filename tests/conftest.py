"""What every room's tests share: real data, a real Slurm, and when their absence is a failure.

``WSI_PGDIPS_DATA``     folder of the real slides; without it ``realslide`` tests skip.
``WSI_PGDIPS_SLURM``    set where a Slurm is up; without it and without sbatch ``slurm`` tests skip.
``WSI_PGDIPS_REQUIRE``  ``1``: a skipped ``realslide`` or ``slurm`` test fails instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

REQUIRED_MARKERS = ("realslide", "slurm")

# the machines that run this are shared: how long an example takes says nothing about the code
settings.register_profile("project", deadline=None)
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
def slurm() -> None:
    """A Slurm to submit to; skips where there is none."""
    if shutil.which("sbatch") is None and not os.environ.get("WSI_PGDIPS_SLURM"):
        pytest.skip("no sbatch here: tests/slurm/start_slurm.sh brings up a Slurm on loopback")


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
