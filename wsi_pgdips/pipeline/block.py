"""The job of a run, and what one process does for one block of it, in this process or a worker.

Operators run in one thread each, and tiles are shared among our own threads instead: no sum then
depends on how many threads or workers there are, and results are the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.disk import load_arrays, save_arrays
from wsi_pgdips.layers.store import write_block
from wsi_pgdips.machine import quiet_machine
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline import stage_files
from wsi_pgdips.pipeline.kept_pixels import KeptPixels, keeping_pixels
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.pipeline.record import TileFaults
from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior, TileFlag
from wsi_pgdips.slide.reader import open_slide
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.stages import fit as fit_stage
from wsi_pgdips.stages import render as render_stage
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.seams import pack

AUTO_BATCH = 0
OnTile = Callable[[], None]
# one block is computed at a time, by all threads; another may be written meanwhile
_COMPUTING = threading.Lock()
_KEPT = threading.local()


@dataclass(frozen=True)
class SlideJob:
    """A slide and how to work on it, as a worker process gets it: small, picklable, hashable.

    Attributes:
        batch: tiles that a GPU solves at once, ``AUTO_BATCH`` for as many as its free memory holds.
        keep_pixels: whether ``fit`` keeps the decoded pixels for ``render``.
    """

    slide: str
    output: str
    settings: ScientificSettings
    device: str
    threads: int
    batch: int
    keep_pixels: bool = False

    @property
    def name(self) -> str:
        """Name of the slide's file."""
        return Path(self.slide).name

    @property
    def ledger(self) -> Ledger:
        return Ledger(Path(self.output))

    def open_source(self) -> PyramidSource:
        return open_slide(Path(self.slide), self.settings)

    def context(self) -> Context:
        """Return the planned slide, opened once in a process."""
        return _opened(self, self.ledger.plan.stat().st_mtime_ns)

    def prior(self) -> SlidePrior:
        """Return the slide's prior, loaded once in a process."""
        return _prior(self.ledger.prior, self.ledger.prior.stat().st_mtime_ns)

    def fields(self) -> tuple[Fields, FloatArray]:
        """Return the fields and the slide's stain matrix, loaded once in a process."""
        return _fields(self.ledger.fields, self.ledger.fields.stat().st_mtime_ns)

    def pixels(self) -> KeptPixels:
        """Return the slide's pixels for ``render``: kept ones, and the others from the slide."""
        return _pixels(self, self.ledger.fields.stat().st_mtime_ns)


# a process works on one slide, or on one after another; the time stamp of the file is in the key
@functools.lru_cache(maxsize=2)
def _opened(job: SlideJob, _stamp: int) -> Context:
    stains = load_stains(job.settings.stains, job.settings.stain_vectors)
    return stage_files.load_plan(job.open_source(), stains, job.settings, job.ledger.plan)


@functools.lru_cache(maxsize=2)
def _prior(path: Path, _stamp: int) -> SlidePrior:
    return stage_files.load_prior(path)


@functools.lru_cache(maxsize=2)
def _fields(path: Path, _stamp: int) -> tuple[Fields, FloatArray]:
    return stage_files.load_fields(path)


@functools.lru_cache(maxsize=2)
def _pixels(job: SlideJob, _stamp: int) -> KeptPixels:
    return KeptPixels.of_run(job.context(), job.ledger)


def forget() -> None:
    """Drop what this process keeps of slides: their files, priors, fields and pixels."""
    for kept in (_opened, _prior, _fields, _pixels):
        kept.cache_clear()


@dataclass(frozen=True)
class BlockReport:
    """A finished block; ``failed`` are (ty, tx) of tiles that could not be read or fitted."""

    block: Block
    tiles: int
    failed: frozenset[tuple[int, int]]


def device_of(job: SlideJob) -> tuple[str, str]:
    """Return the device that does the work, and its maker's name for it."""
    if job.device.startswith("cuda"):
        return job.device, str(torch.cuda.get_device_name(job.device))
    return job.device, platform.processor() or platform.machine()


@quiet_machine()
def calibrate(job: SlideJob, threads: int, on_step: OnTile = lambda: None) -> None:
    """Stage ``calibrate``: write the slide's prior, computed on the device of the job."""
    prior = fit_stage.calibrate(job.context(), torch.device(job.device), threads, on_step)
    stage_files.save_prior(prior, job.ledger.prior)


