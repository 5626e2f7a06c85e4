"""Registration and colour maps on real scans: five fields on three scanners, and an IHC pair.

The maps are fitted with our own registration on the other four fields; the registration that comes
with the data is for scoring alone.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_filter
from skimage.color import rgb2lab

from wsi_pgdips.errors import SlideError
from wsi_pgdips.looks.map_fit import fit_map, fit_pairs
from wsi_pgdips.looks.pairs import PairPixels, read_pair
from wsi_pgdips.looks.register import register, warped
from wsi_pgdips.optics.physics import I0

pytestmark = pytest.mark.realslide
ORGANS = ("brain", "breast", "colon", "kidney", "liver")
SCANNERS = ("hamamatsu", "leica", "zeiss")
BLUR_PX, TISSUE_OD = 2.0, 0.05
MEDIAN, WORST = 3.0, 4.5  # CIELAB dE


@cache
def picture(path: Path):
    return np.asarray(Image.open(path).convert("RGB"))


@cache
def pair(folder: Path, organ: str, scanner: str) -> PairPixels:
    return read_pair(folder / f"{organ}_{scanner}.png", folder / f"{organ}_truth.png")


def given_affine(folder: Path, organ: str, scanner: str):
    """(2, 3) affine from (y, x) of the truth to those of the scan."""
    table = json.loads((folder / "registration.json").read_text())
    xy = np.array(table[f"{organ}_{scanner}"]["affine_xy_to_truth"])
    forward = np.array([xy[1, [1, 0, 2]], xy[0, [1, 0, 2]]])
    back = np.linalg.inv(forward[:, :2])
    return np.column_stack([back, -back @ forward[:, 2]])


def densities(rgb):
    blurred = gaussian_filter(rgb, (BLUR_PX, BLUR_PX, 0))
    return -np.log10(np.maximum(blurred, 0.5) / I0)


def scored_pixels(folder: Path, organ: str, scanner: str):
    """(n, 3) OD of scan and truth, in the truth's frame, over tissue."""
    truth = np.float64(picture(folder / f"{organ}_truth.png"))
    scan = np.float32(picture(folder / f"{organ}_{scanner}.png"))
    moved = warped(scan, given_affine(folder, organ, scanner), truth.shape[:2])
    seen = binary_erosion(~np.isnan(moved).any(2), iterations=8)
    a, b = densities(np.nan_to_num(moved, nan=I0)), densities(truth)
    tissue = seen & (b.mean(2) > TISSUE_OD)
    return a[tissue], b[tissue]


def difference(a, b) -> float:
    lab = [rgb2lab(np.clip(10.0**-od, 0, 1)[None])[0] for od in (a, b)]
    return float(np.median(np.linalg.norm(lab[0] - lab[1], axis=1)))


@pytest.mark.parametrize("scanner", SCANNERS)
@pytest.mark.parametrize("organ", ORGANS)
def test_registration_is_that_of_the_data(data_dir: Path, organ: str, scanner: str):
    folder = data_dir / "multiscanner"
    found = pair(folder, organ, scanner).registration
    h, w = picture(folder / f"{organ}_truth.png").shape[:2]
    at = np.array([(y, x) for y in (0, h) for x in (0, w)], float)
    given = given_affine(folder, organ, scanner)
    off = (at @ found.inverse[:, :2].T + found.inverse[:, 2]) - (at @ given[:, :2].T + given[:, 2])
    assert np.linalg.norm(off, axis=1).max() < 1.0  # in pixels of the scan
    assert found.inliers > 150
    assert found.rms_px < 0.8
    assert found.correlation > 0.98


@pytest.mark.parametrize("scanner", SCANNERS)
def test_other_fields_are_refused(data_dir: Path, scanner: str):
    folder = data_dir / "multiscanner"
    for organ, other in (("brain", "breast"), ("kidney", "liver")):
        scan = picture(folder / f"{organ}_{scanner}.png")
        for wrong in (f"{other}_truth.png", f"{other}_{scanner}.png"):
            with pytest.raises(SlideError, match="cannot be registered"):
                register(scan, picture(folder / wrong))


@pytest.mark.parametrize("scanner", SCANNERS)
def test_map_of_other_organs_brings_a_scan_to_the_truth(data_dir: Path, scanner: str):
    folder = data_dir / "multiscanner"
    before, after = [], []
    for organ in ORGANS:
        others = [pair(folder, other, scanner) for other in ORGANS if other != organ]
        colour_map = fit_map(others, scanner)
        a, b = scored_pixels(folder, organ, scanner)
        before.append(difference(a, b))
        after.append(difference(colour_map.apply(np.float32(a).T).T, b))
    print(f"{scanner}: before {np.round(before, 2)}, after {np.round(after, 2)}")
    assert np.median(after) <= MEDIAN, (before, after)
    assert max(after) <= WORST, (before, after)
    assert np.median(after) < 0.6 * np.median(before), (before, after)


def test_ihc_pair_of_two_scanners(data_dir: Path):
    paths = [data_dir / "scanners" / f"OS-2-{name}.ome.tif" for name in ("ndpi", "vsi")]
    found = fit_pairs(paths, "OS-2")
    assert found.error_lab < 2.5
    assert found.error_lab < 0.25 * found.before_lab
