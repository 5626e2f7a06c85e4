"""The ledger of a run: one file for each finished piece of its work.

Everything lives in ``OUT/work``; a piece is done when its file is there, and a file appears whole
or not at all. A run that is killed at any instant therefore resumes from what is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from wsi_pgdips.disk import make_folder, write_atomic

Block = tuple[int, int]


@dataclass(frozen=True)
class Ledger:
    """Paths of a run's pieces under ``OUT/work``."""

    output: Path

    @property
    def work(self) -> Path:
        return self.output / "work"

    @property
    def plan(self) -> Path:
        return self.work / "plan.npz"

    @property
    def prior(self) -> Path:
        return self.work / "prior.npz"

    @property
    def fields(self) -> Path:
        return self.work / "fields.npz"

    def fit(self, block: Block) -> Path:
        return self.work / "fit" / f"{block[0]}_{block[1]}.npz"

    def maps(self, block: Block) -> Path:
        """Network maps of a block, apart from its ``fit`` file so that they can be mapped."""
        return self.work / "fit" / f"{block[0]}_{block[1]}.maps.npy"

    def pixels(self, block: Block) -> Path:
        """Decoded pixels of a block's fitted tiles, where they are kept."""
        return self.work / "pixels" / f"{block[0]}_{block[1]}.rgb"

    def render(self, block: Block) -> Path:
        return self.work / "render" / f"{block[0]}_{block[1]}.npz"

    def failed(self, stage: str, block: Block) -> Path:
        """File with the reason why a block was given up in a stage; the next stages skip it."""
        return self.work / "failed" / f"{stage}_{block[0]}_{block[1]}.json"

    def give_up(self, stage: str, block: Block, reason: str) -> None:
        """Note that a block failed, so that no other process waits for it."""
        write_atomic(self.failed(stage, block), json.dumps({"reason": reason}).encode())

    def failures(self) -> dict[Block, str]:
        """Return the reason for each block that was given up, in raster order."""
        found = {}
        for path in sorted(self.work.glob("failed/*.json")):
            _, by, bx = path.stem.split("_")
            found[int(by), int(bx)] = str(json.loads(path.read_bytes())["reason"])
        return dict(sorted(found.items()))

    def pieces(self) -> int:
        """Return how many pieces of the work are finished."""
        ends = (".npz", ".npy")
        return sum(name.endswith(ends) for _, _, names in os.walk(self.work) for name in names)

    def make_folders(self) -> None:
        for folder in (self.work / "fit", self.work / "render"):
            make_folder(folder)

    def forget_after_fit(self, blocks: list[Block]) -> None:
        """Drop the fits of some blocks, and everything that was made from them."""
        for block in blocks:
            self.fit(block).unlink(missing_ok=True)
            self.maps(block).unlink(missing_ok=True)
            self.pixels(block).unlink(missing_ok=True)
        self.fields.unlink(missing_ok=True)
        shutil.rmtree(self.work / "render", ignore_errors=True)
        self.make_folders()

    def forget_after_plan(self) -> None:
        """Drop everything but the plan."""
        self.prior.unlink(missing_ok=True)
        self.fields.unlink(missing_ok=True)
        for folder in (self.work / "fit", self.work / "render", self.work / "pixels"):
            shutil.rmtree(folder, ignore_errors=True)
        self.make_folders()

    def forget_failures(self) -> None:
        """Give every block another chance."""
        shutil.rmtree(self.work / "failed", ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
