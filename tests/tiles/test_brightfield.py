"""Pictures that are not brightfield are refused by their figures; odd brightfield is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from wsi_pgdips.errors import SlideError
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.records import ByteArray, FloatArray
from wsi_pgdips.tiles.tissue import find_tissue

rng = np.random.default_rng(0)
SHAPE = (160, 200)


def rough(sigma: float = 1.2) -> FloatArray:
    a = ndimage.gaussian_filter(rng.normal(size=SHAPE), sigma)
    return a / a.std()


Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
INSIDE = (Y - 80) ** 2 + (X - 100) ** 2 < 60**2
NUCLEI, FIBRES, CELLS = (
    (0.5 + 0.3 * rough()).clip(0, 1) * INSIDE * (rough(2) > 0.3) for _ in range(3)
)
NONE = np.zeros(SHAPE)


def light(*channels: FloatArray, dark: float = 8, bright: float = 200, noise: float = 1):
    """Light on a dark background."""
    counts = dark + bright * np.stack(channels, 2) + rng.normal(0, noise, (*SHAPE, 3))
    return np.rint(counts).clip(0, 255).astype(np.uint8)


def stained(q: FloatArray, e: FloatArray, white=(240, 240, 240), noise: float = 0.5) -> ByteArray:
    od = q[..., None] * np.array([0.65, 0.70, 0.29]) + e[..., None] * np.array([0.07, 0.99, 0.11])
    counts = od_to_rgb(od) / 255.0 * np.array(white) + rng.normal(0, noise, (*SHAPE, 3))
    return np.rint(counts).clip(0, 255).astype(np.uint8)


HE = stained(0.5 * NUCLEI, 0.4 * FIBRES)
DARK = {
    "one colour on black": light(NONE, NONE, NUCLEI, dark=0, noise=0),
    "one colour, dark current": light(0.05 * NUCLEI, 0.1 * NUCLEI, NUCLEI),
    "green on black": light(NONE, NUCLEI, NONE, dark=0, noise=0),
    "three dyes": light(NUCLEI, FIBRES, CELLS),
    "three dyes, black cleared": light(NUCLEI, FIBRES, CELLS, dark=0, noise=0),
    "three dyes, faint": light(NUCLEI, FIBRES, CELLS, dark=5, bright=60),
    "grey": light(NUCLEI, NUCLEI, NUCLEI, noise=0),
    "nearly grey": light(NUCLEI, 0.98 * NUCLEI, 0.95 * NUCLEI),
    "inverted brightfield": 255 - HE,
    "inverted fluorescence": 255 - light(NONE, NONE, NUCLEI, dark=0, noise=0),
    "red nuclei on green": light(NUCLEI, 0.5 * (1 - NUCLEI), NONE, dark=0, noise=0),
}


@pytest.mark.parametrize("rgb", DARK.values(), ids=DARK.keys())
def test_what_is_not_brightfield_is_refused(as_source, rgb):
    with pytest.raises(SlideError, match="not a brightfield picture") as caught:
        find_tissue(as_source(rgb))
    error = caught.value
    assert any(c.isdigit() for c in str(error.found)) or "counts" in str(error.found)
    assert error.expected
    assert error.where == "fake"
    assert error.hint


FULL = np.ones(SHAPE)
SMEAR = 1.2 + 0.25 * rough()
ROUGH = (0.5 + 0.15 * rough()).clip(0)


def on_black(rgb: ByteArray) -> ByteArray:
    out = np.zeros((SHAPE[0] + 80, SHAPE[1] + 96, 3), np.uint8)
    out[32 : 32 + SHAPE[0], 48 : 48 + SHAPE[1]] = rgb
    return out


def through_a_field_stop(rgb: ByteArray) -> ByteArray:
    out = rgb.copy()
    out[(Y - 80) ** 2 + (X - 100) ** 2 > 75**2] = 0
    return out


BRIGHT = {
    "dark": stained(0.5 * NUCLEI, 0.4 * FIBRES, (150, 150, 150)),
    "very dark": stained(0.5 * NUCLEI, 0.4 * FIBRES, (80, 80, 80)),
    "yellow": stained(0.5 * NUCLEI, 0.4 * FIBRES, (245, 235, 190)),
    "warm": stained(0.5 * NUCLEI, 0.4 * FIBRES, (235, 215, 170)),
    "faded": stained(0.1 * NUCLEI, 0.08 * FIBRES),
    "no glass": stained(ROUGH, ROUGH),
    "no glass, one stain": stained(ROUGH, 0 * FULL),
    "thick and dark, no glass": stained(SMEAR, SMEAR),
    "on black": on_black(HE),
    "no glass, on black": on_black(stained(ROUGH, ROUGH)),
    "field stop": through_a_field_stop(HE),
    "overexposed": np.minimum(HE.astype(int) + 20, 255).astype(np.uint8),
}


@pytest.mark.parametrize("rgb", BRIGHT.values(), ids=BRIGHT.keys())
def test_odd_brightfield_is_not_refused(as_source, rgb):
    assert find_tissue(as_source(rgb)).core.any()


@pytest.mark.realslide
def test_real_fluorescence_is_refused(data_dir):
    import tifffile

    from wsi_pgdips.slide.reader import open_source
    from wsi_pgdips.slide.source import ArraySource

    with pytest.raises(SlideError, match="not a brightfield picture"):
        find_tissue(open_source(data_dir / "failing" / "fluorescence_dapi.tiff"))
    files = sorted((data_dir / "semisynthetic").glob("*.tif"))
    assert files
    for file in files:
        channels = tifffile.imread(file)[..., [0, 1, 3]]
        with pytest.raises(SlideError, match="not a brightfield picture"):
            find_tissue(ArraySource(np.ascontiguousarray(channels), mpp=0.5))


@pytest.mark.realslide
def test_real_brightfield_is_not_refused(data_dir):
    from PIL import Image

    from wsi_pgdips.slide.reader import open_source
    from wsi_pgdips.slide.source import ArraySource

    for name in ("amyloid_vector.tiff", "pas_purple.tiff", "pen_cytology_lattice.svs"):
        mpp = 0.25 if name.endswith("tiff") else None
        assert find_tissue(open_source(data_dir / "failing" / name, mpp_source=mpp)).core.any()
    for file in sorted((data_dir / "multiscanner").glob("*.png")):
        rgb = np.asarray(Image.open(file).convert("RGB"))
        assert find_tissue(ArraySource(np.ascontiguousarray(rgb), mpp=1.0)).core.any()
