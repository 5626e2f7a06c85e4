"""Adam over one cycle of rates, by torch's own function for it.

Not by ``torch.optim.Adam`` and its schedulers: making one imports torch's compiler, which takes two
seconds and memory for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

BETA2, EPSILON = 0.99, 1e-8
WARM_SHARE = 0.1  # of the steps, in which the rate rises
FIRST, LAST = 1 / 25, 1 / 25e4  # of the highest rate
MOMENTUM = (0.95, 0.85)  # beta1 where the rate is lowest, and highest


class OneCycleAdam:
    """Trains tensors for a number of steps that is known before.

    Args:
        parameters: changed in place. rate: the highest. steps: of the whole training.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float, steps: int) -> None:
        self._parameters = list(parameters)
        self._rate, self._steps, self._done = rate, max(steps, 2), 0
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._counts = [torch.zeros((), device=p.device) for p in self._parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step down.

        Args:
            gradients: of each parameter, in order.
        """
        rate, beta1 = one_cycle(self._done, self._steps, self._rate)
        self._done += 1
        adam(
            self._parameters,
            list(gradients),
            self._means,
            self._squares,
            [],
            self._counts,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=BETA2,
            lr=rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )


def one_cycle(step: int, steps: int, rate: float) -> tuple[float, float]:
    """(rate, beta1) of a step: up by half a cosine, then down; momentum the other way (Smith 2018).

    Args:
        step: from 0. steps: of the training. rate: the highest.
    """
    top = WARM_SHARE * steps - 1
    slow, fast = MOMENTUM
    if step < top:
        return _between(FIRST * rate, rate, step / top), _between(slow, fast, step / top)
    share = (step - top) / (steps - 1 - top)
    return _between(rate, LAST * rate, share), _between(fast, slow, share)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
