"""The library's H&E vectors lie near what real slides hold (docs/decisions.md, entry 11)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_pgdips.optics.physics import angle_deg, rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.optics.stains import match_rows

SLIDES = (
    "CMU-1-Small-Region.svs",
    "BS9_HE2_40x_AT2.svs",
    "ectopic_pancreas_HE_crop_40x_GT450.svs",
)
GLASS_OD, TISSUE_OD, POOL = 0.06, 0.1, 4


def extreme_rays(path: Path) -> np.ndarray:
    """(2, 3) edges of the cone of colours of a slide, from a coarse level, less its glass."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        level = slide.get_best_level_for_downsample(8)
        image = slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")
    od = rgb_to_od(np.asarray(image))
    h, w = (n // POOL for n in od.shape[:2])
    od = od[: h * POOL, : w * POOL].reshape(h, POOL, w, POOL, 3).mean((1, 3)).reshape(-1, 3)
    od = od - np.median(od[od.mean(1) < GLASS_OD], axis=0)
    tissue = od[od.mean(1) > TISSUE_OD]
    _, plane = np.linalg.eigh(tissue.T @ tissue)
    major, minor = plane[:, 2] * np.sign(plane[:, 2].sum()), plane[:, 1]
    angles = np.percentile(np.arctan2(tissue @ minor, tissue @ major), [1, 99])
    return np.outer(np.cos(angles), major) + np.outer(np.sin(angles), minor)


@pytest.mark.realslide
@pytest.mark.parametrize("name", SLIDES)
def test_he_is_nearer_than_ruifroks(data_dir: Path, name: str):
    rays = extreme_rays(data_dir / "slides" / name)
    library = load_stains("he").stain_matrix
    permutation, angles = match_rows(rays, library)
    eosin = rays[permutation][1]
    assert angles.max() < 20
    assert angle_deg(eosin, library[1]) + 10 < (
        angle_deg(eosin, load_stains("he_ruifrok").stain_matrix[1])
    )
