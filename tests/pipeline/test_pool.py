"""Who works on what: devices among workers, blocks in lanes, tiles in threads, batches that fit."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cheap_runs import FAST, PAPER, Slide, differing
from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.machine import in_threads, usable_cpus
from wsi_pgdips.pipeline import pool
from wsi_pgdips.pipeline.block import BlockReport, SlideJob
from wsi_pgdips.pipeline.dask_workers import cpu_shares
from wsi_pgdips.pipeline.ledger import Block
from wsi_pgdips.pipeline.pool import local_pool
from wsi_pgdips.pipeline.record import Usage, used_by_all, used_here
from wsi_pgdips.stages import fit as fitting

JOB = SlideJob("a.svs", "b.ome.zarr", ScientificSettings(), "cuda", 1, 0)


def record_device(job: SlideJob, block: Block, on_tile: Any = None) -> BlockReport:
    """A block's work that says on which device it was to be done."""
    time.sleep(0.2)  # long enough that no worker takes them all
    return BlockReport(block, 1, frozenset({(int(job.device.rpartition(":")[2]), 0)}))


def test_each_worker_has_a_device_of_its_own() -> None:
    workers = local_pool(2, ("fake:0", "fake:1"))
    try:
        list(workers.map(record_device, JOB, [(1, 0), (1, 1)], lambda: None))  # imports take longer
        done = dict(workers.map(record_device, JOB, [(0, i) for i in range(6)], lambda: None))
    finally:
        workers.close()
    devices = [next(iter(report.failed))[0] for report in done.values()]
    assert sorted(devices) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("says", "cpus"),
    [
        ({}, 16),
        ({"CPUS_ON_NODE": "4", "CPUS_PER_TASK": "4"}, 4),
        ({"CPUS_ON_NODE": "12", "CPUS_PER_TASK": "1"}, 12),  # salloc -n 12 -c 1
        ({"CPUS_ON_NODE": "12", "CPUS_PER_TASK": "3", "STEP_NUM_TASKS": "1"}, 12),
        ({"CPUS_ON_NODE": "12", "CPUS_PER_TASK": "3", "STEP_NUM_TASKS": "4"}, 3),  # srun -n 4
        ({"CPUS_ON_NODE": "12", "STEP_NUM_TASKS": "4"}, 16),
        ({"CPUS_ON_NODE": "64"}, 16),
        ({"CPUS_ON_NODE": "none"}, 16),
    ],
)
def test_who_is_alone_in_a_job_has_its_cpus(
    says: dict[str, str], cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CPUS_ON_NODE", "CPUS_PER_TASK", "STEP_NUM_TASKS"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, text in says.items():
        monkeypatch.setenv(f"SLURM_{name}", text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usable_cpus() == cpus


def allowed_cpus(job: SlideJob, block: Block, on_tile: Any = None) -> BlockReport:
    """A block's work that says which CPUs its thread may use."""
    time.sleep(0.2)
    return BlockReport(block, 1, frozenset((cpu, 0) for cpu in os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="CPUs cannot be chosen here")
def test_each_worker_of_a_full_machine_has_cpus_of_its_own() -> None:
    cpus = usable_cpus()
    shares = cpu_shares(cpus, 1)
    assert frozenset().union(*shares) == os.sched_getaffinity(0)
    assert all(len(share) == 1 for share in shares)
    assert cpu_shares(1, cpus) == (frozenset(os.sched_getaffinity(0)),)
    # where others may use what is left, nobody is bound
    assert not any(cpu_shares(cpus + 1, 1))

    workers = local_pool(cpus, ("cpu",))
    try:
        done = workers.map(allowed_cpus, JOB, [(0, i) for i in range(3 * cpus)], lambda: None)
        seen = {report.failed for _, report in done if isinstance(report, BlockReport)}
    finally:
        workers.close()
    assert seen == {frozenset((cpu, 0) for cpu in share) for share in shares}


def burn(job: SlideJob, block: Block, on_tile: Any = None) -> BlockReport:
    """A block's work that takes half a second of CPU and 400 MB."""
    memory, until = np.ones(50_000_000), time.process_time() + 0.5
    while time.process_time() < until:
        memory[:1000] += 1
    return BlockReport(block, 1, frozenset())


def test_what_workers_use_is_counted() -> None:
    assert pool.Pool().used() == Usage()
    workers = local_pool(2, ("cpu",))
    try:
        before, here = workers.used(), used_here()
        list(workers.map(burn, JOB, [(0, i) for i in range(4)], lambda: None))
        after = workers.used()
        assert after.cpu_s - before.cpu_s > 2
        assert after.peak_rss_mb > before.peak_rss_mb + 300
        assert used_here().cpu_s - here.cpu_s < after.cpu_s - before.cpu_s
        both = used_by_all((after, used_here()))
        assert both.cpu_s > after.cpu_s
        assert both.peak_rss_mb == max(after.peak_rss_mb, used_here().peak_rss_mb)
    finally:
        workers.close()


def test_two_runs_at_once_do_not_get_in_each_others_way() -> None:
    first = local_pool(1, ("cpu",))
    try:
        second = local_pool(1, ("cpu",))  # warnings, as of a port in use, are errors here
        second.close()
    finally:
        first.close()


def test_a_second_device_changes_no_byte(
    slide: Slide, finished: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "devices_of", lambda device: ("cpu", "cpu:0"))
    output = tmp_path / "out.ome.zarr"
    assert slide.run(output, **FAST).exit_code == 0
    assert open_layers(output).run_record["workers"] == 2
    assert differing(finished.path, output) == []


def test_as_many_workers_as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pool, "local_pool", lambda *a: asked.append(a))
    monkeypatch.setattr(pool, "devices_of", lambda device: ("cuda:0", "cuda:1", "cuda:2"))
    monkeypatch.setattr(pool, "usable_cpus", lambda: 12)
    _, workers, threads = pool.make_pool("cuda", None)
    assert (workers, threads) == (3, 4)
    assert asked == [(3, ("cuda:0", "cuda:1", "cuda:2"), pool.LANES, 4)]


def test_blocks_overlap_and_all_are_reported() -> None:
    meeting = threading.Barrier(2, timeout=30)

    def work(job: SlideJob, block: Block, on_tile: Any) -> BlockReport:
        meeting.wait()  # broken unless two are at work
        on_tile()
        if block == (0, 3):
            raise ArithmeticError("a surprise")
        return BlockReport(block, 1, frozenset())

    tiles: list[int] = []
    blocks = [(0, i) for i in range(4)]
    lanes = pool.Pool(2)
    done = dict(lanes.map(work, JOB, blocks, lambda: tiles.append(1)))
    assert sorted(done) == blocks
    assert len(tiles) == 4
    assert isinstance(done[0, 3], ArithmeticError)


def test_who_stops_listening_stops_the_work() -> None:
    begun, go_on = [], threading.Event()

    def work(job: SlideJob, block: Block, on_tile: Any) -> BlockReport:
        begun.append(block)
        if block != (0, 0):
            go_on.wait(30)
            on_tile()  # ends here
            begun.append("after")
        return BlockReport(block, 1, frozenset())

    outcomes = pool.Pool(2).map(work, JOB, [(0, i) for i in range(9)], lambda: None)
    assert next(outcomes)[0] == (0, 0)
    threading.Timer(0.2, go_on.set).start()
    outcomes.close()  # type: ignore[attr-defined]
    assert "after" not in begun
    assert len(begun) <= 3


def test_threads_keep_the_order_and_stay_a_little_ahead() -> None:
    taken: list[int] = []

    def items() -> Any:
        for i in range(40):
            taken.append(i)
            yield i

    results = in_threads(lambda i: i * i, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 6
    assert list(results) == [i * i for i in range(1, 40)]


def test_threads_raise_and_leave_nothing_running() -> None:
    running = threading.Semaphore(0)

    def work(i: int) -> int:
        if i == 1:
            raise ArithmeticError("a surprise")
        time.sleep(0.05)
        running.release()
        return i

    with pytest.raises(ArithmeticError, match="a surprise"):
        list(in_threads(work, range(50), 2))
    finished = running._value
    time.sleep(0.2)
    assert running._value == finished < 10


def test_a_batch_fills_the_memory_that_is_free() -> None:
    gb = 10**9
    assert fitting.batch_for(78 * gb, 80 * gb, 2) == 36
    assert fitting.batch_for(10 * gb, 80 * gb, 2) == 5
    assert fitting.batch_for(gb // 2, 80 * gb, 3) == 1


def test_a_batch_that_does_not_fit_is_halved(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds two tiles, and is asked for many."""
    genuine, sizes = fitting.fit_tiles, []

    def fit_tiles(tiles: Any, *others: Any) -> Any:
        sizes.append(len(tiles))
        if len(tiles) > 2:
            raise torch.OutOfMemoryError("too many")
        return genuine(tiles, *others)

    monkeypatch.setattr(fitting, "fit_tiles", fit_tiles)
    monkeypatch.setattr(fitting, "_solo", lambda context, device: False)
    small = {**PAPER, "threads": 1, "roi": None}
    assert slide.run(tmp_path / "batch", batch=8, **small).exit_code == 0
    assert max(sizes) > 2
    monkeypatch.undo()
    assert slide.run(tmp_path / "one", **small).exit_code == 0
    ours, theirs = (open_layers(tmp_path / name).tiles for name in ("batch", "one"))
    for column in ("flags", "steps", "loss"):
        np.testing.assert_array_equal(ours[column], theirs[column])


def test_a_signal_that_interrupts_the_start_of_a_lane_leaves_nobody_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, start = [], threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        began.append(thread)
        if len(began) == 2:
            raise KeyboardInterrupt

    def work(_job: SlideJob, block: Block, _on_tile: Any) -> BlockReport:
        time.sleep(1.0 if block == (0, 1) else 0.2)
        return BlockReport(block, 0, frozenset())

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(pool.Pool(2).map(work, JOB, [(0, i) for i in range(4)], lambda: None))
    assert len(began) == 2
    assert not any(thread.is_alive() for thread in began)
