"""One thread, and full precision where a test asks for it."""

from __future__ import annotations

import pytest
import torch

from wsi_pgdips.solver import optimise


@pytest.fixture(autouse=True)
def _always_one_thread(one_thread: None) -> None:
    """Hold every test of the solver to one thread."""


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 throughout: bf16 would hide whether two ways of computing agree."""
    monkeypatch.setattr(
        optimise, "autocast", lambda device: torch.autocast(device.type, enabled=False)
    )
