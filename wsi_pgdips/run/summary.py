"""What a run says when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


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

    @classmethod
    def of_record(
        cls, path: Path, record: Mapping[str, Any], *, already_done: bool = False
    ) -> Self:
        """From ``provenance/run.json``."""
        return cls(
            path=path,
            tiles=record.get("tiles", 0),
            fitted=record.get("tiles_fitted", 0),
            inherited=record.get("tiles_inherited", 0),
            failed_tiles=record.get("failed_tiles", 0),
            failed_blocks=record.get("failed_blocks", 0),
            flags=tuple(record.get("flags", ())),
            seam_step_od=record.get("seam_step_od", {}),
            wall_s=record.get("wall_s", {}),
            already_done=already_done,
            incomplete=record.get("status") == "incomplete",
        )

    @property
    def exit_code(self) -> int:
        """0 done, 3 done with failures."""
        return 3 if self.incomplete or self.failed_tiles or self.failed_blocks else 0
