"""The settings of the solver for the three presets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.solver.network import NetworkSpec

HALO = 32  # output pixels beyond its border that a tile includes
NOISE_CHANNELS = 32
PAPER_STEPS = 6000  # as published
NETWORK_ONLY = 100.0  # a Lambda so large that the network's map is the result


@dataclass(frozen=True)
class Preset:
    """The settings of the solver.

    Attributes:
        name: ``paper``, ``balanced`` or ``fast``.
        noise_input: each tile has its own networks, one per stain, from noise, as published.
        slide_network: one network for the slide, trained on its own tissue (decision 22).
        steps: optimisation steps on each tile.
        learning_rate: of Adam, for the tiles' networks, S, M and B; or the peak rate of the slide's
            network.
        alpha, beta: weights of reconstruction and exclusion.
        field_source: ``statistics`` (neighbourhood sums) or ``parameters`` (the tiles' S, M, B).
    """

    name: str
    noise_input: bool
    slide_network: bool
    steps: int
    learning_rate: float
    alpha: float
    beta: float
    field_source: str

    def with_steps(self, steps: int) -> Preset:
        """The preset with another number of steps on each tile."""
        return replace(self, steps=steps)

    @property
    def network(self) -> NetworkSpec:
        """The generator of one stain on one tile."""
        return NetworkSpec(inputs=NOISE_CHANNELS, outputs=1)


_PRESETS = {
    "paper": Preset("paper", True, False, PAPER_STEPS, 5e-4, 1.0, 0.01, "parameters"),
    "balanced": Preset("balanced", False, True, 0, 4e-3, 0.0, 0.0, "statistics"),
    "fast": Preset("fast", False, False, 0, 5e-4, 0.0, 0.0, "statistics"),
}


def resolve(settings: ScientificSettings) -> Preset:
    """The preset of the settings, with their own iterations, learning rate and loss weights."""
    preset = _PRESETS[settings.preset]
    steps = preset.steps
    if settings.iterations is not None and preset.steps > 0:
        steps = settings.iterations
    return replace(
        preset,
        steps=steps,
        learning_rate=settings.learning_rate or preset.learning_rate,
        alpha=preset.alpha if settings.alpha is None else settings.alpha,
        beta=preset.beta if settings.beta is None else settings.beta,
    )
