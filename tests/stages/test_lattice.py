"""The lattice index: it sees dots that are added, and neither edges nor noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from wsi_pgdips.records import FloatArray
from wsi_pgdips.stages.lattice import (
    BIN_OD,
    BINS,
    MOST_OD,
    WINDOW,
    count,
    lattice_figures,
    lattice_index,
    without_lattice,
)

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("Hematoxylin", "Eosin")


def noise(seed: int, side: int = 128) -> FloatArray:
    return np.random.default_rng(seed).normal(0.5, 0.05, (2, side, side)).astype(np.float32)


def index(final: FloatArray, closed: FloatArray) -> FloatArray:
    return np.asarray(lattice_index(torch.from_numpy(final), torch.from_numpy(closed)).numpy())


def dots(period: int, side: int = 128) -> FloatArray:
    """One pixel in each square of ``period`` pixels."""
    there = np.zeros((2, side, side), np.float32)
    there[:, 1::period, ::period] = 1
    return there


@pytest.mark.parametrize("period", [2, 4])
def test_the_index_is_the_height_of_the_dots(period: int) -> None:
    closed = np.full((2, 128, 128), 0.3, np.float32)
    found = index(closed + 0.2 * dots(period), closed)
    assert found.shape == (2, 8, 8)
    np.testing.assert_allclose(found, 0.2, atol=1e-6)


def test_stripes_and_boards_count_too() -> None:
    closed, y = np.zeros((2, 64, 64), np.float32), np.arange(64)
    stripes = np.broadcast_to(0.1 * (y % 2), (2, 64, 64)).astype(np.float32)
    board = np.broadcast_to(0.1 * ((y + y[:, None]) % 2), (2, 64, 64)).astype(np.float32)
    for pattern in (stripes, board, np.ascontiguousarray(stripes.transpose(0, 2, 1))):
        np.testing.assert_allclose(index(pattern, closed), 0.1, atol=1e-6)


def test_noise_that_stays_or_goes_is_no_lattice() -> None:
    closed = noise(0)
    smooth = gaussian_filter(closed, (0, 2, 2))
    assert not index(closed, closed).any()
    assert index(smooth, closed).max() < 0.001
    shifted = smooth + np.linspace(0, 1, 128, dtype=np.float32)
    assert index(shifted, closed).max() < 0.01  # a slope is none either


def test_only_what_is_added_counts() -> None:
    closed = noise(1) + 0.2 * dots(2)  # a lattice of the picture's own
    assert index(closed, closed).max() == 0
    assert index(closed - 0.1 * dots(2), closed).max() == 0
    np.testing.assert_allclose(index(closed + 0.1 * dots(2), closed), 0.1, atol=0.03)


def test_the_definition_written_out() -> None:
    final, closed = noise(2, 50), noise(3, 50)
    found = index(final, closed)
    assert found.shape == (2, 3, 3)
    for k, wy, wx in np.ndindex(found.shape):
        own = np.s_[k, wy * WINDOW : (wy + 1) * WINDOW, wx * WINDOW : (wx + 1) * WINDOW]
        excess = [0.0]
        for p in (2, 4):
            means = [
                [a[own][i::p, j::p].mean() for i in range(p) for j in range(p)]
                for a in (final, closed)
            ]
            excess.append(float(np.ptp(means[0]) - np.ptp(means[1])))
        assert found[k, wy, wx] == pytest.approx(max(excess), abs=1e-6)


def test_figures_are_those_of_all_windows() -> None:
    rng = np.random.default_rng(4)
    parts = [rng.gamma(0.5, 0.02, (2, 32, 32)).astype(np.float32) for _ in range(3)]
    figures = lattice_figures(LABELS, [count(torch.from_numpy(p)) for p in parts])
    every = np.concatenate([p.reshape(2, -1) for p in parts], 1)
    for label, own in zip(LABELS, every, strict=True):
        worst = np.quantile(own, 0.999, method="inverted_cdf")
        assert figures["lattice_p999"][label] == pytest.approx(worst, abs=BIN_OD)
        assert figures["lattice_max"][label] == pytest.approx(own.max(), abs=BIN_OD)


def test_what_was_not_measured_has_no_figure() -> None:
    nothing = np.zeros((2, BINS), np.int64)
    for counts in ([], [nothing, nothing]):
        figures = lattice_figures(LABELS, counts)
        assert figures == {name: dict.fromkeys(LABELS) for name in figures}
        assert set(figures) == {"lattice_p999", "lattice_max"}


def test_an_index_beyond_the_histogram_is_in_its_last_bin() -> None:
    counts = count(torch.tensor([[[5.0, 0.0]], [[0.0, 0.0]]]))
    assert counts.sum() == 4
    assert counts[0, -1] == 1
    assert lattice_figures(LABELS, [counts])["lattice_max"]["Hematoxylin"] == 2.0


def test_dots_are_taken_out_and_nothing_else() -> None:
    """Whatever is written, no window keeps an index beyond the limit; the others do not change."""
    closed = torch.from_numpy(noise(5, 100))
    smooth = torch.from_numpy(gaussian_filter(noise(5, 100), (0, 1, 1)))
    final = smooth.clone()
    final[:, 16:32, 48:64] += 1.9 * torch.from_numpy(dots(2, 16))
    final[1, 64:80, 32:48] += 0.3 * torch.from_numpy(dots(4, 16))[1]
    index = lattice_index(final, closed)
    assert index.max() > 1
    moved = without_lattice(final, closed, index)
    assert lattice_index(moved, closed).max() <= MOST_OD + 1e-5
    fine = (index <= MOST_OD).repeat_interleave(WINDOW, 1).repeat_interleave(WINDOW, 2)
    assert torch.equal(moved[:, :96, :96][fine], final[:, :96, :96][fine])
    assert torch.equal(moved[:, 96:], final[:, 96:])
    # what is not periodic stays: the map is as smooth as it was, but for the mean of the dots
    left = (moved - smooth)[:, 16:32, 48:64]
    assert left.std() < 0.02
    assert without_lattice(closed, closed, torch.zeros(2, 6, 6)) is closed
