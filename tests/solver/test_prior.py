"""``calibrate_prior`` for each preset; its result does not depend on how many threads share it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.synthetic import GLASS, HDAB, HE, THREE, concentrations, of_all_sizes, tile_of
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.records import FloatArray, SlidePrior, StainSet
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.fit import fit_tiles
from wsi_pgdips.solver.presets import Preset, resolve
from wsi_pgdips.solver.prior import calibrate_prior
from wsi_pgdips.solver.tile import TileInput

CPU = torch.device("cpu")
PRESETS = {
    name: resolve(ScientificSettings(preset=name))  # type: ignore[arg-type]
    for name in ("paper", "balanced", "fast")
}


def tiles_of(rows: FloatArray, count: int = 2, noise: float = 0.005) -> list[TileInput]:
    return [
        tile_of(concentrations(len(rows), 96, s), rows, noise=noise, seed=s) for s in range(count)
    ]


def stains_of(rows: FloatArray) -> StainSet:
    labels = tuple(f"stain {k}" for k in range(len(rows)))
    matrix = tuple(tuple(map(float, row)) for row in rows)
    return StainSet("some", labels, ("000000",) * len(rows), matrix)  # type: ignore[arg-type]


def calibrate(
    tiles: Sequence[TileInput],
    library: FloatArray | StainSet,
    preset: Preset,
    *,
    steps: int = 2,
    threads: int = 1,
    weight: float | None = None,
) -> SlidePrior:
    with ThreadPoolExecutor(threads) as executor:
        return calibrate_prior(
            tiles,
            library if isinstance(library, StainSet) else stains_of(library),
            GLASS,
            preset,
            steps=steps,
            seed=5,
            prior_weight=weight,
            device=CPU,
            executor=executor,
            flags=("no_glass",),
        )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("rows", [HE[:1], HDAB, THREE], ids=["one", "two", "three"])
def test_each_preset(name: str, rows: FloatArray) -> None:
    n = len(rows)
    prior = calibrate(tiles_of(rows), rows, PRESETS[name])
    assert prior.measured.all()
    assert angle_deg(prior.stain_matrix, rows).max() < 4
    assert prior.flags == ("no_glass",)
    # fine blobs are texture, and some of it counts as noise
    assert 0.004 < prior.noise_od < 0.015
    # q at the 99.9th percentile of the blobs
    top = np.percentile(np.concatenate([concentrations(n, 96, s) for s in (0, 1)], 1), 99.9, (1, 2))
    np.testing.assert_allclose(prior.spectral_correction, top, rtol=0.15)
    for name_, value in vars(prior).items():
        if isinstance(value, np.ndarray) and value.dtype != bool:
            assert np.isfinite(value).all(), name_
    assert (prior.prior_weight >= 0).all()
    if name == "paper":
        assert prior.network == {}
        assert prior.prior_weight.tolist() == [100.0] * n
        assert np.isnan(prior.loss)
    elif name == "fast":
        assert prior.network == {}
        assert not prior.prior_weight.any()
    else:
        assert {k.split(".")[0] for k in prior.network} == {
            *slide_network.layer_shapes(n),
            slide_network.LOW,
            slide_network.HIGH,
        }
        assert all(np.isfinite(v).all() for v in prior.network.values())
        assert np.isfinite(prior.loss)
        assert prior.acquisition is not None


def test_the_number_of_threads_does_not_change_a_byte() -> None:
    one, three = (
        calibrate(tiles_of(HDAB), HDAB, PRESETS["balanced"], steps=4, threads=threads)
        for threads in (1, 3)
    )
    assert one.loss == three.loss
    assert one.prior_weight.tobytes() == three.prior_weight.tobytes()
    assert set(one.network) == set(three.network)
    for name, value in one.network.items():
        assert value.tobytes() == three.network[name].tobytes(), name


def test_stain_vectors_are_estimated_without_the_floor_of_b() -> None:
    floor = np.array([0.03, 0.0, 0.02], np.float32)
    raised = [replace(t, background=GLASS + floor, raised=floor) for t in tiles_of(HE)]
    plain, found = (calibrate(tiles, HE, PRESETS["fast"]) for tiles in (tiles_of(HE), raised))
    np.testing.assert_allclose(found.stain_matrix, plain.stain_matrix, atol=1e-4)
    assert (found.spectral_correction < plain.spectral_correction).any()  # maps keep it
    (one,), (other,) = (
        fit_tiles(tiles[:1], plain, PRESETS["fast"], CPU) for tiles in (tiles_of(HE), raised)
    )
    np.testing.assert_allclose(other.statistics["moment"], one.statistics["moment"], rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_a_given_lambda_is_kept(name: str) -> None:
    prior = calibrate(tiles_of(HDAB, 1), HDAB, PRESETS[name], weight=0.25)
    assert prior.prior_weight.tolist() == [0.25 * (name != "fast")] * 2


def test_an_absent_stain_is_flagged_and_keeps_the_library() -> None:
    q = concentrations(2, 96, 0, [1.0, 0.0])
    prior = calibrate([tile_of(q, HDAB)], HDAB, PRESETS["balanced"])
    assert prior.measured.tolist() == [True, False]
    assert prior.flags == ("no_glass", "stain_1_from_library")
    np.testing.assert_array_equal(prior.stain_matrix[1], HDAB[1])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tiles", [[], [tile_of(concentrations(2, 96, 0), HE, tissue=False)]])
def test_nothing_to_sample_leaves_the_library(name: str, tiles: list[TileInput]) -> None:
    prior = calibrate(tiles, HE, PRESETS[name])
    np.testing.assert_array_equal(prior.stain_matrix, HE)
    assert not prior.measured.any()
    assert prior.flags == ("no_glass", "stain_0_from_library", "stain_1_from_library")
    assert prior.network == {}
    few = replace(PRESETS[name], steps=min(PRESETS[name].steps, 1))
    (fit,) = fit_tiles(tiles_of(HE, 1), prior, few, CPU)
    assert np.isfinite(fit.stain_matrix).all()
    assert fit.confidence.min() > 0.5


def test_a_slide_out_of_focus_is_flagged_and_its_edges_are_those_of_the_sharpened_pixels() -> None:
    soft = [tile_of(of_all_sizes(s, np.hypot(1.5, 2.0)), HE, noise=0.003) for s in (0, 1)]
    prior = calibrate(soft, HE, PRESETS["balanced"], steps=20)
    assert prior.flags == ("no_glass", "out_of_focus")
    assert prior.acquisition is not None
    assert prior.acquisition.defocus > 1
    plain = calibrate(soft, HE, PRESETS["fast"])
    assert plain.flags == ("no_glass",)
    assert 0.01 < angle_deg(prior.stain_matrix, plain.stain_matrix).max() < 6


def test_a_training_that_explodes_leaves_the_closed_form() -> None:
    wild = replace(PRESETS["balanced"], learning_rate=1e30)
    prior = calibrate(tiles_of(HDAB), HDAB, wild, steps=4)
    assert prior.flags == ("no_glass", "network_diverged")
    assert prior.network == {}
    assert not prior.prior_weight.any()


def test_more_stains_than_channels_have_no_network() -> None:
    rows = np.concatenate([HDAB, HE])
    rows[2] = THREE[2]
    prior = calibrate(tiles_of(rows), rows, PRESETS["balanced"])
    assert prior.network == {}
    assert not prior.prior_weight.any()


def test_settings_reach_the_preset() -> None:
    settings = ScientificSettings(
        preset="paper", iterations=7, learning_rate=0.1, alpha=2.0, beta=0.5
    )
    preset = resolve(settings)
    assert (preset.steps, preset.learning_rate) == (7, 0.1)
    assert (preset.alpha, preset.beta) == (2.0, 0.5)
    paper, balanced = PRESETS["paper"], PRESETS["balanced"]
    assert (paper.steps, paper.alpha, paper.beta) == (6000, 1.0, 0.01)
    # the published loss does not help the slide's network, so it has no weight there
    assert (balanced.alpha, balanced.beta) == (0.0, 0.0)
    # only tiles with networks of their own take steps
    for name in ("balanced", "fast"):
        assert resolve(ScientificSettings(preset=name, iterations=7)).steps == 0  # type: ignore[arg-type]


def turned(rows: FloatArray, degrees: float) -> FloatArray:
    """Vectors that lie so far outside of these, in their plane."""
    plane = Plane.of(rows)
    out = np.radians(degrees) * np.array([-1.0, 1.0])
    return plane.rays(plane.angles(rows) + out)


@pytest.mark.parametrize("rows", [HE[:1], HE, THREE], ids=["one", "two", "three"])
def test_fixed_vectors_are_kept_to_the_bit(rows: FloatArray) -> None:
    own = np.asarray(rows[:, [0, 2, 1]], np.float32)  # of another colour than the slide
    n = len(rows)
    stains = replace(stains_of(own), freedom_deg=(0.0,) * n)
    prior = calibrate(tiles_of(rows), stains, PRESETS["balanced"], steps=1)
    np.testing.assert_allclose(prior.stain_matrix, own, atol=1e-7)
    assert not prior.measured.any()
    assert not any(f.endswith("_from_library") for f in prior.flags)  # as it was asked for


@pytest.mark.parametrize("degrees", [0.5, 2.0, 30.0])
def test_refined_vectors_stay_within_their_uncertainty(degrees: float) -> None:
    shown = turned(HE, 5.0)
    stains = replace(stains_of(HE), freedom_deg=(degrees, degrees))
    prior = calibrate(tiles_of(shown), stains, PRESETS["fast"])
    far = angle_deg(prior.stain_matrix, HE)
    assert far.max() < degrees + 0.05
    if degrees < 4:
        np.testing.assert_allclose(far, degrees, atol=0.05)  # as close as they may come
    else:
        assert angle_deg(prior.stain_matrix, shown).max() < 2


def test_one_stain_may_be_fixed_and_the_other_estimated() -> None:
    shown = turned(HE, 5.0)
    stains = replace(stains_of(HE), freedom_deg=(0.0, np.inf))
    prior = calibrate(tiles_of(shown), stains, PRESETS["fast"])
    np.testing.assert_allclose(prior.stain_matrix[0], HE[0], atol=1e-6)
    assert angle_deg(prior.stain_matrix[1], shown[1]) < 2
    assert prior.measured.tolist() == [False, True]


def test_the_alternative_that_the_slide_shows_is_chosen() -> None:
    other = np.array([0.0928, 0.9541, 0.2831], np.float32)
    other /= np.linalg.norm(other)
    stains = replace(stains_of(HE), alternatives=((), (tuple(map(float, other)),)))  # type: ignore[arg-type]
    assert angle_deg(other, HE[1]) > 15
    for shown in (HE, np.stack([HE[0], other])):
        prior = calibrate(tiles_of(shown), stains, PRESETS["fast"])
        np.testing.assert_array_equal(prior.library, shown)
        assert angle_deg(prior.stain_matrix, shown).max() < 4
        assert prior.measured.all()
    # where the set's own is to be kept, what fits better changes nothing
    fixed = replace(stains, freedom_deg=(np.inf, 0.0))
    prior = calibrate(tiles_of(np.stack([HE[0], other])), fixed, PRESETS["fast"])
    np.testing.assert_allclose(prior.stain_matrix[1], HE[1], atol=1e-6)


def inked(area: tuple[int, int]) -> list[TileInput]:
    """Two tiles of tissue, green ink over some pixels of the first."""
    green = np.float32(-np.log10(np.array([30, 120, 80]) / 245.0))
    tiles = [tile_of(concentrations(2, 512, s, [0.5, 0.5]), HE, seed=s) for s in (0, 1)]
    tiles[0].od[:, : area[0], : area[1]] += green[:, None, None]
    return tiles


def test_the_share_of_foreign_pixels_is_told_and_they_have_no_say_in_m() -> None:
    clean, dirty = (calibrate(inked(area), HE, PRESETS["fast"]) for area in ((0, 0), (64, 256)))
    assert clean.foreign < 0.001
    assert dirty.foreign == pytest.approx(64 * 256 / (2 * 512**2), rel=0.1)
    assert angle_deg(dirty.stain_matrix, clean.stain_matrix).max() < 0.5
    np.testing.assert_allclose(dirty.spectral_correction, clean.spectral_correction, rtol=0.03)
    np.testing.assert_allclose(dirty.usual, clean.usual, rtol=0.03)


def test_specks_in_all_squares_leave_something_to_measure() -> None:
    """Every square holds foreign pixels, though few: without all of them nothing would be left."""
    tiles = tiles_of(HE)
    for tile in tiles:
        tile.od[:, 4:28, 4:28] += np.float32([0.9, 0.0, 0.5])[:, None, None]
    prior = calibrate(tiles, replace(stains_of(HE), freedom_deg=(0.0, 0.0)), PRESETS["fast"])
    assert 0.03 < prior.foreign < 0.3
    assert np.isfinite(prior.spectral_correction).all()
    assert (prior.usual > 0.1).all()


def test_a_slide_that_is_foreign_in_most_places_is_not_of_these_stains() -> None:
    green = np.float32([[0.9, 0.3, 0.3]])
    tiles = [tile_of(concentrations(1, 96, s), green / np.linalg.norm(green)) for s in (0, 1)]
    prior = calibrate(tiles, HE, PRESETS["fast"])
    assert prior.foreign > 0.3
    assert np.isfinite(prior.stain_matrix).all()
    assert (prior.usual > 0).any()  # all tissue stays, so that something is measured
