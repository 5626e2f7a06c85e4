"""The generator: shapes, independence of grouped problems, normalisation, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wsi_pgdips.solver import network
from wsi_pgdips.solver.network import NetworkSpec

SMALL = NetworkSpec(inputs=3, outputs=2)


def weights_of(spec: NetworkSpec, *seeds: int) -> dict[str, torch.Tensor]:
    return network.init_weights(spec, [torch.Generator().manual_seed(s) for s in seeds])


def images(count: int, spec: NetworkSpec = SMALL, side: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, spec.inputs, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", [SMALL, NetworkSpec(7, 1), NetworkSpec(3, 4, (4, 8))])
@pytest.mark.parametrize("count", [1, 2])
def test_shape_and_range(spec: NetworkSpec, count: int) -> None:
    x = images(count, spec)
    y = network.forward(weights_of(spec, *range(count)), x, spec)
    assert y.shape == (count, spec.outputs, 96, 96)
    assert y.dtype == torch.float32
    assert y.min() > 0
    assert y.max() < 1


def test_tall_inputs_keep_their_shape() -> None:
    x = torch.rand(1, 3, 96, 160)
    assert network.forward(weights_of(SMALL, 0), x, SMALL).shape == (1, 2, 96, 160)


@pytest.mark.parametrize("stride", [1, 2])
def test_one_launch_does_what_single_ones_do(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 4, 20, 24, generator=generator)
    weight = torch.rand(3, 5, 4, 3, 3, generator=generator)
    alone = [F.conv2d(x[i : i + 1], weight[i], stride=stride) for i in range(3)]
    torch.testing.assert_close(network.grouped(x, weight, stride), torch.cat(alone))


@pytest.mark.parametrize("side", [32, 64, 100, 127])
def test_sides_that_the_scales_cannot_halve_are_refused(side: int) -> None:
    with pytest.raises(ValueError, match="multiples of 32 and at least 96"):
        network.forward(weights_of(SMALL, 0), images(1, side=side), SMALL)


def test_the_smallest_side_follows_the_number_of_scales() -> None:
    shallow = replace(SMALL, channels=(8, 16))
    assert shallow.multiple == 4
    y = network.forward(weights_of(shallow, 0), images(1, side=12), shallow)
    assert y.shape == (1, 2, 12, 12)


def test_grouped_problems_equal_the_same_solved_singly() -> None:
    weights, x = weights_of(SMALL, 3, 4, 5), images(3)
    together = network.forward(weights, x, SMALL)
    for i in range(3):
        one = slice(i, i + 1)
        alone = network.forward({k: v[one] for k, v in weights.items()}, x[one], SMALL)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-4)


def test_no_gradient_flows_between_grouped_problems() -> None:
    weights = {k: v.requires_grad_() for k, v in weights_of(SMALL, 0, 1).items()}
    network.forward(weights, images(2), SMALL)[0].sum().backward()  # type: ignore[no-untyped-call]
    for name, value in weights.items():
        assert value.grad is not None, name
        assert value.grad[1].abs().max() == 0, name
    first = weights["down0.weight"].grad
    assert first is not None
    assert first[0].abs().max() > 0


def test_seeds_decide_the_weights_each_for_its_own_problem() -> None:
    a, b, both = weights_of(SMALL, 7), weights_of(SMALL, 8), weights_of(SMALL, 7, 8)
    for name in a:
        assert torch.equal(both[name], torch.cat([a[name], b[name]])), name
        assert torch.equal(a[name], weights_of(SMALL, 7)[name]), name
    assert not torch.equal(a["deep2.weight"], b["deep2.weight"])


def test_weights_match_the_declared_layers() -> None:
    weights = weights_of(SMALL, 0)
    shapes = network.layer_shapes(SMALL)
    for name, (out, inp, k) in shapes.items():
        assert weights[f"{name}.weight"].shape == (1, out, inp, k, k)
        assert weights[f"{name}.bias"].shape == (1, out)
        assert (f"{name}.gain" in weights) == (name != "head")
    assert len(weights) == 3 * len(shapes) - 1


def test_head_bias_sets_the_mean_map() -> None:
    odds = torch.tensor([[0.05, 0.6]])
    weights = network.init_weights(SMALL, [torch.Generator()], torch.logit(odds))
    # without the head's weights what is left is its bias
    weights["head.weight"] = torch.zeros_like(weights["head.weight"])
    y = network.forward(weights, images(1), SMALL)
    torch.testing.assert_close(y.mean((2, 3)), odds)


def test_normalisation_forgets_the_scale_of_its_input() -> None:
    x, weights = images(1), weights_of(SMALL, 0)
    change = network.forward(weights, 3 * x, SMALL) - network.forward(weights, x, SMALL)
    assert change.abs().max() < 1e-3


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weights, x = weights_of(SMALL, 0, 1), images(2)
    there = network.forward({k: v.cuda() for k, v in weights.items()}, x.cuda(), SMALL).cpu()
    # TF32 convolutions keep ten bits of each product
    torch.testing.assert_close(there, network.forward(weights, x, SMALL), atol=2e-2, rtol=2e-2)
