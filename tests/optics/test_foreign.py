"""What no stain explains, what is too dark or grey to tell, and what is surely DAB."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.optics.foreign import (
    BLACK_OD,
    DARK_OD,
    LEAST_OD,
    is_brown,
    is_foreign,
    is_grey,
    smooth_share,
)
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import FloatArray

HE, HDAB = (load_stains(name).stain_matrix for name in ("he", "hdab"))


def foreign(rgb: tuple[int, int, int], rows: FloatArray, strength: float = 1.0) -> bool:
    """Whether a colour over white is foreign to a set."""
    y = np.float32(-np.log10(np.array(rgb) / 245.0) * strength)
    q = unmix(torch.from_numpy(y[:, None]), torch.from_numpy(rows), torch.zeros(3)).numpy()
    return bool(is_foreign(np.linalg.norm(y), np.linalg.norm(y - q[:, 0] @ rows)))


@pytest.mark.parametrize("rgb", [(30, 120, 80), (40, 60, 170), (20, 150, 160)])
def test_colours_of_ink_are_foreign(rgb: tuple[int, int, int]) -> None:
    assert foreign(rgb, HE)


@given(
    q=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    error=st.tuples(*[st.floats(-0.005, 0.005)] * 3),
)
def test_mixtures_of_the_stains_are_not(
    q: tuple[float, float], error: tuple[float, float, float]
) -> None:
    y = q @ HE + np.array(error)
    found = unmix(torch.from_numpy(np.float32(y[:, None])), torch.from_numpy(HE), torch.zeros(3))
    outside = np.linalg.norm(y - found.numpy()[:, 0] @ HE)
    assert not is_foreign(np.linalg.norm(y), outside)


def test_what_is_pale_has_no_direction_to_speak_of() -> None:
    assert not is_foreign(0.9 * LEAST_OD, 0.9 * LEAST_OD)
    assert is_foreign(2 * LEAST_OD, LEAST_OD)
    assert not is_foreign(2 * LEAST_OD, LEAST_OD, noise=LEAST_OD)


def test_arrays_and_tensors_agree() -> None:
    rng = np.random.default_rng(0)
    strength, outside = rng.uniform(0, 1, 500), rng.uniform(0, 0.4, 500)
    found = is_foreign(strength, outside, 0.01)
    np.testing.assert_array_equal(
        found, is_foreign(torch.from_numpy(strength), torch.from_numpy(outside), 0.01).numpy()
    )
    share = smooth_share(strength, 0.3, 0.6)
    np.testing.assert_allclose(share, smooth_share(torch.from_numpy(strength), 0.3, 0.6).numpy())


@given(st.floats(-1, 2), st.floats(-1, 2))
def test_a_smooth_step_rises_from_0_to_1(a: float, b: float) -> None:
    low, high = (float(smooth_share(np.array(v), 0.5, 0.8)) for v in sorted((a, b)))
    assert 0 <= low <= high <= 1
    assert (smooth_share(np.array(0.5), 0.5, 0.8), smooth_share(np.array(0.8), 0.5, 0.8)) == (0, 1)


def test_what_is_dark_or_grey_tells_no_stain() -> None:
    blue, brown = HDAB * 0.6
    black = np.full(3, BLACK_OD)
    pale_grey = np.array([0.2, 0.2, 0.21])
    dense_brown = HDAB[1] * DARK_OD * 2.2 / HDAB[1].min() / 2
    found = is_grey(np.stack([blue, brown, black, pale_grey, dense_brown]))
    assert found.tolist() == [False, False, True, True, True]


def test_brown_is_dab_in_its_own_colour() -> None:
    q = np.array([[0.1, 0.8, 0.1, 0.4, 1.2], [0.8, 0.1, 0.1, 0.8, 1.2]], np.float32)
    y = np.einsum("np,nc->cp", q, HDAB)
    found = is_brown(y, q, 1, HDAB[1])
    # brown; blue; pale brown; brown over blue; black
    assert found.tolist() == [True, False, False, True, False]
    carbon = np.full((3, 1), 0.45)
    share = unmix(torch.from_numpy(np.float32(carbon)), torch.from_numpy(HDAB), torch.zeros(3))
    assert not is_brown(carbon, share.numpy(), 1, HDAB[1]).any()
