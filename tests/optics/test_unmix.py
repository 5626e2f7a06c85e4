"""Closed-form unmixing against scipy's NNLS, the KKT conditions, and its own limits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import nnls

from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray

ZERO = torch.zeros(3)
RIDGE = 1e-6


pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def stain_matrices(draw: st.DrawFn, n: int, max_condition: float = 20.0) -> FloatArray:
    """(N, 3) unit rows as in the library: components of at least -0.1, rows that differ."""
    elements = st.floats(-0.09375, 1.0, width=32, allow_subnormal=False)
    rows = unit_rows(draw(hnp.arrays(np.float32, (n, 3), elements=elements)))
    assume(bool((np.linalg.norm(rows, axis=1) > 0.5).all()))
    assume(bool(rows.min() >= -0.1))
    assume(float(np.linalg.cond(rows)) < max_condition)
    return rows


def pixels(count: int) -> st.SearchStrategy[FloatArray]:
    elements = st.floats(-0.25, 2.75, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, (3, count), elements=elements)


def of(a: FloatArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, np.float32))


@pytest.mark.parametrize("n", [1, 2, 3])
@settings(max_examples=60)
@given(data=st.data())
def test_equals_scipy_nnls(n: int, data: st.DataObject) -> None:
    rows, od = data.draw(stain_matrices(n)), data.draw(pixels(6))
    q = unmix(of(od), of(rows), ZERO).numpy()
    expected = np.stack([nnls(rows.T.astype(np.float64), y)[0] for y in od.T.astype(np.float64)], 1)
    assert q.min() >= 0
    # float32 and the ridge: errors grow with the square of the condition number
    tolerance = 2e-5 * max(float(np.linalg.cond(rows)) ** 2, 1.0) + 1e-5
    if n == 3:
        # sets of stains are told apart by their gain, where an amount counts by its square
        tolerance += 1e-3
    np.testing.assert_allclose(q, expected, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@settings(max_examples=40)
@given(data=st.data())
def test_kkt_with_lambda_and_prior(n: int, data: st.DataObject) -> None:
    """Gradient zero where q > 0 and not negative where q = 0: the optimum of a convex problem."""
    rows = data.draw(stain_matrices(n, max_condition=20.0 if n <= 3 else 1e9))
    weights = st.floats(2**-6, 4, width=32)
    weight = data.draw(hnp.arrays(np.float32, (n,), elements=weights))
    amounts = st.floats(0, 2, width=32, allow_subnormal=False)
    prior = data.draw(hnp.arrays(np.float32, (n, 5), elements=amounts))
    od = data.draw(pixels(5))
    q = unmix(of(od), of(rows), ZERO, of(weight), of(prior)).numpy().astype(np.float64)
    ridge = RIDGE if n <= 3 else 1e-3
    s = rows.astype(np.float64)
    gradient = s @ (s.T @ q - od) + weight[:, None] * (q - prior) + ridge * q
    assert q.min() >= 0
    # two subsets whose float32 gains tie differ by the root of that rounding in their gradient
    assert gradient.min() > -5e-3
    assert np.abs(gradient * q).max() < 5e-3


@settings(max_examples=30)
@given(data=st.data())
def test_two_stains_agree_with_the_enumeration(data: st.DataObject) -> None:
    """Two stains have a formula of their own; a third that is never present changes nothing."""
    rows, od = data.draw(stain_matrices(2)), data.draw(pixels(6))
    q = unmix(of(od), of(rows), ZERO).numpy()
    best = np.full(od.shape[1], np.inf)
    exact = np.zeros((2, od.shape[1]))
    for size in (0, 1, 2):
        for subset in combinations(range(2), size):
            part = rows[list(subset)].astype(np.float64).T
            solution = np.linalg.lstsq(part, od.astype(np.float64), rcond=None)[0]
            cost = ((od - part @ solution) ** 2).sum(0)
            better = (solution >= 0).all(0) & (cost < best)
            best = np.where(better, cost, best)
            full = np.zeros_like(exact)
            full[list(subset)] = solution
            exact = np.where(better, full, exact)
    tolerance = 2e-5 * float(np.linalg.cond(rows)) ** 2 + 1e-5
    np.testing.assert_allclose(q, exact, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_stain_matrix_per_pixel_equals_the_constant_one(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = unit_rows(rng.uniform(0.05, 1, (n, 3)))
    od, b = of(rng.uniform(0, 1.5, (3, 7, 9))), of(np.array([0.05, 0.02, 0.08]))
    spread = of(np.broadcast_to(rows[:, :, None, None], (n, 3, 7, 9)))
    constant = unmix(od, of(rows), b)
    varying = unmix(od, spread, b.reshape(3, 1, 1).expand(3, 7, 9).contiguous())
    assert constant.shape == (n, 7, 9)
    torch.testing.assert_close(varying, constant, atol=1e-6, rtol=1e-5)


def test_each_pixel_sees_its_own_stain_matrix() -> None:
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.uniform(0.05, 1, (4, 2, 3)))  # one matrix for each of four pixels
    od = rng.uniform(0, 1.5, (3, 4)).astype(np.float32)
    together = unmix(of(od), of(rows.transpose(1, 2, 0)), ZERO)
    for i in range(4):
        alone = unmix(of(od[:, i : i + 1]), of(rows[i]), ZERO)
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n", [4, 6, 8])
def test_more_stains_than_channels_stay_finite_and_explain_the_pixel(n: int) -> None:
    rng = np.random.default_rng(7)
    rows = unit_rows(rng.uniform(0.02, 1, (n, 3)))
    truth = rng.gamma(0.5, 0.5, (n, 200)).astype(np.float32)
    od = rows.T @ truth
    q = unmix(of(od), of(rows), ZERO).numpy()
    assert np.isfinite(q).all()
    assert q.min() >= 0
    assert np.abs(rows.T @ q - od).max() < 0.02


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_large_lambda_returns_the_prior(n: int) -> None:
    rng = np.random.default_rng(3)
    rows = unit_rows(rng.uniform(0.05, 1, (n, 3)))
    prior = of(rng.uniform(0, 2, (n, 5, 5)))
    od = of(rng.uniform(0, 2, (3, 5, 5)))
    q = unmix(od, of(rows), ZERO, torch.full((n,), 1e6), prior)
    torch.testing.assert_close(q, prior, atol=1e-4, rtol=1e-4)


def test_lambda_of_zero_is_plain_nnls_whatever_the_prior() -> None:
    rng = np.random.default_rng(4)
    rows = of(unit_rows(rng.uniform(0.05, 1, (2, 3))))
    od = of(rng.uniform(0, 2, (3, 50)))
    pulled = unmix(od, rows, ZERO, torch.zeros(2), torch.rand(2, 50))
    torch.testing.assert_close(pulled, unmix(od, rows, ZERO))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_glass_holds_nothing(n: int) -> None:
    rows = unit_rows(np.random.default_rng(5).uniform(0.05, 1, (n, 3)))
    b = torch.tensor([0.1, 0.02, 0.05])
    od = b[:, None].expand(3, 4).contiguous()
    assert unmix(od, of(rows), b).abs().max() == 0
    assert unmix(od - 0.05, of(rows), b).abs().max() == 0


def test_lambda_without_a_prior_is_refused() -> None:
    with pytest.raises(ValueError, match="prior"):
        unmix(torch.zeros(3, 4), torch.ones(1, 3), ZERO, torch.ones(1))


def test_more_than_eight_stains_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8 stains"):
        unmix(torch.zeros(3, 4), torch.ones(9, 3), ZERO)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_cuda_equals_cpu(n: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(6)
    rows, od = of(unit_rows(rng.uniform(0.05, 1, (n, 3)))), of(rng.uniform(0, 2, (3, 64, 64)))
    weight, prior = torch.full((n,), 0.05), of(rng.uniform(0, 1, (n, 64, 64)))
    arguments = (od, rows, ZERO, weight, prior)
    there = unmix(*(a.cuda() for a in arguments)).cpu()
    torch.testing.assert_close(there, unmix(*arguments), atol=1e-3, rtol=1e-3)
