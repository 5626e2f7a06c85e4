"""``fit_tiles``: what a tile says, when it inherits, and that it depends on itself alone."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from support.synthetic import GLASS, HDAB, HE, THREE, concentrations, prior_of, tile_of
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.records import FloatArray, TileFlag
from wsi_pgdips.solver import optimise
from wsi_pgdips.solver.fit import TILE_GATE_DEG, TileFit, fallback, fit_tiles
from wsi_pgdips.solver.presets import Preset, resolve
from wsi_pgdips.solver.tile import TileInput

CPU = torch.device("cpu")
SIDE = 96
PAPER = replace(resolve(ScientificSettings(preset="paper")), steps=4)
FAST = resolve(ScientificSettings(preset="fast"))


def tile(seed: int, rows: FloatArray = HDAB, strength: list[float] | None = None) -> TileInput:
    return tile_of(concentrations(len(rows), SIDE, seed, strength), rows, seed=seed)


def assert_finite(fit: TileFit) -> None:
    for field in fields(fit):
        value = getattr(fit, field.name)
        if isinstance(value, np.ndarray):
            assert np.isfinite(value).all(), field.name
    for name, value in fit.statistics.items():
        assert np.isfinite(value).all(), name


def assert_same(a: TileFit, b: TileFit, atol: float = 0.0) -> None:
    assert a.flags == b.flags
    for name in ("stain_matrix", "spectral_correction", "background", "confidence", "loss"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol, err_msg=name)
    for name, value in a.statistics.items():
        np.testing.assert_array_equal(value, b.statistics[name], err_msg=name)
    assert (a.concentration is None) == (b.concentration is None)
    if a.concentration is not None and b.concentration is not None:
        np.testing.assert_allclose(
            a.concentration.astype(np.float32), b.concentration.astype(np.float32), atol=10 * atol
        )


def test_the_loss_goes_down() -> None:
    prior = prior_of(HDAB)
    rate = replace(PAPER, learning_rate=5e-3)
    few, many = (
        fit_tiles([tile(1)], prior, replace(rate, steps=steps), CPU)[0] for steps in (1, 20)
    )
    assert many.steps == 20
    assert many.loss < 0.9 * few.loss


@pytest.mark.parametrize("preset", [PAPER, FAST], ids=lambda p: p.name)
@pytest.mark.parametrize("rows", [HE[:1], HDAB, THREE], ids=["one", "two", "three"])
def test_every_output_is_finite_and_shaped(preset: Preset, rows: FloatArray) -> None:
    n = len(rows)
    (fit,) = fit_tiles([tile(2, rows)], prior_of(rows), preset, CPU)
    assert_finite(fit)
    assert fit.flags == TileFlag.NONE
    assert fit.stain_matrix.shape == (n, 3)
    assert fit.spectral_correction.shape == fit.confidence.shape == (n,)
    assert fit.background.shape == (3,)
    assert (fit.concentration is not None) == preset.noise_input
    if fit.concentration is not None:
        assert fit.concentration.shape == (n, SIDE, SIDE)
        assert fit.concentration.dtype == np.float16
        assert fit.concentration.min() >= 0
    assert (fit.spectral_correction > 0).all()
    assert ((fit.confidence > 0.5) & (fit.confidence <= 1)).all()
    np.testing.assert_allclose(np.linalg.norm(fit.stain_matrix, axis=1), 1, atol=1e-5)
    assert angle_deg(fit.stain_matrix, rows).max() < 5


@pytest.mark.parametrize("preset", [PAPER, FAST], ids=lambda p: p.name)
def test_the_same_tile_gives_the_same_bytes(preset: Preset) -> None:
    prior = prior_of(HDAB)
    a, b = (fit_tiles([tile(3)], prior, preset, CPU)[0] for _ in range(2))
    assert_same(a, b)


def test_the_seed_of_a_tile_decides_its_noise_input() -> None:
    one = tile(3)
    a = fit_tiles([one], prior_of(HDAB), PAPER, CPU)[0]
    b = fit_tiles([replace(one, seed=99)], prior_of(HDAB), PAPER, CPU)[0]
    assert a.loss != b.loss


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("preset", [PAPER, FAST], ids=lambda p: p.name)
def test_a_batch_equals_its_tiles_alone(preset: Preset) -> None:
    """Also its augmentation and its jitter: a tile does not see who shares its batch."""
    prior = prior_of(HDAB)
    tiles = [tile(seed) for seed in (4, 5)]
    # Adam divides by the gradient's size: rounding of small gradients shows after many steps
    together = fit_tiles(tiles, prior, preset, CPU)
    for i in (0, 1):
        assert_same(together[i], fit_tiles([tiles[i]], prior, preset, CPU)[0], atol=2e-4)
    swapped = fit_tiles(tiles[::-1], prior, preset, CPU)
    assert_same(together[0], swapped[1], atol=2e-4)


@pytest.mark.parametrize("preset", [PAPER, FAST], ids=lambda p: p.name)
def test_a_blank_tile_inherits(preset: Preset) -> None:
    prior = prior_of(HDAB)
    blank = tile_of(np.zeros((2, SIDE, SIDE), np.float32), HDAB)
    (fit,) = fit_tiles([blank], prior, preset, CPU)
    assert fit.flags == TileFlag.BLANK | TileFlag.INHERITED
    np.testing.assert_array_equal(fit.stain_matrix, prior.stain_matrix)
    np.testing.assert_array_equal(fit.spectral_correction, prior.spectral_correction)
    np.testing.assert_array_equal(fit.background, GLASS)
    assert not fit.confidence.any()
    assert fit.concentration is None
    assert all(not v.any() for v in fit.statistics.values())


def test_a_tile_without_tissue_inherits() -> None:
    empty = tile_of(concentrations(2, SIDE, 0), HDAB, tissue=False)
    (fit,) = fit_tiles([empty], prior_of(HDAB), PAPER, CPU)
    assert fit.flags == TileFlag.BLANK | TileFlag.INHERITED


def test_a_blank_tile_does_not_touch_its_batch() -> None:
    prior = prior_of(HDAB)
    blank = tile_of(np.zeros((2, SIDE, SIDE), np.float32), HDAB)
    busy = tile(6)
    results = fit_tiles([blank, busy, blank], prior, PAPER, CPU)
    assert [bool(r.flags & TileFlag.BLANK) for r in results] == [True, False, True]
    assert_same(results[1], fit_tiles([busy], prior, PAPER, CPU)[0])


@pytest.mark.parametrize("absent", [0, 1])
@pytest.mark.parametrize("preset", [PAPER, FAST], ids=lambda p: p.name)
def test_a_tile_of_one_stain_says_nothing_of_the_other(preset: Preset, absent: int) -> None:
    strength = [1.0, 1.0]
    strength[absent] = 0.0
    (fit,) = fit_tiles([tile(7, HDAB, strength)], prior_of(HDAB), preset, CPU)
    assert fit.flags & TileFlag.SCARCE_STAIN
    assert fit.confidence[absent] == 0
    assert fit.confidence[1 - absent] > 0.5


def test_confidence_falls_where_the_stains_do_not_explain_the_tile() -> None:
    good = tile(8)
    green = np.array([0.0, 0.0, 0.4], np.float32)[:, None, None]
    odd = replace(good, od=good.od + green * (good.od[:1] > 0.3))
    prior = prior_of(HDAB)
    a, b = (fit_tiles([t], prior, FAST, CPU)[0] for t in (good, odd))
    assert (b.confidence < 0.8 * a.confidence).all()


def test_a_rate_that_explodes_is_flagged_and_finite() -> None:
    wild = replace(PAPER, learning_rate=1e30)
    prior = prior_of(HDAB)
    (fit,) = fit_tiles([tile(9)], prior, wild, CPU)
    assert fit.flags & TileFlag.DIVERGED
    assert fit.flags & TileFlag.INHERITED
    assert_finite(fit)
    np.testing.assert_array_equal(fit.stain_matrix, prior.stain_matrix)
    np.testing.assert_array_equal(fit.background, GLASS)
    assert not fit.confidence.any()
    assert fit.concentration is None


def solved_with(monkeypatch: pytest.MonkeyPatch, rows: FloatArray) -> None:
    """Let the optimisation end at these stain vectors."""
    honest = optimise.solve

    def other(*args: object) -> optimise.Solution:
        solution = honest(*args)  # type: ignore[arg-type]
        return replace(
            solution, physics=replace(solution.physics, stain_matrix=torch.from_numpy(rows)[None])
        )

    monkeypatch.setattr(optimise, "solve", other)


def test_a_stain_that_leaves_the_gate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    green = np.array([0.86, 0.1, 0.5], np.float32)
    away = np.stack([green / np.linalg.norm(green), HDAB[1]])
    assert angle_deg(away[0], HDAB[0]) > TILE_GATE_DEG
    solved_with(monkeypatch, away)
    (fit,) = fit_tiles([tile(1)], prior_of(HDAB), PAPER, CPU)
    assert fit.flags & TileFlag.OUTSIDE_GATE
    np.testing.assert_array_equal(fit.stain_matrix, HDAB)


def test_rows_that_swap_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    solved_with(monkeypatch, np.ascontiguousarray(HDAB[::-1]))
    (fit,) = fit_tiles([tile(1)], prior_of(HDAB), PAPER, CPU)
    assert fit.flags & TileFlag.SWAPPED
    np.testing.assert_array_equal(fit.stain_matrix, HDAB)


def test_a_saturated_tile_is_flagged() -> None:
    q = concentrations(2, SIDE, 3)
    q[:, :20, :20] = 4.0
    (fit,) = fit_tiles([tile_of(q, HDAB)], prior_of(HDAB), FAST, CPU)
    assert fit.flags == TileFlag.SATURATED
    assert_finite(fit)


def test_a_tile_all_black_is_saturated_and_inherits() -> None:
    black = tile_of(np.full((2, SIDE, SIDE), 4.0, np.float32), HDAB)
    (fit,) = fit_tiles([black], prior_of(HDAB), PAPER, CPU)
    assert fit.flags == TileFlag.SATURATED | TileFlag.BLANK | TileFlag.INHERITED


def test_only_the_tiles_own_pixels_count() -> None:
    """What lies in the halo belongs to the neighbours' statistics."""
    inner = concentrations(2, SIDE, 3)
    padded = np.pad(inner, ((0, 0), (16, 16), (16, 16)), constant_values=2.0)
    prior = prior_of(HDAB)
    (fit,) = fit_tiles([tile_of(padded, HDAB, halo=16, noise=0)], prior, FAST, CPU)
    (alone,) = fit_tiles([tile_of(inner, HDAB, noise=0)], prior, FAST, CPU)
    np.testing.assert_array_equal(fit.statistics["q_hist"], alone.statistics["q_hist"])
    np.testing.assert_array_equal(fit.confidence, alone.confidence)


def test_presets_without_tile_networks_are_measured_by_statistics() -> None:
    (fit,) = fit_tiles([tile(1)], prior_of(HDAB), FAST, CPU)
    assert fit.flags == TileFlag.NONE
    assert fit.steps == 0
    assert fit.confidence.min() > 0.5


def test_fallback_keeps_the_flag_it_is_given() -> None:
    fit = fallback(GLASS, prior_of(HE), TileFlag.READ_FAILED)
    assert fit.flags == TileFlag.READ_FAILED | TileFlag.INHERITED
    assert fit.steps == 0


def test_no_tiles_give_no_results() -> None:
    assert fit_tiles([], prior_of(HE), PAPER, CPU) == []


@pytest.mark.gpu
def test_cuda_is_finite_and_goes_down() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    prior, tiles = prior_of(HDAB), [tile(s) for s in (1, 2, 3)]
    rate = replace(PAPER, learning_rate=5e-3)
    few = fit_tiles(tiles, prior, replace(rate, steps=1), torch.device("cuda"))
    many = fit_tiles(tiles, prior, replace(rate, steps=20), torch.device("cuda"))
    for a, b in zip(few, many, strict=True):
        assert_finite(b)
        assert b.flags == TileFlag.NONE
        assert b.loss < a.loss
