"""Blocks of tiles: which tiles are planned, and reading them ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.records import ByteArray
from wsi_pgdips.tiles.blocks import plan_blocks, stream_tiles
from wsi_pgdips.tiles.tissue_map import TissueMap


def scattered(shape: tuple[int, int], points: list[tuple[float, float]], scale: float) -> TissueMap:
    size = -(-shape[0] // int(scale)), -(-shape[1] // int(scale))
    core = np.zeros(size, bool)
    for y, x in points:
        core[int(y * (size[0] - 1)), int(x * (size[1] - 1))] = True
    mask = core.copy()
    mask[1:] |= core[:-1]
    mask[:, 1:] |= core[:, :-1]
    return TissueMap(mask, core, ~mask, np.zeros((*size, 3), np.float32), scale, shape)


unit = st.floats(0, 1)


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.lists(st.tuples(unit, unit), max_size=8),
    st.sampled_from([(256, 1024), (512, 1024), (1024, 2048)]),
    st.sampled_from([0.0, 0.001, 0.05, 1.0]),
)
def test_every_tile_touching_the_mask_is_planned_exactly_once(shape, points, sides, least):
    grid = OutputGrid(shape, 1.0, 0.5, *sides)
    tissue = scattered(shape, points, 16.0)
    plans = plan_blocks(grid, tissue, least)
    planned = [t for plan in plans for t in plan.render]
    touching = {
        (ty, tx)
        for ty in range(grid.tile_grid[0])
        for tx in range(grid.tile_grid[1])
        if tissue.window((r := grid.tile_region(ty, tx)).y, r.x, r.h, r.w).any()
    }
    assert len(planned) == len(set(planned))
    assert set(planned) == touching
    for plan in plans:
        owned = set(grid.tiles_of_block(plan.by, plan.bx))
        assert plan.render
        assert set(plan.render) <= owned
        for tile, fraction in zip(plan.render, plan.fraction, strict=True):
            assert (tile in plan.fit) == (fraction > 0 and fraction >= least)
            assert fraction == tissue.fraction(grid.tile_region(*tile))
    blocks = [(plan.by, plan.bx) for plan in plans]
    assert blocks == sorted(set(blocks))  # raster order


def test_a_tile_reached_by_dilation_alone_is_rendered_but_never_fitted():
    grid = OutputGrid((512, 512), 1.0, 0.5, 256, 1024)
    core = np.zeros((32, 32), bool)
    core[:, :16] = True
    mask = core.copy()
    mask[:, 16] = True
    tissue = TissueMap(mask, core, ~mask, np.zeros((32, 32, 3), np.float32), 16.0, (512, 512))
    (plan,) = plan_blocks(grid, tissue, 0.0)
    assert plan.render == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert plan.fit == ((0, 0), (1, 0))
    assert plan.fraction == (1.0, 0.0, 1.0, 0.0)


class SlowSource:
    """Pixels that name their region, after a delay of its own; some regions cannot be read."""

    def __init__(self, delays: list[float], bad: frozenset[int] = frozenset()) -> None:
        self.delays, self.bad = delays, bad
        self.lock = threading.Lock()
        self.begun: list[int] = []
        self.reading = 0
        self.most_reading = 0

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        with self.lock:
            self.begun.append(y)
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        time.sleep(self.delays[y % len(self.delays)])
        with self.lock:
            self.reading -= 1
        if y in self.bad:
            raise SlideError("cannot be read", where=y)
        return np.full((h, w, 3), y, np.uint8)


class Regions:
    """Regions that count how many were asked for."""

    def __init__(self, n: int) -> None:
        self.n, self.taken = n, 0

    def __iter__(self) -> Iterator[Region]:
        for i in range(self.n):
            self.taken += 1
            yield Region(i, 0, 2, 3)


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([0.0, 0.001, 0.004]), min_size=1, max_size=9),
    st.integers(0, 30),
    st.integers(1, 5),
    st.integers(1, 7),
    st.frozensets(st.integers(0, 29), max_size=5),
)
def test_results_keep_the_order_of_the_input_and_stay_bounded(delays, n, threads, depth, bad):
    source, regions = SlowSource(delays, bad), Regions(n)
    delivered = 0
    for region, pixels in stream_tiles(source, regions, threads=threads, depth=depth):
        assert region == Region(delivered, 0, 2, 3)
        delivered += 1
        assert regions.taken - delivered <= depth
        if region.y in bad:
            assert isinstance(pixels, SlideError)
        else:
            assert (pixels == region.y).all()
            assert pixels.shape == (2, 3, 3)
    assert delivered == n
    assert source.most_reading <= min(threads, depth)


def test_reads_run_ahead_of_the_consumer():
    source = SlowSource([0.0])
    stream = stream_tiles(source, Regions(20), threads=2, depth=4)
    next(stream)
    deadline = time.monotonic() + 20
    while len(source.begun) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(source.begun) == [0, 1, 2, 3, 4]  # one handed out, four ahead
    stream.close()


def test_an_early_end_waits_for_running_reads_and_drops_the_rest():
    before = set(threading.enumerate())
    source = SlowSource([0.02])
    stream = stream_tiles(source, Regions(1000), threads=2, depth=50)
    next(stream)
    stream.close()
    assert source.reading == 0
    assert len(source.begun) < 50
    assert set(threading.enumerate()) <= before
    with pytest.raises(StopIteration):
        next(stream)


def test_a_consumer_that_raises_does_not_hang():
    source = SlowSource([0.005])

    def consume() -> None:
        for region, _ in stream_tiles(source, Regions(100), threads=3, depth=8):
            if region.y == 3:
                raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        consume()
    assert len(source.begun) < 20


def test_any_exception_of_a_tile_is_a_value():
    class Broken(SlowSource):
        def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
            raise OSError("the disk is gone")

    results = [p for _, p in stream_tiles(Broken([0.0]), Regions(3), threads=1, depth=1)]
    assert [type(p) for p in results] == [OSError] * 3


@pytest.mark.parametrize(("threads", "depth"), [(0, 1), (1, 0), (-2, 3)])
def test_sizes_are_checked_at_the_call(threads, depth):
    with pytest.raises(SettingsError, match="at least 1"):
        stream_tiles(SlowSource([0.0]), Regions(1), threads=threads, depth=depth)
