"""Cameras with known spectra: what they see, and the figures that do not depend on scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.cases import all_cases, choose
from benchmarks.quality.methods import choose as choose_methods
from benchmarks.quality.page import render
from benchmarks.quality.phantoms import measure_phantom
from benchmarks.quality.scoring import Truth
from benchmarks.quality.spectral import (
    CAMERAS,
    Spectra,
    SpectralCamera,
    fit_linear,
    load_spectra,
)
from benchmarks.records import lookup
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.physics import I0, angle_deg

WAVELENGTHS = np.arange(420.0, 701.0)
SPECTRA = Spectra(
    WAVELENGTHS,
    np.stack(
        [
            0.9 * np.exp(-(((WAVELENGTHS - 590) / 60) ** 2)) + 0.1,
            np.exp(-(((WAVELENGTHS - 525) / 20) ** 2)),
        ]
    ),
)
LASERS = SpectralCamera((625.0, 530.0, 465.0), (0.6, 0.6, 0.6), noise=0.0)


def mixture(side: int = 48) -> np.ndarray:
    """(2, side, side) concentrations; the upper quarter is glass."""
    q = np.random.default_rng(0).uniform(0, 1, (2, side, side)).astype(np.float32)
    q[:, : side // 4] = 0
    return q


def written(folder: Path) -> Path:
    """A folder of data that holds nothing but spectra."""
    (folder / "spectra").mkdir(parents=True)
    rows = zip(WAVELENGTHS[::10], *SPECTRA.od[:, ::10], strict=True)
    lines = ["wavelength_nm,hematoxylin_od,eosin_od", *(f"{w:g},{h},{e}" for w, h, e in rows)]
    (folder / "spectra" / "he_endmembers.csv").write_text("\n".join(lines))
    return folder


def test_a_narrow_camera_obeys_beer_lambert_and_a_broad_one_does_not() -> None:
    q = mixture()
    tissue = q.sum(0) > 0
    lasers = fit_linear(LASERS, q, SPECTRA, tissue)
    assert lasers.departure < 1e-3
    for n in range(2):
        at = np.interp(LASERS.centres, WAVELENGTHS, SPECTRA.od[n])
        assert lasers.vectors[n] == pytest.approx(at, abs=5e-3)
    broad = replace(LASERS, widths=(35.0, 35.0, 35.0))
    assert fit_linear(broad, q, SPECTRA, tissue).departure > 0.01
    # the tone curve of a display bends the law for lasers too
    assert fit_linear(replace(LASERS, srgb=True), q, SPECTRA, tissue).departure > 0.005


@pytest.mark.parametrize("name", CAMERAS)
def test_glass_is_at_the_white_of_the_camera(name: str) -> None:
    q = mixture(96)
    camera = replace(CAMERAS[name], white=(240.0, 231.0, 222.0))
    rgb = camera.picture(q, SPECTRA, seed=3)
    assert rgb[:20].reshape(-1, 3).mean(0) == pytest.approx(camera.white, abs=0.3)
    assert np.array_equal(rgb, camera.picture(q, SPECTRA, seed=3))
    assert not np.array_equal(rgb, camera.picture(q, SPECTRA, seed=4))
    assert rgb[24:].mean() < rgb[:20].mean() - 30
    background = fit_linear(camera, q, SPECTRA, q.sum(0) > 0).background
    assert background == pytest.approx(-np.log10(np.array(camera.white) / I0), abs=1e-6)


def test_the_light_of_a_lamp_and_the_strength_of_a_stain_count() -> None:
    warm, cold = (
        replace(LASERS, widths=(40.0,) * 3, lamp=t).bands(WAVELENGTHS) for t in (2500, 9000)
    )
    assert warm.sum(1) == pytest.approx(1)
    assert (warm @ WAVELENGTHS > cold @ WAVELENGTHS + 2).all()
    q = mixture()
    one, two = (replace(LASERS, strength=s).light(q, SPECTRA) for s in (1.0, 2.0))
    assert two == pytest.approx(one**2, abs=1e-3)


def test_sharpening_keeps_flat_places_and_raises_edges() -> None:
    q = np.zeros((2, 40, 40), np.float32)
    q[:, :, 20:] = 0.5
    plain = LASERS.picture(q, SPECTRA).astype(int)
    sharp = replace(LASERS, sharpening=0.8, white=(230.0,) * 3).picture(q, SPECTRA).astype(int)
    plain = replace(LASERS, white=(230.0,) * 3).picture(q, SPECTRA).astype(int)
    assert np.array_equal(plain[:, :10], sharp[:, :10])
    assert (sharp[:, 20] < plain[:, 20]).all()
    assert (sharp[:, 19] > plain[:, 19]).all()


def test_spectra_are_interpolated_and_a_stain_without_one_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path) / "spectra" / "he_endmembers.csv"
    found = load_spectra(path, ("Eosin", "Hematoxylin"))
    assert found.wavelengths == pytest.approx(WAVELENGTHS)
    assert found.od[1, 5] == pytest.approx((SPECTRA.od[0, 0] + SPECTRA.od[0, 10]) / 2)
    with pytest.raises(SettingsError, match="dab_od"):
        load_spectra(path, ("Hematoxylin", "DAB"))


def test_factors_and_correlations_do_not_know_the_scale() -> None:
    q = mixture()
    truth = Truth(q, q.sum(0) > 0)
    scaled = q * np.array([0.4, 7.0], np.float32)[:, None, None]
    assert truth.factors(scaled) == pytest.approx([2.5, 1 / 7])
    assert truth.pcc(scaled) == pytest.approx([1, 1])
    empty = truth.pcc(np.zeros_like(q))
    assert np.isnan(empty).all()
    assert (truth.factors(np.zeros_like(q)) == 0).all()
    assert truth.std == pytest.approx(q[:, q.sum(0) > 0].std(1), rel=1e-4)


def test_cameras_are_cases_where_there_are_spectra(tmp_path: Path) -> None:
    cases = choose(all_cases(written(tmp_path / "data")), CAMERAS)
    assert [case.name for case in cases] == list(CAMERAS)
    with pytest.raises(SettingsError, match="--data"):
        choose(all_cases(None), ["spectral_broad"])
    methods = choose_methods(("oracle", "fixed-glass", "fixed", "ablation-no-glass"))
    for case in cases[1:2]:
        records = measure_phantom(case, 2, methods, shape=(512, 512))
        value = lookup(records.frame, "method", "metric", "stain", "blur_px")
        assert {row["method"] for row in records.rows} == {
            "camera",
            "oracle",
            "fixed-glass",
            "fixed",
        }
        assert value("oracle", "rmse_scaled_joint_over_oracle", "all", 0) == 1
        assert value("oracle", "angle_deg", "Eosin", 0) == pytest.approx(0, abs=0.01)
        assert value("oracle", "pcc", "Eosin", 0) > 0.9
        assert value("oracle", "rmse_scaled_joint", "all", 4) > value(
            "oracle", "rmse_scaled_joint", "all", 0
        )
        assert value("camera", "departure", "all", 0) > 0.01
        assert value("fixed", "background_od", "all", 0) > 0.01
        page = render(records.frame, "x.json", Path())
        assert "## Cameras with known spectra" in page
        assert f"| {case.name} |" in page
        assert "## Margins" not in page


@pytest.mark.realslide
def test_the_measured_stains_through_the_four_cameras(data_dir: Path) -> None:
    path = data_dir / "spectra" / "he_endmembers.csv"
    if not path.is_file():
        pytest.skip("WSI_PGDIPS_DATA holds no spectra")
    spectra, q = load_spectra(path, ("Hematoxylin", "Eosin")), mixture()
    fits = {n: fit_linear(c, q, spectra, q.sum(0) > 0) for n, c in CAMERAS.items()}
    departures = {name: fit.departure for name, fit in fits.items()}
    assert departures["spectral_narrow"] < 0.01 < departures["spectral_broad"] < 0.1
    assert departures["spectral_narrow"] < departures["spectral_narrow_srgb"]
    for fit in fits.values():
        assert 20 < angle_deg(*fit.vectors) < 30
