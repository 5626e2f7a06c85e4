"""What a run says when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RunSummary:
    """Outcome of one slide.

    Attributes:
        path: the layers. tiles: rendered. fitted: of them fitted on their own.
        inherited: tiles whose parameters come from neighbours or the slide.
        failed_tiles: tiles that could not be read or fitted. failed_blocks: blocks not written.
        flags: words on the slide (``no_glass``...).
        seam_step_od: label -> 99th percentile of the seam step in OD, None below presence.
        wall_s: stage -> seconds. already_done: nothing had to be done.
        incomplete: something could not be read or fitted; the same command tries it again.
    """

    path: Path
    tiles: int
    fitted: int
    inherited: int
    failed_tiles: int
    failed_blocks: int
    flags: tuple[str, ...]
    seam_step_od: dict[str, float | None]
    wall_s: dict[str, float] = field(default_factory=dict)
    already_done: bool = False
    incomplete: bool = False

    @property
    def exit_code(self) -> int:
        """0 done, 3 done with failures."""
        return 3 if self.incomplete or self.failed_tiles or self.failed_blocks else 0
