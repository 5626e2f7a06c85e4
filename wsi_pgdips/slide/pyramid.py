"""The common interface of all slide files: RGB pixels level by level, and the facts beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray


@dataclass(frozen=True)
class FileFacts:
    """The facts that a file states beside its pixels; nothing personal.

    Attributes:
        vendor: scanner maker or kind of file.
        mpp_yx: micrometres per level-0 pixel, down and across, as stated in the file.
        objective_power: magnification of the objective.
        bounds_l0: (y, x, height, width) of the scanned part.
        icc_profile: the embedded colour profile.
        properties: allowed properties (see ``reader``).
    """

    vendor: str
    mpp_yx: tuple[float, float] | None = None
    objective_power: float | None = None
    bounds_l0: tuple[int, int, int, int] | None = None
    icc_profile: bytes | None = None
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def mpp(self) -> float | None:
        """The mean of both directions, or None."""
        return None if self.mpp_yx is None else (self.mpp_yx[0] + self.mpp_yx[1]) / 2


class Pyramid(Protocol):
    """RGB pixels of a slide, level by level. Thread-safe and picklable."""

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each level, finest first."""
        ...

    @property
    def level_exact(self) -> tuple[bool, ...]:
        """True for each level whose windows come as stored.

        Windows of other levels are interpolated, and off by up to a level-0 pixel.
        """
        ...

    @property
    def facts(self) -> FileFacts: ...

    def read_level(self, level: int, y: int, x: int, h: int, w: int) -> ByteArray:
        """Read a window inside the level, in the level's own pixels: (h, w, 3) uint8.

        Transparent pixels are composited on white.

        Raises:
            SlideError: the pixels cannot be read; later reads of other pixels still work.
        """
        ...

    def close(self) -> None: ...


class MemoryPyramid:
    """A single level in memory: (H, W, 3) uint8."""

    def __init__(self, rgb: ByteArray, facts: FileFacts) -> None:
        self._rgb, self._facts = rgb, facts

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        return ((self._rgb.shape[0], self._rgb.shape[1]),)

    @property
    def level_exact(self) -> tuple[bool, ...]:
        return (True,)

    @property
    def facts(self) -> FileFacts:
        return self._facts

    def read_level(self, level: int, y: int, x: int, h: int, w: int) -> ByteArray:
        return self._rgb[y : y + h, x : x + w]

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def damaged(message: str, found: object, where: object) -> SlideError:
    """The error about a damaged file."""
    return SlideError(
        f"{message}; the file is damaged or truncated",
        found=found,
        where=where,
        hint="copy it again from its source and compare checksums",
    )
