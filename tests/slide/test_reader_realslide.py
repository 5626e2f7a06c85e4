"""The real slides: every one opens as its description says, and pixels lie where they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray, FloatArray
from wsi_pgdips.slide.reader import open_source, read_meta
from wsi_pgdips.slide.resample import box_mean

pytestmark = pytest.mark.realslide

# file, (height, width), own mpp, objective, grid factor at 0.5 mpp
SLIDES = [
    ("slides/CMU-1-Small-Region.svs", (2967, 2220), 0.499, 20, 1),
    ("slides/BS9_HE2_40x_AT2.svs", (16783, 14486), 0.2528, 40, 2),
    ("slides/metaplasia_trypsin_DAB_20x.svs", (6285, 6535), 0.5044, 20, 1),
    ("slides/CK7p40_dualIHC_crop_40x_AT2.svs", (9216, 9216), 0.2528, 40, 2),
    ("slides/ectopic_pancreas_HE_crop_40x_GT450.svs", (18432, 18432), 0.263018, 40, 2),
    ("scanners/OS-2-ndpi.ome.tif", (2202, 2202), 0.2271, None, 0.5 / 0.2271),
    ("scanners/OS-2-vsi.ome.tif", (1445, 1445), 0.34605, None, 0.5 / 0.34605),
]
WITHOUT_MPP = [
    ("slides/TCGA-CR-7395-01A-01-TS1.svs", (3567, 4443)),
    ("slides/glycogen_PASD_nompp.tif", (12528, 15322)),
    ("semisynthetic/11760_39505_02_HE.jpg", (512, 512)),
    ("truth/Lung1_IHC.png", (480, 480)),
]


def _difference(a: ByteArray, b: FloatArray) -> float:
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize(("name", "shape", "mpp", "power", "factor"), SLIDES)
def test_slide_opens(
    data_dir: Path,
    name: str,
    shape: tuple[int, int],
    mpp: float,
    power: float | None,
    factor: float,
) -> None:
    source = open_source(data_dir / name)
    assert source.meta.shape_l0 == source.grid.shape_l0 == shape
    assert source.meta.mpp_l0 == pytest.approx(mpp, rel=1e-4)
    assert source.meta.objective_power == power
    assert source.grid.factor == pytest.approx(factor, rel=1e-4)
    assert source.grid.mpp == pytest.approx(mpp * factor, rel=1e-4)
    middle = source.read(source.grid.shape[0] // 2, source.grid.shape[1] // 2, 64, 64)
    assert 20 < middle.mean() < 255


@pytest.mark.parametrize(("name", "shape"), WITHOUT_MPP)
def test_slide_without_mpp(data_dir: Path, name: str, shape: tuple[int, int]) -> None:
    assert read_meta(data_dir / name).mpp_l0 is None
    with pytest.raises(SlideError, match="--mpp-source"):
        open_source(data_dir / name)
    assert open_source(data_dir / name, mpp_source=0.25).grid.shape_l0 == shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slides/CMU-1-Small-Region_wrong-mpp.tiff", "absurd"),
        ("slides/unreadable.svs", "cannot be read"),
        ("slides/not-a-slide.svs", "not a slide"),
        ("slides", "folder"),
        ("semisynthetic/11760_39505_02_mIF.tif", "not an RGB brightfield image"),
    ],
)
def test_slide_is_refused(data_dir: Path, name: str, message: str) -> None:
    with pytest.raises(SlideError, match=message):
        open_source(data_dir / name)


def test_wrong_mpp_can_be_overridden(data_dir: Path) -> None:
    source = open_source(data_dir / "slides/CMU-1-Small-Region_wrong-mpp.tiff", mpp_source=0.499)
    assert (source.grid.factor, source.grid.mpp) == (1, 0.499)


def test_nothing_personal_of_a_genuine_slide(data_dir: Path) -> None:
    meta = read_meta(data_dir / "slides/CMU-1-Small-Region.svs")
    text = repr(meta)
    for secret in ("b414003d", "CPAPERIOCS", "12/29/09", "1004486", str(data_dir)):
        assert secret not in text


@pytest.mark.parametrize("name", [name for name, *_ in SLIDES if name.endswith("AT2.svs")])
def test_half_resolution_is_aligned_with_level_0_at_every_corner(data_dir: Path, name: str) -> None:
    source = open_source(data_dir / name, mpp=0.5)
    raw = openslide.OpenSlide(data_dir / name)
    height, width = source.grid.shape
    for y in (0, height - 96):
        for x in (0, width - 96):
            rgba = np.asarray(raw.read_region((2 * x, 2 * y), 0, (192, 192)))
            expected = box_mean(np.ascontiguousarray(rgba[..., :3]), 2)
            np.testing.assert_array_equal(source.read(y, x, 96, 96), expected)


def _textured_places(view: ByteArray, side: int) -> list[tuple[int, int]]:
    """The most textured window of each quadrant: bare glass says nothing about alignment."""
    height, width = view.shape[0] - side - 2, view.shape[1] - side - 2
    places = []
    for top, left in ((0, 0), (0, width // 2), (height // 2, 0), (height // 2, width // 2)):
        windows = [
            (float(view[y : y + side, x : x + side].std()), y, x)
            for y in range(top, top + height // 2, side)
            for x in range(left, left + width // 2, side)
        ]
        places.append(max(windows)[1:])
    return places


@pytest.mark.parametrize("name", [name for name, *_ in SLIDES if name.startswith("slides/")])
def test_overview_is_aligned_in_every_quadrant(data_dir: Path, name: str) -> None:
    """A coarse level with a rounded shape must not drift: no shift by a pixel fits better."""
    source = open_source(data_dir / name)
    view, scale = source.overview(8.0)
    s, n = int(scale), 20
    for i, j in _textured_places(view, n):
        fine = source.read(i * s, j * s, n * s, n * s).astype(np.float32)
        expected = fine.reshape(n, s, n, s, 3).mean(axis=(1, 3))[1:-1, 1:-1]
        assert expected.std() > 5
        errors = {
            (dy, dx): _difference(view[i + dy :, j + dx :][: n - 2, : n - 2], expected)
            for dy in range(3)
            for dx in range(3)
        }
        # coarse levels are compressed once more, so they never agree exactly
        assert errors.pop((1, 1)) < 0.8 * min(errors.values())


def test_exact_coarse_level_equals_the_stored_pixels(data_dir: Path) -> None:
    path = data_dir / "slides/CK7p40_dualIHC_crop_40x_AT2.svs"
    stored = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 1, (2304, 2304)))[..., :3]
    source = open_source(path, mpp=1.0112)
    assert source.grid.factor == 4
    for y, x in ((0, 0), (1003, 517), (2204, 2204)):
        np.testing.assert_array_equal(source.read(y, x, 100, 100), stored[y : y + 100, x : x + 100])


def test_two_scanners_agree_on_the_size_of_a_field(data_dir: Path) -> None:
    a, b = (open_source(data_dir / f"scanners/OS-2-{k}.ome.tif") for k in ("ndpi", "vsi"))
    for side_a, side_b in zip(a.grid.shape, b.grid.shape, strict=True):
        assert side_a * a.grid.mpp == pytest.approx(side_b * b.grid.mpp, rel=0.01)


def test_embedded_profile_is_applied_on_request(data_dir: Path) -> None:
    path = data_dir / "slides/TCGA-CR-7395-01A-01-TS1.svs"
    plain = open_source(path, mpp_source=0.5, mpp="native")
    converted = open_source(path, mpp_source=0.5, mpp="native", icc=True)
    assert plain.meta.has_icc
    a, b = (s.read(1000, 1000, 256, 256).astype(int) for s in (plain, converted))
    assert np.abs(a - b).mean() < 3  # the profile is sRGB itself


def test_truncated_slide(data_dir: Path, tmp_path: Path) -> None:
    content = (data_dir / "slides/CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "t.svs"
    for share in (0.01, 0.5, 0.65):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(SlideError, match="damaged or truncated"):
            open_source(path)
