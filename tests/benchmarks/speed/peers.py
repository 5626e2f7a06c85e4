"""tiatoolbox's stain normalisation of the same tiles: read, fit and transform, write.

Each tile is read from the slide, normalised on its own as tiatoolbox's users do it, and written to
a Zarr array with our codec, by as many processes as there are cores, started and imported before
the clock runs.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.geometry import CHUNK
from wsi_pgdips.layers.store import zarr_session
from wsi_pgdips.machine import quiet_threads, usable_cpus
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.reader import open_source

PREFIX = "tiatoolbox-"
PEERS = tuple(PREFIX + name for name in ("macenko", "reinhard", "vahadane"))
Tiles = list[tuple[int, int]]


def peer_time(method: str, slide: Path, tiles: Tiles) -> tuple[float, float]:
    """Wall and CPU seconds that one of ``PEERS`` takes for the tiles of a slide.

    Args:
        tiles: (ty, tx).
    """
    workers = usable_cpus()
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-speed-") as folder:
        _make_array(Path(folder), slide)
        # neighbours share decoded tiles of the file: each process takes a run of them
        parts = [[tuple(map(int, t)) for t in part] for part in np.array_split(tiles, workers * 4)]
        with ProcessPoolExecutor(
            workers, get_context("spawn"), _start, (method, slide, tiles, folder)
        ) as pool:
            list(pool.map(time.sleep, [1.0] * workers))  # until all have started
            start = time.perf_counter()
            busy = list(pool.map(_normalise, parts))
            wall = time.perf_counter() - start
    return wall, sum(busy)


def _make_array(folder: Path, slide: Path) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    with contextlib.closing(open_source(slide)) as source:
        shape = source.grid.shape
    zarr.open_group(folder, mode="a").create_array(
        "rgb",
        shape=(*shape, 3),
        dtype="uint8",
        chunks=(CHUNK, CHUNK, 3),
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    )


_STATE: dict[str, Any] = {}


def _start(method: str, slide: Path, tiles: Tiles, folder: str) -> None:
    import zarr
    from tiatoolbox.tools.stainnorm import get_normalizer

    quiet_threads()
    logging.disable(logging.WARNING)
    source = open_source(slide)
    normaliser = get_normalizer(method.removeprefix(PREFIX))
    r = source.grid.tile_region(*tiles[len(tiles) // 2])
    normaliser.fit(source.read(r.y, r.x, r.h, r.w))
    array: Any = zarr.open_group(folder, mode="r+")["rgb"]
    _STATE.update(source=source, normaliser=normaliser, array=array, folder=Path(folder))


def _normalise(tiles: Tiles) -> float:
    """Normalise and write some tiles; the CPU seconds it took."""
    start = time.process_time()
    source, array = _STATE["source"], _STATE["array"]
    with zarr_session(_STATE["folder"]):
        for tile in tiles:
            r = source.grid.tile_region(*tile)
            rgb: ByteArray = source.read(r.y, r.x, r.h, r.w)
            try:
                out = _STATE["normaliser"].transform(rgb.copy())
            except (ValueError, np.linalg.LinAlgError):  # too little of anything
                out = rgb
            array[r.slices] = out
    return time.process_time() - start
