"""What a run keeps in memory and on disk, from what a sample of its tiles left there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from wsi_pgdips.pipeline.block import SlideJob
from wsi_pgdips.pipeline.record import used_here
from wsi_pgdips.pipeline.sample import block_area, tiles_to_fit, tissue_mass
from wsi_pgdips.stages.context import Context

BATCH = 4  # tiles that a GPU is tried with
MAPPED = 12  # blocks whose kept pixels are open at a time
MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """Of a run whose sample has been rendered.

    Attributes:
        context, sampled: the slide, and it with the sample's tiles alone planned.
        job: of the sample. preset: of the run. lanes: blocks at a time in a worker.
        output: folder that the sample was written to.
    """

    context: Context
    sampled: Context
    job: SlideJob
    preset: str
    lanes: int
    output: Path

    def disk(self) -> tuple[float, float]:
        """Bytes of the finished layers, and of the output before what is handed on goes."""
        from wsi_pgdips.pipeline.kept_pixels import pixels_bytes

        sizes: dict[str, int] = defaultdict(int)
        for path in self.output.rglob("*"):
            if path.is_file():
                sizes[_kind(path.relative_to(self.output).parts)] += path.stat().st_size
        tiles, context = self.context.n_tiles, self.context
        layers = sizes["rest"] + sizes["data"] * tissue_mass(context) / tissue_mass(self.sampled)
        handed_on = sizes["work"] + sizes["tiles"] * tiles / self.sampled.n_tiles
        if self.job.keep_pixels:
            handed_on += pixels_bytes(context.grid, tiles_to_fit(context))
        return layers, layers + handed_on + tiles * self._map_bytes()

    def vram_mb(self) -> float:
        if self.job.device == "cpu":
            return 0.0
        import torch

        from wsi_pgdips.stages.fit import batch_for

        seen = used_here().peak_vram_mb
        if self.preset != "paper":
            return seen
        most, free = max(len(p.fit) for p in self.context.plans), torch.cuda.mem_get_info
        batch = self.job.batch or batch_for(*free(self.job.device), self.context.stains.n)
        return seen * min(batch, most) / BATCH

    def _map_bytes(self) -> int:
        """Bytes of the map of a tile's own networks."""
        from wsi_pgdips.solver.presets import HALO

        side = self.context.grid.tile + 2 * HALO
        return self.context.stains.n * side**2 * 2 if self.preset == "paper" else 0

    def unseen_mb(self, layers: float) -> float:
        """MiB of a run beyond those of the sample, which has one full block at a time.

        Args:
            layers: bytes of them all.
        """
        from wsi_pgdips.pipeline.kept_pixels import pixels_bytes

        context, plans, lanes = self.context, self.context.plans, self.lanes
        extra = lanes * max(len(p.render) for p in plans) * self._map_bytes()
        if self.job.keep_pixels:  # their files are read as memory
            most = sum(sorted(len(p.fit) for p in plans)[-MAPPED:]) - tiles_to_fit(self.sampled)
            extra += pixels_bytes(context.grid, max(most, 0))
        # codes and their coarser levels, masks; a shard, put together from chunks
        pixel, mass = 2 * context.stains.n * 4 / 3 + 3, 2 * layers / tissue_mass(context)
        held = (block_area(context, p) * pixel + tissue_mass(context, p) * mass for p in plans)
        return (extra + sum(sorted(held, reverse=True)[1:lanes])) / MIB


def _kind(parts: tuple[str, ...]) -> str:
    """What a file of the output grows with."""
    if parts[0] == "work":
        return {"fit": "tiles", "render": "tiles", "pixels": "pixels"}.get(parts[1], "work")
    layers = parts[0].isdigit() or parts[0] in ("labels", "qc", "residual")
    return "data" if layers and parts[-1] != "zarr.json" else "rest"
