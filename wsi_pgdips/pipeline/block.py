"""What one process does for one block; called inline or by a dask worker.

Intra-operator threads are held at one and tiles are shared among our own threads instead: no sum
then depends on how many threads or workers there are, and results are the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_pgdips.machine import quiet_threads
from wsi_pgdips.pipeline.kept_pixels import KeptPixels, PixelWriter
from wsi_pgdips.pipeline.ledger import Block, Ledger, load_arrays, save_arrays
from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior, TileFlag
from wsi_pgdips.stages.context import SlideJob, forget_contexts

# one block is computed at a time, by all threads; another may be written meanwhile
_COMPUTING = threading.Lock()
_KEPT = threading.local()
_OPEN_MAPS = 12  # blocks whose maps stay mapped: a block and its neighbours


@dataclass(frozen=True)
class BlockReport:
    """What a finished block says to the coordinator; ``failed`` are (ty, tx) of tiles."""

    block: Block
    tiles: int
    failed: frozenset[tuple[int, int]]


def forget() -> None:
    """Let go of what this process keeps of slides: their files, fields and pixels."""
    for kept in (_prior, _fields, _kept_pixels):
        kept.cache_clear()
    forget_contexts()


def calibrate(job: SlideJob, threads: int, on_step: Callable[[], None] = lambda: None) -> None:
    """Stage ``calibrate``: the slide's prior, on the device of the job."""
    import torch

    from wsi_pgdips.pipeline import fit_files
    from wsi_pgdips.stages import fit as fitting

    quiet_threads()
    prior = fitting.calibrate(job.context(), torch.device(job.device), threads, on_step)
    fit_files.save_prior(prior, job.ledger.prior)


def device_of(job: SlideJob) -> tuple[str, str]:
    """The device that does the work, and what its maker calls it."""
    import torch

    if job.device.startswith("cuda"):
        return job.device, str(torch.cuda.get_device_name(job.device))
    return job.device, platform.processor() or platform.machine()


def fit(job: SlideJob, block: Block, on_tile: Callable[[], None] = lambda: None) -> BlockReport:
    """Stage ``fit`` of one block; does nothing where its file is there."""
    import torch

    from wsi_pgdips.pipeline import fit_files
    from wsi_pgdips.stages import fit as fitting

    quiet_threads()
    context = job.context()
    plan = context.plan(block)
    ledger = job.ledger
    if ledger.fit(block).exists():
        result = fit_files.load_fit(ledger.fit(block), statistics=False)
        for _ in plan.render:
            on_tile()
    else:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_COMPUTING)
            keep = None
            if job.keep_pixels:
                path = ledger.pixels(block)
                keep = stack.enter_context(PixelWriter(path, context.grid, plan.render)).put
            result = fitting.fit_block(
                context,
                _prior(str(ledger.prior), ledger.prior.stat().st_mtime_ns),
                plan,
                device=torch.device(job.device),
                threads=job.threads,
                batch=job.batch,
                on_tile=on_tile,
                keep=keep,
            )
        fit_files.save_fit(result, ledger.fit(block), ledger.maps(block))
    return BlockReport(block, len(result.flags), lost_in_fit(result))


def render(job: SlideJob, block: Block, on_tile: Callable[[], None] = lambda: None) -> BlockReport:
    """Stage ``render`` of one block; its file in ``work/render`` is written last."""
    from wsi_pgdips.layers.store import write_block
    from wsi_pgdips.stages import render as rendering
    from wsi_pgdips.stages.strips import pack

    quiet_threads()
    context = job.context()
    plan = context.plan(block)
    ledger = job.ledger
    if is_rendered(ledger, block):
        for _ in plan.render:
            on_tile()
        return BlockReport(block, len(plan.render), lost_in_render(ledger, block))
    stamp = ledger.fields.stat().st_mtime_ns
    fields, slide_matrix = _fields(str(ledger.fields), stamp)
    with _COMPUTING:
        rendered = rendering.render_block(
            context,
            _prior(str(ledger.prior), ledger.prior.stat().st_mtime_ns),
            fields,
            slide_matrix,
            plan,
            MapReader(job),
            _kept_pixels(job, stamp),
            device=job.device,
            threads=job.threads,
            on_tile=on_tile,
            into=_block_of_codes(context.stains.n, context.grid.block),
        )
    checksums = write_block(
        ledger.output,
        context.grid,
        *block,
        codes=rendered.codes,
        tissue=rendered.tissue,
        residual_rms=rendered.residual_rms,
        residual_od=rendered.residual_od,
    )
    arrays: dict[str, npt.ArrayLike] = {
        "failed": np.array(rendered.failed, np.int32).reshape(-1, 2),
        "alone": np.array(rendered.alone, np.int32).reshape(-1, 2),
        "files": np.array(list(checksums), dtype=np.str_),
        "sha256": np.array(list(checksums.values()), dtype=np.str_),
    }
    save_arrays(ledger.render(block), **arrays, **pack(rendered.strips, context.grid.tile))
    return BlockReport(block, len(plan.render), frozenset(rendered.failed + rendered.alone))


