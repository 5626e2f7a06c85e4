"""Pictures with a second acquisition: shifts undone, the right map against the right truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.quality.cases import all_cases, choose
from benchmarks.quality.methods import choose as choose_methods
from benchmarks.quality.pictures import measure_picture, read_truth
from benchmarks.records import only
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.physics import compose_od, od_to_rgb
from wsi_pgdips.optics.stain_files import load_stains

SHIFT = (2, -5)
SIDE = 200


def blobs(seed: int) -> np.ndarray:
    """(SIDE, SIDE) in 0..1, half of it empty."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((SIDE, SIDE)), 2)
    return np.clip(noise / noise.max(), 0, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One pair of each kind; the second acquisition is 2 pixels down and 5 to the left."""
    folder = tmp_path_factory.mktemp("data")
    q = np.stack([0.8 * blobs(1), 0.9 * blobs(2)]).astype(np.float32)
    for kind, stains in (("truth", "hdab"), ("semisynthetic", "he")):
        (folder / kind).mkdir()
        matrix = load_stains(stains).stain_matrix
        rgb = od_to_rgb(compose_od(q, matrix, np.zeros(3, np.float32)).transpose(1, 2, 0))
        moved = (np.roll(q, SHIFT, (1, 2)) * 200).astype(np.uint8)
        if kind == "truth":
            Image.fromarray(rgb).save(folder / kind / "A_IHC.png")
            for name, plane in (("DAPI", moved[0]), ("Ki67", moved[1])):
                Image.fromarray(plane).save(folder / kind / f"A_{name}.png")
        else:
            Image.fromarray(rgb).save(folder / kind / "1_HE.jpg", quality=95)
            four = np.stack([moved[0], moved[1], moved[1], moved[1]])
            tifffile.imwrite(folder / kind / "1_mIF.tif", four, photometric="minisblack")
    return folder


@pytest.mark.parametrize(
    ("name", "labels"), [("A", ["Hematoxylin:DAPI", "DAB:Ki67"]), ("1", ["Hematoxylin:DAPI"])]
)
def test_what_made_the_picture_is_found_again(data, name, labels):
    (case,) = choose(all_cases(data), [name])
    records = measure_picture(case, choose_methods(["fixed", "macenko-slide"])).frame
    for label in labels:

        def value(method: str, metric: str, blur: float = 0, stain: str = label) -> float:
            where = {"stain": stain, "metric": metric, "blur_px": blur}
            return only(records, method=method, **where)["value"].item()

        shift = tuple(value("registration", f"shift_{axis}_px") for axis in "yx")
        assert shift == SHIFT
        assert value("fixed", "pcc") > 0.97
        assert value("fixed", "pcc") > value("fixed", "pcc", 4)
        assert value("fixed", "sharpness") > value("fixed", "sharpness", 4)
        # at equal sharpness the softest is left as it is
        assert 0 in (value(m, "equal_sigma_px") for m in ("fixed", "macenko-slide"))
        soft = min(("fixed", "macenko-slide"), key=lambda m: value(m, "sharpness"))
        assert value(soft, "pcc_equal") == value(soft, "pcc")


def test_the_kind_of_a_truth_is_seen(tmp_path):
    bright = np.full((20, 20, 3), (220, 210, 230), np.uint8)
    bright[5:10] = (90, 60, 120)
    Image.fromarray(bright).save(tmp_path / "h.png")
    assert read_truth(tmp_path / "h.png")[6].min() > 0.4  # dark is much
    Image.fromarray(255 - bright).save(tmp_path / "f.png")
    fluorescence = read_truth(tmp_path / "f.png")
    assert fluorescence[6].min() > fluorescence[0].max()  # bright is much


def test_a_truth_of_another_size_is_refused(data, tmp_path):
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "A_IHC.png").write_bytes((data / "truth" / "A_IHC.png").read_bytes())
    Image.new("L", (10, 20)).save(tmp_path / "truth" / "A_DAPI.png")
    (case,) = choose(all_cases(tmp_path), ["A"])
    with pytest.raises(SettingsError, match="10 x 20"):
        measure_picture(case, choose_methods(["fixed"]))
    (tmp_path / "truth" / "A_IHC.png").write_text("not a picture")
    with pytest.raises(SettingsError, match="cannot be read"):
        measure_picture(case, choose_methods(["fixed"]))
