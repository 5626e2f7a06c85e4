"""Black and foreign pixels: who gets black, what is labelled, and where nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi_pgdips.optics.foreign import BLACK_OD, DARK_OD, smooth_share
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import Artifact, ByteArray, FloatArray
from wsi_pgdips.stages.pixels import artifacts_of, render_pixels, saturated_amounts

HDAB, HE = (load_stains(name).stain_matrix for name in ("hdab", "he"))
USUAL = np.array([0.1, 0.2], np.float32)
NO_GLASS = torch.zeros(3)

pytestmark = pytest.mark.usefixtures("one_thread")


def field(rows: FloatArray, h: int, w: int) -> torch.Tensor:
    return torch.from_numpy(
        np.ascontiguousarray(np.broadcast_to(rows[..., None, None], (*rows.shape, h, w)))
    )


def amounts(y: FloatArray, brown: float) -> tuple[FloatArray, FloatArray]:
    """(N, h, w) q of (3, h, w) OD as the renderer makes it, and without regard to black."""
    od, s = torch.from_numpy(y), field(HDAB, *y.shape[1:])
    q, _ = render_pixels(od, s, torch.zeros_like(od))
    black = smooth_share(od.amin(0), DARK_OD, BLACK_OD) * brown
    out = saturated_amounts(od, s, q, black, 1, torch.from_numpy(USUAL))
    return out.numpy(), q.numpy()


def black(level: float) -> FloatArray:
    return np.full((3, 4, 4), level, np.float32)


def test_black_near_brown_becomes_dab_with_at_most_the_usual_hematoxylin() -> None:
    found, before = amounts(black(1.2), 1.0)
    assert before[0].min() > 0.5  # as if it were dense nuclei
    assert found[0].max() <= USUAL[0] + 1e-6
    assert found[1].min() > before[1].max()
    assert found[1].min() > 1.5
    # along the vector of DAB nothing is lost
    left = black(1.2) - np.einsum("nhw,nc->chw", found, HDAB)
    np.testing.assert_allclose(np.einsum("chw,c->hw", left, HDAB[1]), 0, atol=1e-5)


def test_without_brown_around_black_stays_as_it_was() -> None:
    found, before = amounts(black(1.2), 0.0)
    np.testing.assert_array_equal(found, before)


def test_nothing_changes_where_it_is_not_dark() -> None:
    rng = np.random.default_rng(0)
    q = rng.uniform(0, 0.5, (2, 9, 7)).astype(np.float32)
    y = np.einsum("nhw,nc->chw", q, HDAB)
    assert y.min(0).max() < DARK_OD
    found, before = amounts(np.asarray(y, np.float32), 1.0)
    np.testing.assert_array_equal(found, before)


def test_from_brown_to_black_dab_never_falls() -> None:
    """Along the curve of a scanner: light that is recorded whatever absorbs it."""
    amount = np.linspace(0.1, 6, 200)
    light = 10 ** -(amount[:, None] * HDAB[1]) + 0.02
    y = -np.log10(light / 1.02).T[:, None].astype(np.float32)
    found, _ = amounts(np.ascontiguousarray(y), 1.0)
    assert np.diff(found[1, 0]).min() > -1e-4
    assert found[0].max() <= 0.35  # least of all where it begins to turn
    assert found[0, 0, -1] <= USUAL[0] + 1e-6


def labels(
    y: FloatArray, rows: FloatArray, brown: float | None = None, noise: float = 0.0
) -> ByteArray:
    h, w = y.shape[1:]
    around = None if brown is None else torch.full((h, w), brown)
    return artifacts_of(torch.from_numpy(np.ascontiguousarray(y)), field(rows, h, w), noise, around)


@pytest.mark.parametrize(("brown", "label"), [(1.0, Artifact.SATURATED), (0.0, Artifact.FOREIGN)])
def test_black_is_saturated_near_brown_and_foreign_elsewhere(brown: float, label: int) -> None:
    assert (labels(black(1.2), HDAB, brown) == label).all()


def test_grey_is_foreign_only_where_a_stain_saturates_and_no_brown_is_near() -> None:
    grey = black(0.5)
    assert (labels(grey, HDAB, 0.0) == Artifact.FOREIGN).all()
    assert not labels(grey, HDAB, 1.0).any()
    assert not labels(black(0.2), HDAB, 0.0).any()  # a paler one may be a mixture


@pytest.mark.parametrize("rows", [HE, HDAB], ids=["he", "hdab"])
def test_mixtures_of_stains_are_labelled_nowhere(rows: FloatArray) -> None:
    q = np.random.default_rng(0).uniform(0, 0.6, (2, 32, 32)).astype(np.float32)
    q = np.repeat(np.repeat(q[:, ::4, ::4], 4, 1), 4, 2)
    y = np.asarray(np.einsum("nhw,nc->chw", q, rows), np.float32)
    assert not labels(y, rows, 1.0 if rows is HDAB else None).any()


@pytest.mark.parametrize("shape", [(16, 16), (13, 18), (1, 3), (21, 4)])
def test_squares_at_the_end_are_those_of_the_pixels_that_are_there(shape: tuple[int, int]) -> None:
    h, w = shape
    y = np.zeros((3, h, w), np.float32)
    y[:, -1, -1] = (0.9, 0.0, 0.5)  # one green pixel in the last square
    found = labels(y, HE)
    assert found.shape == (-(-h // 4), -(-w // 4))
    assert found.dtype == np.uint8
    assert not found[:-1].any()
    assert not found[:, :-1].any()
    within = ((h - 1) % 4 + 1) * ((w - 1) % 4 + 1)
    length = np.linalg.norm(y[:, -1, -1]) / within
    assert bool(found[-1, -1]) == (length > 0.15)


def test_noise_makes_nothing_foreign() -> None:
    y = np.asarray((HE[0] * 0.3)[:, None, None] + np.zeros((3, 8, 8)), np.float32)
    y += np.float32([0.05, -0.06, 0.03])[:, None, None]
    assert (labels(y, HE) == Artifact.FOREIGN).all()
    assert not labels(y, HE, noise=0.05).any()
