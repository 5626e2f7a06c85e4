"""Our steps against those of torch's classes, and what they must not drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from wsi_pgdips.solver.training import OneCycleAdam, one_cycle


@pytest.mark.parametrize("steps", [1, 2, 7, 13, 40])
def test_steps_are_those_of_torch(steps: int) -> None:
    start, target = torch.linspace(-1, 1, 12).reshape(3, 4), torch.full((3, 4), 0.3)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    mine = OneCycleAdam([ours], 8e-3, steps)
    adam = torch.optim.Adam([theirs], 8e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam, 8e-3, total_steps=max(steps, 2), pct_start=0.1
    )
    for _ in range(steps):
        mine.step(torch.autograd.grad(((ours - target) ** 2).sum(), [ours]))
        theirs.grad = torch.autograd.grad(((theirs - target) ** 2).sum(), [theirs])[0]
        adam.step()
        schedule.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours, start)


def test_the_rate_rises_and_falls() -> None:
    rates, momenta = zip(*(one_cycle(i, 100, 1.0) for i in range(100)), strict=True)
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] < 1e-5
    assert momenta[9] == min(momenta) == pytest.approx(0.85)


@pytest.mark.parametrize("steps", [2, 10, 11, 20])
def test_any_number_of_steps_has_rates(steps: int) -> None:
    assert all(0 < one_cycle(i, steps, 1.0)[0] <= 1 for i in range(steps))


def test_the_compiler_is_not_imported() -> None:
    program = (
        "import sys, torch; from wsi_pgdips.solver.training import OneCycleAdam;"
        "w = torch.ones(3, requires_grad=True); OneCycleAdam([w], 0.1, 4).step([torch.ones(3)]);"
        "assert float(w[0].detach()) < 1;"
        "print('torch._dynamo' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr
