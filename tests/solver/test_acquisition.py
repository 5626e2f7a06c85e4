"""JPEG, noise and defocus are found in the pixels, and put on as they were found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from support.synthetic import GLASS, HE, concentrations, of_all_sizes, tile_of
from wsi_pgdips.optics.physics import compose_od
from wsi_pgdips.records import Acquisition, FloatArray
from wsi_pgdips.solver.acquisition import (
    LEAST_NOISE_UNDER_JPEG,
    UNKNOWN_NOISE_OD,
    estimate_acquisition,
    tissue_noise,
)
from wsi_pgdips.solver.degrade import degrade
from wsi_pgdips.solver.tile import TileInput

SIDE = 256


def clean_od(seed: int = 0, sigma: float = 3.0) -> FloatArray:
    return compose_od(concentrations(2, SIDE, seed, sigma=sigma), HE, GLASS)


def tile_with(od: FloatArray) -> TileInput:
    return TileInput(od, np.ones(od.shape[1:], bool), GLASS, 0, 0)


def estimated(acquisition: Acquisition, sigma: float = 3.0) -> Acquisition:
    clean = [clean_od(s, sigma) for s in (0, 1)]
    tiles = [
        tile_with(degrade(od, acquisition, np.random.default_rng(i))) for i, od in enumerate(clean)
    ]
    everywhere = np.ones((SIDE, SIDE), bool)
    with ThreadPoolExecutor(2) as executor:
        return estimate_acquisition(tiles, [(od, everywhere) for od in clean], HE, executor)


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:2", "4:2:0", "rgb"])
@pytest.mark.parametrize("quality", [30, 50, 80])
def test_a_jpeg_is_found(quality: int, chroma: str) -> None:
    found = estimated(Acquisition(1.5, quality, chroma))
    assert (found.quality, found.chroma) == (quality, chroma)
    assert found.noise >= LEAST_NOISE_UNDER_JPEG


@pytest.mark.parametrize("noise", [1.5, 4.0])
@pytest.mark.parametrize(("quality", "chroma"), [(0, ""), (92, "4:4:4")])
def test_noise_is_measured(noise: float, quality: int, chroma: str) -> None:
    found = estimated(Acquisition(noise, quality, chroma), sigma=12.0)
    assert found.quality == quality
    assert found.noise == pytest.approx(noise, rel=0.15)


@pytest.mark.parametrize("coarse", [(3.0, 0.0, 0.0), (0.0, 2.0, 0.0), (1.5, 0.0, 1.5)])
def test_blotches_of_colour_are_measured_by_their_grain(coarse: tuple[float, ...]) -> None:
    found = estimated(Acquisition(2.5, 0, "", coarse=coarse), sigma=12.0)
    assert found.quality == 0
    assert found.noise == pytest.approx(2.5, rel=0.2)
    np.testing.assert_allclose(found.coarse, coarse, atol=0.8)
    assert np.linalg.norm(found.coarse) == pytest.approx(np.linalg.norm(coarse), rel=0.2)


@pytest.mark.parametrize(("quality", "chroma"), [(0, ""), (80, "4:2:0")])
@pytest.mark.parametrize("sigma", [2.0, 12.0])
def test_tissue_and_what_a_jpeg_explains_are_no_blotches(
    quality: int, chroma: str, sigma: float
) -> None:
    assert not any(estimated(Acquisition(2.5, quality, chroma), sigma).coarse)


def test_blotches_keep_the_brightness() -> None:
    od = np.full((3, 64, 64), 0.3, np.float32)
    shown = degrade(od, Acquisition(0.0, 0, "", coarse=(0.0, 6.0)), np.random.default_rng(0))
    counts = 255 * 10.0**-shown
    assert counts.mean(0).std() < 0.5
    assert counts.std() == pytest.approx(6.0, rel=0.1)
    beside = np.corrcoef(counts[0, :, 1:].ravel(), counts[0, :, :-1].ravel())[0, 1]
    assert beside > 0.8


def test_how_many_threads_look_changes_nothing() -> None:
    od = clean_od()
    tile = tile_with(degrade(od, Acquisition(2.0, 0, ""), np.random.default_rng(0)))
    found = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as executor:
            found.append(estimate_acquisition([tile], [(od, tile.tissue)], HE, executor))
    assert found[0] == found[1]


def test_degrading_adds_photon_noise_and_keeps_the_mean() -> None:
    od = np.full((3, 64, 64), 0.3, np.float32)
    shown = degrade(od, Acquisition(4.0, 0, ""), np.random.default_rng(0))
    counts = 255 * 10.0**-shown
    assert counts.mean() == pytest.approx(255 * 10**-0.3, rel=0.01)
    assert counts.std() == pytest.approx(4.0 * 10**-0.15, rel=0.1)


def test_degrading_is_decided_by_its_generator() -> None:
    od, how = clean_od(), Acquisition(3.0, 70, "4:2:0")
    a, b, c = (degrade(od, how, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert np.isfinite(a).all()


def test_black_and_white_survive() -> None:
    od = np.zeros((3, 32, 32), np.float32)
    od[:, :16] = 9.0
    shown = degrade(od, Acquisition(1.5, 80, "4:2:0"), np.random.default_rng(0))
    assert np.isfinite(shown).all()
    assert shown[:, :8].min() > 1.5
    assert shown[:, 24:].max() < 0.1


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.03])
def test_noise_is_that_of_quiet_tissue(noise: float) -> None:
    tile = tile_of(concentrations(2, 128, 0, sigma=16.0), HE, noise=noise)
    # the quietest fifth of the squares lies a little below the mean
    assert 0.8 * noise < tissue_noise(tile.corrected, tile.own_tissue) < 1.05 * noise


def test_noise_without_a_quiet_square_is_a_default() -> None:
    tile = tile_of(concentrations(1, 96, 0), HE[:1], tissue=False)
    assert tissue_noise(tile.corrected, tile.own_tissue) == UNKNOWN_NOISE_OD
    small = tile_of(concentrations(1, 12, 0), HE[:1])
    assert tissue_noise(small.corrected, small.own_tissue) == UNKNOWN_NOISE_OD


def test_a_tile_smaller_than_the_window_is_enough() -> None:
    tile = tile_of(concentrations(2, 96, 0), HE)
    clean = compose_od(concentrations(2, 96, 0), HE, GLASS)
    with ThreadPoolExecutor(1) as executor:
        found = estimate_acquisition([tile], [(clean, tile.tissue)], HE, executor)
    assert found.noise > 0


def defocus(q: list[FloatArray]) -> float:
    clean, tiles = [], []
    for i, own in enumerate(q):
        od = compose_od(own, HE, GLASS)
        tiles.append(tile_with(degrade(od, Acquisition(1.5, 0, ""), np.random.default_rng(i))))
        half = own.reshape(2, own.shape[1] // 2, 2, -1, 2).mean((2, 4))
        clean.append((compose_od(half, HE, GLASS * 0), np.ones(half.shape[1:], bool)))
    with ThreadPoolExecutor(1) as executor:
        return estimate_acquisition(tiles, clean, HE, executor).defocus


def test_a_slide_out_of_focus_is_told_from_a_sharp_one() -> None:
    lens, out = 1.5, 2.0
    # half the resolution is out of focus by half as much: what is missing is sqrt(2^2 - 1^2)
    found = defocus([of_all_sizes(s, np.hypot(lens, out)) for s in (0, 1)])
    assert found == pytest.approx(np.sqrt(3), rel=0.15)
    assert defocus([of_all_sizes(s, lens) for s in (0, 1)]) == 0


@pytest.mark.parametrize("sigma", [1.5, 3.0, 5.0])
def test_smooth_blobs_are_not_out_of_focus(sigma: float) -> None:
    assert defocus([concentrations(2, SIDE, s, sigma=sigma) for s in (0, 1)]) == 0


def test_defocus_is_a_blur_of_the_light() -> None:
    od = np.zeros((3, 64, 64), np.float32)
    od[:, :, 32:] = 1.0
    how = Acquisition(0.0, 0, "", defocus=2.0)
    light = 10.0 ** -degrade(od, how, np.random.default_rng(0))
    assert light[0, 32, 31:33].mean() == pytest.approx(0.55, abs=0.01)
    assert light[0, 32, 33] > 0.12
