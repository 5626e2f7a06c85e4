"""The stage that a run is in, told by the files that exist, and what a killed run has lost."""

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
    """The place that a run writes to.

    Attributes:
        output: its layers. blocks: of its slide.
    """

    output: Path
    blocks: int

    def holders(self) -> frozenset[str]:
        """Names of the files that mark a process at work on the output."""
        if not self.output.parent.is_dir():
            return frozenset()
        return frozenset(p.name for p in self.output.parent.iterdir() if p.name.endswith(SUFFIX))

    def stage(self) -> int:
        """The current stage, an index of ``MOMENTS``: the first whose files do not all exist."""
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
        """The one of ``MOMENTS`` in which a run has just been killed.

        Args:
            before: ``holders`` when the run was started; a run at work has added its own.
        """
        stage = MOMENTS[self.stage()]
        return "start" if stage != "end" and self.holders() <= before else stage

    def left_behind(self) -> list[str]:
        """Names of files and folders that a finished run should have removed."""
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
    """Two outputs compared: the number of files, files of other bytes, and missing files."""

    files: int
    wrong: tuple[str, ...]
    lost: tuple[str, ...]


def difference(reference: Path, output: Path) -> Difference:
    """Compare every file but the run's record, which differs; a file too many counts as wrong."""
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
