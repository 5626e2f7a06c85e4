"""The speed of reading a normalised slide beside OpenSlide, and its fidelity to the slide."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.looks.features import spread
from benchmarks.records import Records
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.normalized_slide import SELF, NormalizedSlide
from wsi_pgdips.pipeline.slide import deconvolve_slide
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.reader import open_source

READING, FAITHFUL = "reading", "faithful"  # kinds of records
IDENTICAL = 999.0  # stands for the infinite PSNR of equal bytes
SIDE = 512
RASTER, RANDOM = "raster", "random"
OPENSLIDE_MS, NORMALIZED_MS, RATIO = "openslide_ms", "normalized_ms", "over_openslide"
PSNR, LAYERS_PSNR = "self_psnr_db", "layers_psnr_db"
MOST_READS = 64  # of an order, in each round
ROUNDS = 3
WINDOWS = 16  # of a level, or of layers, whose pixels are compared
Place = tuple[int, int]  # (x, y), as OpenSlide has it


def make_layers(slide: Path, stains: str, output: Path, mpp: float) -> Layers:
    """Layers by preset ``fast``, with the settings of a plain run."""
    deconvolve_slide(slide, output, preset="fast", stains=stains, mpp=mpp)
    return open_layers(output)


def measure_reading(
    records: Records, slide: Path, layers: Layers, reference: str, *, most: int = MOST_READS
) -> None:
    """Median milliseconds of a read of 512 x 512 at level 0, and their ratio, in both orders.

    OpenSlide and the normalised slide read the same places in turn, one right after the other, each
    with a fresh handle a round; which one comes first alternates, since the second finds the file
    in the system's memory. One thread. Places are where there is tissue.
    """
    import openslide
    from threadpoolctl import threadpool_limits

    raster, scattered = _places(layers, most)
    for order, places in ((RASTER, raster), (RANDOM, scattered)):
        took: tuple[list[float], list[float]] = ([], [])
        with threadpool_limits(1):
            for turn in range(ROUNDS):
                with ExitStack() as stack:
                    native = stack.enter_context(closing(openslide.OpenSlide(slide)))
                    ours = stack.enter_context(closing(NormalizedSlide(slide, layers, reference)))
                    for k, place in enumerate(places):
                        for which in (0, 1) if (k + turn) % 2 else (1, 0):
                            start = time.perf_counter()
                            (native, ours)[which].read_region(place, 0, (SIDE, SIDE))
                            took[which].append(1e3 * (time.perf_counter() - start))
        plain, changed = (median(times) for times in took)
        found = {OPENSLIDE_MS: plain, NORMALIZED_MS: changed, RATIO: changed / plain}
        own = records.at(kind=READING, case=slide.name, method=order, part="level 0")
        own.add({**found, "reads": len(places)})


def measure_self(records: Records, slide: Path, layers: Layers) -> None:
    """PSNR, dB, of the slide normalised to itself, at every level; equal bytes: ``IDENTICAL``."""
    import openslide

    same = NormalizedSlide(slide, layers, SELF)
    with closing(openslide.OpenSlide(slide)) as own, closing(same):
        for level, (width, height) in enumerate(own.level_dimensions):
            scale, pairs = own.level_downsamples[level], []
            for y, x in _spread(height, width):
                place = (round(x * scale), round(y * scale))
                read = (s.read_region(place, level, (SIDE, SIDE)) for s in (own, same))
                pairs.append([np.asarray(image)[..., :3] for image in read])
            where = {"kind": FAITHFUL, "case": slide.name, "method": SELF}
            records.add({PSNR: _psnr(pairs)}, part=f"level {level}", **where)


def measure_layers(records: Records, slide: Path, layers: Layers) -> None:
    """PSNR, dB, of tissue pixels made of the layers alone, on their own grid, against the slide."""
    grid = layers.grid
    source = open_source(slide, mpp=grid.mpp, mpp_source=grid.mpp / grid.factor)
    alone, tissue, pairs = NormalizedSlide(None, layers, SELF), layers.tissue(), []
    with closing(source):
        for y, x in _spread(*grid.shape):
            h, w = min(SIDE, grid.shape[0] - y), min(SIDE, grid.shape[1] - x)
            mask = np.asarray(tissue[y : y + h, x : x + w].compute(scheduler="synchronous"), bool)
            made = np.asarray(alone.read_region((x, y), 0, (w, h)))[..., :3]
            pairs.append([source.read(y, x, h, w)[mask], made[mask]])
    found = {LAYERS_PSNR: _psnr(pairs)}
    records.add(found, kind=FAITHFUL, case=slide.name, method="layers alone")


def _places(layers: Layers, most: int) -> tuple[list[Place], list[Place]]:
    """Level-0 places on tissue: consecutive ones of the raster, and others at random."""
    grid = layers.grid
    height, width = grid.shape_l0
    level = min(4, grid.n_levels - 1)
    mask = np.asarray(layers.tissue(level).compute(scheduler="synchronous"), bool)
    cell = grid.factor * 2**level

    def on_tissue(x: int, y: int) -> bool:
        return bool(mask[int((y + SIDE / 2) / cell), int((x + SIDE / 2) / cell)])

    every = [
        (x, y)
        for y in range(0, height - SIDE + 1, SIDE)
        for x in range(0, width - SIDE + 1, SIDE)
        if on_tissue(x, y)
    ]
    start = max((len(every) - most) // 2, 0)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, (width - SIDE + 1, height - SIDE + 1), (100 * most, 2))
    scattered = [(int(x), int(y)) for x, y in drawn if on_tissue(int(x), int(y))]
    return every[start : start + most], scattered[:most]


def _spread(height: int, width: int) -> list[tuple[int, int]]:
    """(y, x) of up to 16 windows, spread evenly over those that tile the area."""
    every = [(y, x) for y in range(0, height, SIDE) for x in range(0, width, SIDE)]
    return spread(every, WINDOWS)


def _psnr(pairs: Iterable[Sequence[ByteArray]]) -> float:
    """PSNR of pairs of pictures together, dB; NaN where there is no pixel."""
    off = np.concatenate([(a.astype(np.int16) - b).ravel() for a, b in pairs])
    if off.size == 0:
        return float("nan")
    error = np.square(off, dtype=np.float64).mean()
    return IDENTICAL if error == 0 else float(10 * np.log10(255.0**2 / error))
