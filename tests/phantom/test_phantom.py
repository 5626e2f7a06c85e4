"""Phantom slides: real files, exact truth, and the same pixels however they are asked for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsi_pgdips.errors import OutputError, SettingsError, SlideError, StainError
from wsi_pgdips.optics.physics import angle_deg, compose_od, od_to_rgb, rgb_to_od, unit_rows
from wsi_pgdips.phantom.config import (
    EOSIN,
    HEMATOXYLIN,
    PhantomConfig,
    default_config,
    load_phantom_config,
    make_phantom_config,
)
from wsi_pgdips.phantom.fields import make_fields
from wsi_pgdips.phantom.layout import make_layout
from wsi_pgdips.phantom.phantom import Phantom, PhantomTruth, open_truth, write_phantom
from wsi_pgdips.phantom.tissue import CELL, ProceduralTissue, RealTissue, exact_unmix

CASES = sorted((Path(__file__).parents[1] / "phantoms").glob("*.toml"))
TINY = next(p for p in CASES if p.stem == "tiny")
POOL = 4  # methods look at optical density pooled over squares of this side


def read(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def varied(**changes: object) -> PhantomConfig:
    return load_phantom_config(TINY).model_copy(update=changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PhantomTruth:
    out = tmp_path_factory.mktemp("phantom") / "tiny.tif"
    return write_phantom(load_phantom_config(TINY), out)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> PhantomTruth:
    """Odd-sized, lossless and free of noise, all drifts on, three stains."""
    three = load_phantom_config(TINY.with_name("three_drift.toml"))
    config = three.model_copy(
        update={"shape": (700, 930), "seed": 80, "noise": 0.0, "jpeg_quality": 0}
    )
    return write_phantom(config, tmp_path_factory.mktemp("phantom") / "clean.tif")


def test_openslide_reads_all_levels_and_the_mpp(tiny: PhantomTruth) -> None:
    with openslide.OpenSlide(tiny.path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1024, 1024), (512, 512), (256, 256))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        base = np.asarray(slide.read_region((0, 0), 0, (1024, 1024)).convert("RGB"), float)
        level = np.asarray(slide.read_region((0, 0), 1, (512, 512)).convert("RGB"), float)
    pooled = base.reshape(512, 2, 512, 2, 3).mean(axis=(1, 3))
    off = np.abs(pooled - level).mean()
    assert off < 5
    # a level that lay a pixel off would be far worse
    assert np.abs(pooled[:, 1:] - level[:, :-1]).mean() > 1.8 * off


def test_lossless_pixels_are_the_rounded_forward_model(clean: PhantomTruth) -> None:
    h, w = clean.shape
    yy, xx = np.arange(h)[:, None], np.arange(w)[None, :]
    od = compose_od(
        clean.concentration(0, 0, h, w),
        clean.stain_matrix_at(yy, xx),
        clean.background_at(yy, xx),
    )
    off = np.abs(read(clean.path).astype(int) - od_to_rgb(od.transpose(1, 2, 0)))
    # float32 rounding may fall on the other side of a half
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-4
    exact = np.rint(clean.render(0, 0, h, w))
    assert (read(clean.path) == exact).mean() > 0.9999


def test_jpeg_and_noise_stay_near_the_forward_model(tiny: PhantomTruth) -> None:
    predicted = tiny.render(0, 0, *tiny.shape)
    error = np.mean((read(tiny.path) - predicted) ** 2)
    assert 10 * np.log10(255**2 / error) > 31


def test_odd_sizes_keep_every_level(clean: PhantomTruth) -> None:
    with openslide.OpenSlide(clean.path) as slide:
        assert slide.level_dimensions == ((930, 700), (465, 350))


@settings(max_examples=8, deadline=None)
@given(y=st.integers(0, 900), x=st.integers(0, 900), h=st.integers(1, 124), w=st.integers(1, 124))
def test_a_window_is_a_cut_of_the_whole(
    whole: tuple[Phantom, np.ndarray, np.ndarray], y: int, x: int, h: int, w: int
) -> None:
    phantom, rgb, counts = whole
    part = phantom.window(y, x, h, w)
    np.testing.assert_array_equal(part.rgb, rgb[y : y + h, x : x + w])
    np.testing.assert_array_equal(part.counts, counts[:, y : y + h, x : x + w])


@pytest.fixture(scope="module")
def whole() -> tuple[Phantom, np.ndarray, np.ndarray]:
    phantom = Phantom.make(varied(defocus_sigma=1.5))
    cell = phantom.window(0, 0, 1024, 1024)
    return phantom, cell.rgb, cell.counts


def roughness(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_defocus_softens_the_pixels_and_not_the_truth() -> None:
    sharp = Phantom.make(varied(noise=0.0)).cell(0, 1)
    soft = Phantom.make(varied(noise=0.0, defocus_sigma=1.5)).cell(0, 1)
    np.testing.assert_array_equal(soft.counts, sharp.counts)
    assert roughness(soft.rgb) < 0.8 * roughness(sharp.rgb)


def test_optics_limit_the_band_of_the_truth_alike_across_cells() -> None:
    sigma = 1.2
    flat = {"mass_drift": 0.0, "noise": 0.0}
    ideal = Phantom.make(varied(**flat, optical_sigma=0.0)).window(512, 0, 512, 1024)
    seen = Phantom.make(varied(**flat, optical_sigma=sigma)).window(512, 0, 512, 1024)
    inner = (slice(8, -8), slice(8, -8))
    np.testing.assert_array_equal(seen.tissue, ideal.tissue)
    for got, sharp in zip(seen.counts, ideal.counts, strict=True):
        # blurring the whole slide at once knows nothing of cells
        expected = ndimage.gaussian_filter(sharp.astype(float), sigma, truncate=3)
        np.testing.assert_allclose(got[inner], expected[inner], atol=2)
        assert roughness(got) < 0.9 * roughness(sharp)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_true_vectors_are_off_the_library_physical_and_apart(path: Path) -> None:
    config = load_phantom_config(path)
    fields = make_fields(config)
    grid = np.linspace(0, 1, 9)
    s = fields.stain_matrix_at(
        grid[:, None] * (config.shape[0] - 1), grid[None, :] * (config.shape[1] - 1)
    )
    library = unit_rows([stain.vector for stain in config.stains])
    n = config.n_stains
    for k in range(n):
        assert angle_deg(np.moveaxis(s[k], 0, -1), library[k]).min() >= 8
        for other in range(k + 1, n):
            apart = angle_deg(np.moveaxis(s[k], 0, -1), np.moveaxis(s[other], 0, -1))
            assert apart.min() >= 0.799 * angle_deg(library[k], library[other])
    np.testing.assert_allclose(np.linalg.norm(s, axis=1), 1, atol=1e-5)
    assert s.min() >= 0.0199
    if config.stain_drift_deg:
        ends = [angle_deg(s[k, :, 0, 0], s[k, :, -1, -1]) for k in range(n)]
        other_ends = [angle_deg(s[k, :, 0, -1], s[k, :, -1, 0]) for k in range(n)]
        widest = np.maximum(ends, other_ends)
        assert widest == pytest.approx(config.stain_drift_deg, abs=0.05)


def test_step_drift_is_flat_on_both_sides() -> None:
    fields = make_fields(varied(drift_shape="step"))
    direction = fields.stain_direction[0]
    along = np.linspace(0, 1023, 21)
    course = fields.course(direction, along, along) * np.sign(sum(direction))
    assert course[:7] == pytest.approx(course[0], abs=0.02)
    assert abs(course[0] - course[-1]) > 0.5


def pooled_cells(config: PhantomConfig) -> Iterator[np.ndarray]:
    """(N, n) pooled q of one cell after the other: the layout of a case, the textures of tiny."""
    tissue = ProceduralTissue(varied(**dict(config) | {"seed": 80}), make_layout(config))
    for y in range(0, config.shape[0], CELL):
        for x in range(0, config.shape[1], CELL):
            q = tissue.concentration(y, x, CELL, CELL)[0]
            blocks = q.reshape(config.n_stains, CELL // POOL, POOL, CELL // POOL, POOL)
            yield blocks.mean(axis=(2, 4)).reshape(config.n_stains, -1)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_each_stain_has_pure_cells_at_working_scale(path: Path) -> None:
    config = load_phantom_config(path)
    found = np.zeros(config.n_stains, int)
    for q in pooled_cells(config):
        total = q.sum(axis=0)
        found += ((q >= 0.93 * total) & (total >= 0.25)).sum(axis=1)
        if found.min() >= 300:
            break
    assert found.min() >= 300


def test_deposits_are_dense_pure_marker_and_modest() -> None:
    stains = load_phantom_config(TINY.with_name("three_flat.toml")).stains
    q = np.concatenate(list(pooled_cells(varied(stains=stains))), axis=1)
    marker, total = q[1], q.sum(axis=0)
    dense = ((marker >= 0.93 * total) & (total >= 0.55)).sum()
    assert 0.002 < dense / (total > 0.06).sum() < 0.03


def test_a_scarce_stain_is_scarce_and_a_focus_is_a_focus() -> None:
    case = load_phantom_config(TINY.with_name("hdab_drift.toml"))
    config = varied(stains=case.stains, shape=(2048, 1536), noise=0.0)
    cell = Phantom.make(config).window(0, 0, *config.shape)
    dab, tissue = cell.counts[1] * 1e-4, cell.tissue > 0
    tiles = [
        dab[y : y + 256, x : x + 256][tissue[y : y + 256, x : x + 256]]
        for y in range(0, config.shape[0], 256)
        for x in range(0, config.shape[1], 256)
    ]
    top = np.array([np.percentile(t, 99) for t in tiles if t.size > 30000])
    assert (top < 0.01).mean() > 0.3
    assert (top > 0.3).mean() > 0.1


def test_absent_level_scales_the_stain_outside_its_region(tiny: PhantomTruth) -> None:
    everywhere = Phantom.make(
        varied(stains=tuple(s.model_copy(update={"presence": 1.0}) for s in tiny.config.stains))
    ).window(0, 0, 1024, 1024)
    there = everywhere.counts[1] > 2000
    ratio = tiny.counts(0, 0, 1024, 1024)[1][there] / everywhere.counts[1][there]
    assert 0.1 < (ratio < 0.05).mean() < 0.45
    assert (ratio > 0.95).mean() > 0.5


def test_folds_reach_the_floor_and_glassless_slides_have_no_glass() -> None:
    rgb = Phantom.make(varied(saturated_fraction=0.15, noise=0.0)).window(0, 0, 1024, 1024).rgb
    assert 0.005 < (rgb.min(axis=-1) <= 2).mean() < 0.3
    filled = Phantom.make(varied(glass=False, stains=(HEMATOXYLIN, EOSIN)))
    cell = filled.cell(1, 1)
    assert cell.tissue.all()
    assert cell.counts.sum(axis=0).min() >= 599


def test_truth_reopens_as_it_was(tiny: PhantomTruth) -> None:
    again = open_truth(tiny.path)
    assert again.config == tiny.config
    assert again.fields == tiny.fields
    box = (100, 200, 300, 400)
    np.testing.assert_array_equal(again.concentration(*box), tiny.concentration(*box))
    assert again.tissue(*box).shape == (300, 400)
    assert again.labels == ("Hematoxylin", "Eosin")
    with np.load(f"{tiny.path}.truth.npz") as stored:
        grid = (stored["y"][:, None], stored["x"][None, :])
        np.testing.assert_array_equal(stored["stain_matrix"], again.stain_matrix_at(*grid))
        np.testing.assert_array_equal(stored["background"], again.background_at(*grid))
        np.testing.assert_array_equal(stored["mass"], again.fields.mass_at(*grid))
        np.testing.assert_array_equal(stored["library"], again.library)


def test_no_truth_is_said(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no truth beside"):
        open_truth(tmp_path / "slide.tif")
    with pytest.raises(OutputError, match="folder"):
        write_phantom(default_config(), tmp_path / "missing" / "a.tif")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tissue = 3", r"(?s)unknown key.*background_drift.*tissue"),
        (
            "[[stains]]\nlabel='A'\nvector=[1,0,0]\nrole='nuclear'\ncolour=1",
            r"(?s)absent_level.*colour",
        ),
        ("noise = -1", "noise"),
        ("name = ", "not valid TOML"),
        ("background_drift = [0.5, 0, 0]", "negative"),
    ],
)
def test_a_bad_description_is_explained(tmp_path: Path, text: str, message: str) -> None:
    good = 'name = "a"\n[[stains]]\nlabel="H"\nvector=[0.65, 0.7, 0.29]\nrole="nuclear"\n'
    path = tmp_path / "bad.toml"
    path.write_text(text if text.startswith("name") else text + "\n" + good)
    if text.startswith("[["):
        path.write_text('name = "a"\n' + text)
    with pytest.raises(SettingsError, match=message):
        load_phantom_config(path)


def test_impossible_vectors_and_roles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_phantom_config(tmp_path / "none.toml")
    twin = EOSIN.model_copy(update={"vector": HEMATOXYLIN.vector})
    with pytest.raises(SettingsError, match="no true stain vectors"):
        make_fields(varied(stains=(HEMATOXYLIN, twin), tilt_deg=2.0))
    with pytest.raises(SettingsError, match="each role"):
        make_phantom_config({"name": "a", "stains": [HEMATOXYLIN.model_dump()] * 2})


def test_explicit_true_vectors_are_taken() -> None:
    rows = ((0.5, 0.8, 0.33), (0.15, 0.95, 0.3))
    fields = make_fields(varied(true_stain_matrix=rows))
    np.testing.assert_allclose(fields.stain_matrix, unit_rows(rows), atol=1e-6)


def test_a_real_texture_fills_the_slide_mirrored() -> None:
    rng = np.random.default_rng(1)
    matrix = unit_rows([HEMATOXYLIN.vector, EOSIN.vector])
    glass = np.array([0.03, 0.05, 0.02], np.float32)
    q = rng.uniform(0.05, 0.8, (2, 300, 200)).astype(np.float32)
    image = od_to_rgb(compose_od(q, matrix, glass).transpose(1, 2, 0))

    def read(y: int, x: int, h: int, w: int) -> np.ndarray:
        return image[y : y + h, x : x + w]

    tissue = RealTissue(read, (300, 200), matrix, glass)
    got, mask = tissue.concentration(0, 0, 512, 512)
    assert mask.all()
    np.testing.assert_allclose(got[:, :300, :200], q, atol=0.05)
    np.testing.assert_array_equal(got[:, 300:512, :200], got[:, 88:300, :200][:, ::-1])
    np.testing.assert_array_equal(got[:, :, 200:400], got[:, :, 199::-1])
    np.testing.assert_array_equal(got[:, :, 400:512], got[:, :, :112])
    cell = Phantom.make(varied(mass_drift=0.0), tissue).cell(0, 0)
    np.testing.assert_allclose(cell.counts * 1e-4, got, atol=1e-4)
    with pytest.raises(StainError, match="does not fit"):
        Phantom.make(varied(stains=(HEMATOXYLIN,)), tissue)
    with pytest.raises(StainError, match="cannot unmix"):
        RealTissue(read, (300, 200), matrix[[0, 0]], glass)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10_000))
def test_unmixing_meets_the_optimality_conditions(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = unit_rows(rng.uniform(0.05, 1, (n, 3)))
    od = rgb_to_od(rng.integers(1, 256, (50, 3)).astype(np.uint8))
    q = exact_unmix(od, matrix)
    assert q.min() >= 0
    gradient = (od - q.T @ matrix) @ matrix.T  # of the explained part; <= 0 where q is 0
    assert (gradient <= 2e-4).all()
    assert np.abs(gradient[q.T > 1e-3]).max(initial=0) < 2e-3


# last: another seed evicts the textures that all others share
def test_the_seed_decides_everything(tiny: PhantomTruth, tmp_path: Path) -> None:
    again = write_phantom(load_phantom_config(TINY), tmp_path / "again.tif")
    assert again.path.read_bytes() == tiny.path.read_bytes()
    np.testing.assert_array_equal(again.counts(0, 0, 1024, 1024), tiny.counts(0, 0, 1024, 1024))
    other = Phantom.make(varied(seed=81)).cell(1, 0)
    assert (other.counts != tiny.counts(512, 0, 512, 512)).mean() > 0.2
