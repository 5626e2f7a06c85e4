"""Small phantoms and finished runs that many tests look at; nobody may change them."""

from __future__ import annotations

import pytest
from cheap_runs import BALANCED, FAST, SHAPE, Slide, phantom

from wsi_pgdips.layers.reader import Layers, open_layers


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
