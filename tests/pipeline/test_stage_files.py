"""What ``calibrate`` found is read back as it was written, and older files are understood."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from wsi_pgdips.pipeline.stage_files import load_prior, save_prior
from wsi_pgdips.records import Acquisition, SlidePrior

PRIOR = SlidePrior(
    stain_matrix=np.eye(2, 3, dtype=np.float32),
    spectral_correction=np.array([1.5, 0.5], np.float32),
    background=np.array([0.01, 0.02, 0.03], np.float32),
    presence=np.array([0.05, 0.06], np.float32),
    noise_od=0.0123,
    pooled_noise_od=0.004,
    prior_weight=np.array([2.0, 3.0], np.float32),
    measured=np.array([True, False]),
    network={"head.weight": np.ones((2, 2), np.float32)},
    flags=("stain_1_from_library",),
    loss=0.01,
)


@pytest.mark.parametrize(
    "acquisition",
    [
        None,
        Acquisition(1.5, 80, "4:2:0"),
        Acquisition(2.25, 0, "", defocus=1.2, coarse=(0.1 + 0.2, 0.0, 1 / 3)),
    ],
)
def test_a_prior_survives_its_file(tmp_path: Path, acquisition: Acquisition | None) -> None:
    prior = replace(PRIOR, acquisition=acquisition)
    save_prior(prior, tmp_path / "prior.npz")
    found = load_prior(tmp_path / "prior.npz")
    assert found.acquisition == acquisition
    for name in (f.name for f in fields(SlidePrior) if f.name != "acquisition"):
        np.testing.assert_equal(getattr(found, name), getattr(prior, name))
