"""One thread, and full precision where a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from wsi_pgdips.solver import optimise


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 throughout: bf16 would hide whether two ways of computing agree."""
    monkeypatch.setattr(
        optimise, "autocast", lambda device: torch.autocast(device.type, enabled=False)
    )
