"""One cheap slide with finished layers, that all adapters look at; nobody may change it."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from support.adapter_case import Case
from support.cheap_runs import FAST, phantom


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("adapters")
    slide = phantom(folder, "tiny", (700, 1100))
    made = Case(folder)
    assert slide.run(made.layers, **FAST, mpp="native").exit_code == 0
    shutil.copy(slide.path, made.slide)
    Image.fromarray(made.tile(side=512)).save(folder / "tile.png")
    return made
