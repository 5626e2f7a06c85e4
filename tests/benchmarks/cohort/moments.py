"""How far a run is, by what files exist; and what a run that was killed has lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wsi_pgdips.disk import PARTIAL
from wsi_pgdips.layers.provenance import RUN_RECORD, is_done
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.lock import SUFFIX
from wsi_pgdips.pipeline.output import CHECKSUMS

# where a kill may fall, in the order of a run: before it holds its output, then stage by stage
MOMENTS = ("start", "prepare", "calibrate", "fit", "blend", "render", "finalize", "end")
PREPARE = MOMENTS.index("prepare")


@dataclass(frozen=True)
class Place:
    """Where a run writes.

    Attributes:
        output: its layers. blocks: of its slide.
    """

    output: Path
    blocks: int

    def holders(self) -> frozenset[str]:
        """Files that say who works on the output."""
        if not self.output.parent.is_dir():
            return frozenset()
        return frozenset(p.name for p in self.output.parent.iterdir() if p.name.endswith(SUFFIX))

    def stage(self) -> int:
        """The stage in hand, a place in ``MOMENTS``: the first whose files are not all there."""
        ledger = Ledger(self.output)
        done: tuple[Callable[[], bool], ...] = (
            ledger.plan.exists,
            ledger.prior.exists,
            lambda: self._count(ledger.fit((0, 0)).parent) >= self.blocks,
            ledger.fields.exists,
            lambda: self._count(ledger.render((0, 0)).parent) >= self.blocks,
            lambda: False,  # what finalize makes is made anew
        )
        if is_done(self.output):
            return MOMENTS.index("end")
        return PREPARE + next(k for k, there in enumerate(done) if not there())

    def moment(self, before: frozenset[str]) -> str:
        """Of ``MOMENTS``, of a run that has just been killed.

        Args:
            before: ``holders`` when it was started: it has begun to work where it is one of them.
        """
        stage = MOMENTS[self.stage()]
        return "start" if stage != "end" and self.holders() <= before else stage

    def left_behind(self) -> list[str]:
        """What a finished run has no use for."""
        return sorted(
            path.name
            for path in self.output.parent.rglob("*")
            if path.name.endswith((PARTIAL, SUFFIX)) or path == Ledger(self.output).work
        )

    @staticmethod
    def _count(folder: Path) -> int:
        try:
            return sum(path.suffix == ".npz" for path in folder.iterdir())
        except FileNotFoundError:  # not there yet, or the run has come to its end
            return 0


def blocks_of(output: Path) -> int:
    """Blocks of finished layers."""
    checksums = json.loads((output / CHECKSUMS).read_bytes())
    return sum(1 for name in checksums if name.startswith("0/c/"))


@dataclass(frozen=True)
class Difference:
    """Of two outputs: how many files were looked at, which are other bytes, which are missing."""

    files: int
    wrong: tuple[str, ...]
    lost: tuple[str, ...]


def difference(reference: Path, output: Path) -> Difference:
    """Every file but the one that tells runs apart; one too many is a wrong one."""
    wanted, found = _files(reference), _files(output)
    same = {
        name
        for name in wanted & found
        if (reference / name).read_bytes() == (output / name).read_bytes()
    }
    return Difference(len(wanted), tuple(sorted(found - same)), tuple(sorted(wanted - found)))


def _files(output: Path) -> set[str]:
    paths = (p for p in output.rglob("*") if p.is_file())
    return {p.relative_to(output).as_posix() for p in paths} - {RUN_RECORD}
