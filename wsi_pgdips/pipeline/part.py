"""Which blocks of a slide a process works on: all, or those of one part of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from wsi_pgdips.errors import NotReadyError, SettingsError
from wsi_pgdips.pipeline.ledger import Block
from wsi_pgdips.pipeline.retry import retrying

Stage = Literal["calibrate", "fit", "blend", "render", "finalize"]
STAGES: tuple[Stage, ...] = ("calibrate", "fit", "blend", "render", "finalize")
OVER_BLOCKS: tuple[Stage, ...] = ("fit", "render")  # whose blocks may be shared out
# seconds between checks for files of another machine: a network share may hide them for a minute
PATIENCE_S = (1, 2, 4, 8, 15, 30)


@dataclass(frozen=True)
class Part:
    """One of ``count`` processes that share the blocks of a stage, or of a whole run.

    Attributes:
        stage: the one that it does, None for all. number: 1 to ``count``.
    """

    stage: Stage | None = None
    number: int = 1
    count: int = 1

    @classmethod
    def of(cls, stage: str | None, share: str | None) -> Self:
        """Return the part that a command line names.

        Args:
            stage: None for all. share: ``2/4`` for the second of four, None for all blocks.

        Raises:
            SettingsError: no such stage or share, or a share of what cannot be shared.
        """
        known = next((s for s in STAGES if s == stage), None)
        if stage is not None and known is None:
            raise SettingsError(
                "unknown stage", expected=", ".join(STAGES), found=stage, where="--stage"
            )
        if share is None:
            return cls(known)
        if known not in OVER_BLOCKS:
            raise SettingsError(
                "only the blocks of a stage can be shared out",
                expected=f"--stage {' or --stage '.join(OVER_BLOCKS)}",
                found=stage or "no --stage",
                where="--part",
            )
        number, _, count = share.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise SettingsError(
                "not a part of a stage",
                expected="N/COUNT, such as 2/4, N from 1 to COUNT",
                found=share,
                where="--part",
            )
        return cls(known, int(number), int(count))

    @property
    def name(self) -> str:
        """Name for files: ``run``, ``blend``, ``fit-2-of-4``."""
        name = self.stage or "run"
        return name if self.count == 1 else f"{name}-{self.number}-of-{self.count}"

    @property
    def beside(self) -> str | None:
        """Start of the names of the parts that may run at the same time; None if none may."""
        return f"{self.stage}-" if self.count > 1 else None

    def does(self, stage: Stage) -> bool:
        return self.stage in (None, stage)

    def need(self, stage: Stage, done: Callable[[], bool], output: Path) -> None:
        """Check that a stage before is done; wait a while if other processes have done it.

        Raises:
            NotReadyError: it is not done.
        """
        waits = PATIENCE_S if self.stage else ()
        if not retrying(waits, again=lambda is_done: not is_done)(done):
            raise NotReadyError(
                f"{self.stage or 'the next stage'} cannot begin",
                expected=f"{stage} of the whole slide",
                found=f"{stage} has not come to its end",
                where=output,
                hint=f"find out why {stage} ended, and start again from there",
            )

    def blocks(self, tiles: dict[Block, int]) -> list[Block]:
        """Return the blocks of this part, the largest first; each block belongs to one part.

        Args:
            tiles: how many tiles each block of the slide has.
        """
        return share_out(tiles, self.count)[self.number - 1]


def share_out(tiles: dict[Block, int], count: int) -> list[list[Block]]:
    """Return ``count`` shares with about the same number of tiles, each the largest block first."""
    shares: list[list[Block]] = [[] for _ in range(count)]
    sizes = [0] * count
    for block in largest_first(tiles):
        least = sizes.index(min(sizes))
        shares[least].append(block)
        sizes[least] += tiles[block]
    return shares


def largest_first(tiles: dict[Block, int]) -> Iterable[Block]:
    """Sort blocks so that no worker is left with a large one at the end."""
    return sorted(tiles, key=lambda block: (-tiles[block], block))
