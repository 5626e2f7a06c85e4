"""What the network brings back goes into the pixels, along the stains alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from support.synthetic import HDAB, concentrations, prior_of, tile_of
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.optics.cone import Plane
from wsi_pgdips.records import Acquisition, FloatArray
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.fit import fit_tiles
from wsi_pgdips.solver.presets import resolve
from wsi_pgdips.solver.slide_network import in_focus

CPU = torch.device("cpu")
SOFT = Acquisition(1.5, 0, "", defocus=1.7)
TILE = tile_of(concentrations(2, 96, 0, sigma=4.0), HDAB)


def network(head: float) -> dict[str, FloatArray]:
    weights = slide_network.init_weights(2, torch.Generator().manual_seed(0))
    noise = torch.randn(weights["head.weight"].shape, generator=torch.Generator().manual_seed(1))
    weights["head.weight"] = noise * head
    return {k: v.numpy() for k, v in weights.items()}


def test_a_slide_in_focus_keeps_its_pixels() -> None:
    prior = prior_of(HDAB, network(0.05))
    assert in_focus(TILE, prior, CPU) is TILE
    assert in_focus(TILE, replace(prior, acquisition=replace(SOFT, defocus=0.0)), CPU) is TILE
    assert in_focus(TILE, replace(prior, network={}, acquisition=SOFT), CPU) is TILE
    nothing = replace(prior, network=network(0.0), acquisition=SOFT)
    np.testing.assert_allclose(in_focus(TILE, nothing, CPU).od, TILE.od, atol=1e-5)


def test_what_comes_back_lies_in_the_plane_of_the_stains() -> None:
    prior = replace(prior_of(HDAB, network(0.05)), acquisition=SOFT)
    change = in_focus(TILE, prior, CPU).od - TILE.od
    assert np.abs(change).max() > 0.01
    across = np.tensordot(Plane.of(HDAB).normal, change, 1)
    assert np.abs(across).max() < 1e-5


def test_edges_are_taken_of_the_pixels_in_focus() -> None:
    prior = replace(prior_of(HDAB, network(0.05)), acquisition=SOFT)
    preset = resolve(ScientificSettings(preset="balanced"))
    (found,) = fit_tiles([TILE], prior, preset, CPU)
    (wanted,) = fit_tiles(
        [in_focus(TILE, prior, CPU)], replace(prior, acquisition=None), preset, CPU
    )
    (soft,) = fit_tiles([TILE], replace(prior, acquisition=None), preset, CPU)
    np.testing.assert_array_equal(found.statistics["edges"], wanted.statistics["edges"])
    assert (found.statistics["edges"] != soft.statistics["edges"]).any()
