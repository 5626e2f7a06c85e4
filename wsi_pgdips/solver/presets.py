"""What the three presets mean to the solver."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.solver.network import NetworkSpec

HALO = 32  # output pixels a tile sees beyond its border; its maps are cross-faded there
NOISE_CHANNELS = 32


@dataclass(frozen=True)
class Preset:
    """How a tile is solved.

    Attributes:
        name: ``paper``, ``balanced`` or ``fast``.
        noise_input: fixed random noise into the network (as published) instead of the tile's OD.
        separate: one network a stain (as published) instead of one network with N heads.
        shrink: the network runs at 1/shrink of the output resolution.
        steps: optimisation steps on each tile; 0 runs the slide-level network forward only.
        learning_rate: Adam, network; where the network's normalisation is frozen it is scaled by
            each layer's fan-in (``optimise.parameter_groups``). physics_rate: Adam, S, M and B.
        alpha, beta: weights of reconstruction and exclusion.
        stain_hold, background_hold: weights of the priors on S and B (0: free, as published).
        augment: flips and rotations of (input, target) on alternate steps, and input jitter.
        field_source: ``statistics`` (neighbourhood sums) or ``parameters`` (the tiles' S, M, B).
    """

    name: str
    noise_input: bool
    separate: bool
    shrink: int
    steps: int
    learning_rate: float
    physics_rate: float
    alpha: float
    beta: float
    stain_hold: float
    background_hold: float
    augment: bool
    field_source: str

    def network(self, n: int) -> NetworkSpec:
        """The generator for n stains."""
        return NetworkSpec(
            inputs=NOISE_CHANNELS if self.noise_input else 3,
            outputs=1 if self.separate else n,
            tile_norm=self.noise_input,
        )


_PAPER = Preset("paper", True, True, 1, 6000, 5e-4, 5e-4, 1.0, 0.01, 0.0, 0.0, True, "parameters")
_BALANCED = Preset(
    "balanced", False, False, 2, 20, 5e-3, 1e-3, 1.0, 0.01, 0.05, 1.0, False, "statistics"
)
_PRESETS = {
    "paper": _PAPER,
    "balanced": _BALANCED,
    "fast": replace(_BALANCED, name="fast", steps=0),
}


def resolve(settings: ScientificSettings) -> Preset:
    """The preset with the settings' own iterations, learning rate and loss weights."""
    preset = _PRESETS[settings.preset]
    steps = preset.steps
    if settings.iterations is not None and preset.steps > 0:
        steps = settings.iterations
    return replace(
        preset,
        steps=steps,
        learning_rate=settings.learning_rate or preset.learning_rate,
        alpha=settings.alpha,
        beta=settings.beta,
    )
