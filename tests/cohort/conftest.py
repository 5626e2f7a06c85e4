"""Cohorts that several tests share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from support.cohorts import GOOD, OneByOne, Study, alone, lay_slides, program, table
from wsi_pgdips.pipeline import pool


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    lay_slides(folder)
    return folder


@pytest.fixture(scope="session")
def ran(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A cohort that a worker process has run, with failures; nobody may change it."""
    job = tmp_path_factory.mktemp("ran") / "job"
    study = Study(slides, slides / "cohort.csv", job, lambda *a: program(*a).returncode)
    assert study.run("--workers=1") == 3
    return study


@pytest.fixture(scope="session")
def separate(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layers of the good slides as runs of their own make them."""
    folder = tmp_path_factory.mktemp("separate")
    return {n: alone(slides / f"{n}.tiff", folder / f"{n}.ome.zarr") for n in GOOD}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> OneByOne:
    """Slides are run in this process."""
    inline = OneByOne(instead_of=pool.slide_pool)
    monkeypatch.setattr(pool, "slide_pool", inline)
    return inline


@pytest.fixture
def two(slides: Path, tmp_path: Path, call: Any, here: OneByOne) -> Study:
    """The good slides, to be run in this process, and a folder in which nothing is begun."""
    for name in GOOD:
        (tmp_path / "slides").mkdir(exist_ok=True)
        shutil.copyfile(slides / f"{name}.tiff", tmp_path / "slides" / f"{name}.tiff")
    manifest = table(tmp_path / "slides", "slide", "a.tiff", "b.tiff")
    return Study(tmp_path / "slides", manifest, tmp_path / "job", call)


@pytest.fixture
def one(two: Study) -> Study:
    table(two.slides, "slide", "a.tiff")
    return two
