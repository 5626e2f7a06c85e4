"""Clocks that look at work from outside."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt

WARM_STEPS = 1
Seconds = npt.NDArray[np.float64]  # (2,): wall, CPU


class StepClock:
    """Seconds of steps: of those it is told of, and of torch's optimisers by itself."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._at: dict[int, list[float]] = defaultdict(list)

    def __enter__(self) -> Self:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook = register_optimizer_step_post_hook(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def note(self, *_: object) -> None:
        """A step is over."""
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
        self._at[threading.get_ident()].append(time.perf_counter())

    def seconds(self) -> float:
        """Of one step, once it goes at its pace; 0 where there were too few."""
        spans = [np.diff(at[WARM_STEPS:]) for at in self._at.values()]
        every = np.concatenate([np.zeros(0), *spans])
        return float(every.mean()) if len(every) else 0.0


def clock_now() -> Seconds:
    """Of this process, so far."""
    return np.array([time.perf_counter(), time.process_time()])


def seconds_of(work: Callable[[], object]) -> Seconds:
    start = clock_now()
    work()
    return clock_now() - start