def is_rendered(ledger: Ledger, block: Block) -> bool:
    """Whether a block is done: said to be, and each of its shards is there."""
    done = ledger.render(block)
    if not done.exists():
        return False
    return all((ledger.output / f).exists() for f in load_arrays(done, ("files",))["files"])


def lost_in_fit(fit: BlockFit) -> frozenset[tuple[int, int]]:
    """(ty, tx) of the tiles that could not be read or fitted."""
    failed = (fit.flags & int(TileFlag.FAILED | TileFlag.READ_FAILED)) != 0
    return _tiles(fit.index[failed])


def lost_in_render(ledger: Ledger, block: Block) -> frozenset[tuple[int, int]]:
    """(ty, tx) of the tiles of a block that could not be read, or only they themselves."""
    a = load_arrays(ledger.render(block), ("failed", "alone"))
    return _tiles(a["failed"]) | _tiles(a["alone"])


def _tiles(index: npt.NDArray[np.int32]) -> frozenset[tuple[int, int]]:
    return frozenset((int(ty), int(tx)) for ty, tx in index)


def _block_of_codes(stains: int, side: int) -> npt.NDArray[np.uint16]:
    """(N * side * side,) of the calling thread: to fetch as much anew takes longer than to fill it.

    It may be used again when the block has been written, as a thread writes what it computed.
    """
    size = stains * side**2
    kept = getattr(_KEPT, "codes", None)
    if kept is None or len(kept) < size:
        kept = _KEPT.codes = np.empty(size, np.uint16)
    return np.asarray(kept[:size])


class MapReader:
    """Network maps of any tile, mapped from the files of the blocks that own them."""

    def __init__(self, job: SlideJob) -> None:
        self._job = job
        self._context = job.context()
        self._rows = {
            tile: ((p.by, p.bx), i) for p in self._context.plans for i, tile in enumerate(p.render)
        }
        self._open: OrderedDict[Block, npt.NDArray[np.float16] | None] = OrderedDict()

    def __call__(self, tile: tuple[int, int]) -> npt.NDArray[np.float16] | None:
        if tile not in self._rows:
            return None
        block, row = self._rows[tile]
        maps = self._block(block)
        return None if maps is None else np.asarray(maps[row])

    def _block(self, block: Block) -> npt.NDArray[np.float16] | None:
        opened = self._open.get(block)
        if opened is None:
            path = self._job.ledger.maps(block)
            opened = np.load(path, mmap_mode="r") if path.exists() else None
            self._open[block] = opened
            while len(self._open) > _OPEN_MAPS:
                try:
                    self._open.popitem(last=False)
                except KeyError:  # another thread was faster
                    break
        return opened


@functools.lru_cache(maxsize=2)
def _prior(path: str, _stamp: int) -> SlidePrior:
    from pathlib import Path

    from wsi_pgdips.pipeline.fit_files import load_prior

    return load_prior(Path(path))


@functools.lru_cache(maxsize=2)
def _fields(path: str, _stamp: int) -> tuple[Fields, FloatArray]:
    from pathlib import Path

    from wsi_pgdips.stages.blend import load_fields

    return load_fields(Path(path))


@functools.lru_cache(maxsize=2)
def _kept_pixels(job: SlideJob, _stamp: int) -> KeptPixels:
    return KeptPixels.of_run(job.context(), job.ledger)