@quiet_machine()
def fit(job: SlideJob, block: Block, on_tile: OnTile = lambda: None) -> BlockReport:
    """Stage ``fit`` of one block: write its file, unless it is there."""
    context, path = job.context(), job.ledger.fit(block)
    plan = context.plan(block)
    if path.exists():
        result = stage_files.load_fit(path, statistics=False)
        for _ in plan.render:
            on_tile()
    else:
        faults = TileFaults("fit")
        with _COMPUTING, contextlib.ExitStack() as stack:
            keep = None
            if job.keep_pixels:
                file = job.ledger.pixels(block)
                keep = stack.enter_context(keeping_pixels(file, context.grid, plan.render))
            result = fit_stage.fit_block(
                context,
                job.prior(),
                plan,
                device=torch.device(job.device),
                threads=job.threads,
                batch=job.batch,
                on_tile=on_tile,
                on_fault=faults.add,
                keep=keep,
            )
        stage_files.save_fit(result, path, job.ledger.maps(block), faults)
    return BlockReport(block, len(result.flags), lost_in_fit(result))


@quiet_machine()
def render(job: SlideJob, block: Block, on_tile: OnTile = lambda: None) -> BlockReport:
    """Stage ``render`` of one block: write its layers, and last its file in ``work/render``."""
    context, ledger = job.context(), job.ledger
    plan = context.plan(block)
    if is_rendered(ledger, block):
        for _ in plan.render:
            on_tile()
        return BlockReport(block, len(plan.render), lost_in_render(ledger, block))
    faults = TileFaults("render")
    fields, slide_matrix = job.fields()
    with _COMPUTING:
        rendered = render_stage.render_block(
            context,
            job.prior(),
            fields,
            slide_matrix,
            plan,
            stage_files.MapFiles(ledger, context.plans),
            job.pixels(),
            device=job.device,
            threads=job.threads,
            on_tile=on_tile,
            on_fault=faults.add,
            into=_block_of_codes(context.stains.n, context.grid.block),
        )
    checksums = write_block(
        ledger.output,
        context.grid,
        *block,
        codes=rendered.codes,
        tissue=rendered.tissue,
        artifact=rendered.artifact,
        residual_rms=rendered.residual_rms,
        residual_od=rendered.residual_od,
    )
    arrays: dict[str, npt.NDArray[Any]] = {
        "failed": np.array(rendered.failed, np.int32).reshape(-1, 2),
        "alone": np.array(rendered.alone, np.int32).reshape(-1, 2),
        "files": np.array(list(checksums), dtype=np.str_),
        "sha256": np.array(list(checksums.values()), dtype=np.str_),
        **rendered.sums,
        "lattice": rendered.lattice,
        **stage_files.faults_array(faults),
    }
    save_arrays(ledger.render(block), **arrays, **pack(rendered.strips))
    return BlockReport(block, len(plan.render), frozenset(rendered.failed + rendered.alone))


def is_rendered(ledger: Ledger, block: Block) -> bool:
    """Return whether a block is rendered: its file is there, and so is each of its shards."""
    done = ledger.render(block)
    if not done.exists():
        return False
    return all((ledger.output / f).exists() for f in load_arrays(done, ("files",))["files"])


def lost_in_fit(fit: BlockFit) -> frozenset[tuple[int, int]]:
    """Return (ty, tx) of the tiles that could not be read or fitted."""
    failed = (fit.flags & int(TileFlag.FAILED | TileFlag.READ_FAILED)) != 0
    return _tiles(fit.index[failed])


def lost_in_render(ledger: Ledger, block: Block) -> frozenset[tuple[int, int]]:
    """Return (ty, tx) of a block's tiles that could not be read, or not with their surroundings."""
    a = load_arrays(ledger.render(block), ("failed", "alone"))
    return _tiles(a["failed"]) | _tiles(a["alone"])


def _tiles(index: npt.NDArray[np.int32]) -> frozenset[tuple[int, int]]:
    return frozenset((int(ty), int(tx)) for ty, tx in index)


def _block_of_codes(stains: int, side: int) -> npt.NDArray[np.uint16]:
    """(N * side * side,) memory of the calling thread, since new memory takes longer than its use.

    It is free again when the block has been written: a thread writes the block that it computed.
    """
    size = stains * side**2
    kept = getattr(_KEPT, "codes", None)
    if kept is None or len(kept) < size:
        kept = _KEPT.codes = np.empty(size, np.uint16)
    return np.asarray(kept[:size])
