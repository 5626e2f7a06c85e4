"""A tile as its slide's network sees it in focus, for slides that are not (decision 32).

Out of focus nuclei bleed into what lies around them, so no pixel is pure, and the edges of the cone
lean inwards. What the network brings back is put into the pixels, and edges are taken of those.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from wsi_pgdips.records import SlidePrior
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.tile import TileInput


def needs_focus(prior: SlidePrior) -> bool:
    """Whether a slide is out of focus, and has a network that could help."""
    found = prior.acquisition
    return bool(prior.network) and found is not None and found.defocus > 0


def in_focus(tile: TileInput, prior: SlidePrior, device: torch.device) -> TileInput:
    """The tile with OD' = OD + sum_n (q_n of the network - q_n of the closed form) S0_n.

    What lies out of the stains' plane stays. Of a slide in focus, or without a network, the tile
    itself.
    """
    if not needs_focus(prior):
        return tile
    weights = {k: torch.from_numpy(v).to(device) for k, v in prior.network.items()}
    od, rows, glass = (
        torch.from_numpy(a).to(device) for a in (tile.od, prior.stain_matrix, tile.background)
    )
    with torch.no_grad():
        q, closed = slide_network.estimate(
            weights, od, rows, glass, float(prior.spectral_correction.mean())
        )
        sharp = od + torch.einsum("nhw,nc->chw", q - closed, rows)
    return replace(tile, od=np.ascontiguousarray(sharp.cpu().numpy()))
