"""Workers that live elsewhere, workers that die, and schedulers that are gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import dask
import pytest
from distributed import Client

from support.cheap_runs import FAST, Slide, differing
from support.outer_cluster import free_port, outer, program, scheduler
from wsi_pgdips.config import ScientificSettings, make_settings
from wsi_pgdips.errors import ClusterError, DeviceError, IncompleteRunError, SettingsError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.machine import device_for
from wsi_pgdips.pipeline import dask_workers
from wsi_pgdips.pipeline import pool as pools
from wsi_pgdips.pipeline.block import BlockReport, SlideJob
from wsi_pgdips.pipeline.ledger import Block
from wsi_pgdips.pipeline.pool import DaskPool, Pool, WorkerDiedError, local_pool, make_pool


def job(folder: Path, device: str = "cpu") -> SlideJob:
    """A job whose output is a folder that work may leave its traces in."""
    return SlideJob("a.svs", str(folder), ScientificSettings(), device, 1, 0)


def leave_trace(job: SlideJob, block: Block, what: str) -> int:
    """Note down something of a block; how often it has been."""
    with (Path(job.output) / f"{block[0]}_{block[1]}").open("a") as trace:
        trace.write(f"{what}\n")
    return len(traces(job, block))


def traces(job: SlideJob, block: Block) -> list[str]:
    path = Path(job.output) / f"{block[0]}_{block[1]}"
    return path.read_text().split() if path.exists() else []


def deadly(job: SlideJob, block: Block, on_tile: Any = None) -> BlockReport:
    """Work that takes a while: blocks of row 1 kill their worker always, those of row 2 once."""
    times = leave_trace(job, block, job.device)
    time.sleep(0.3)
    if block[0] == 1 or (block[0] == 2 and times == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return BlockReport(block, 1, frozenset())


@pytest.mark.parametrize("value", ["tcp://host:8786", "tls://[::1]:8786", "local"])
def test_clusters_that_there_are(value: str) -> None:
    assert make_settings({"cluster": value}).execution.cluster == value


@pytest.mark.parametrize(
    "value", ["slurm", "pbs", "host:8786", "tcp://host", "tcp://host:port", "http://h:1"]
)
def test_other_clusters_are_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"expected: local, or .* tcp://host:8786"):
        make_settings({"cluster": value})


def test_a_cohort_by_workers_of_a_scheduler_elsewhere(
    slide: Slide, finished: Layers, tmp_path: Path, call: Any
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tiff").write_bytes(slide.path.read_bytes())
    (tmp_path / "broken.tiff").write_bytes(slide.path.read_bytes()[:5000])
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("slide\na.tiff\nbroken.tiff\nb.tiff\n")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]
    with outer(tmp_path) as address:
        asked = ["cohort", "run", manifest, tmp_path / "job", f"--stains={slide.stains}", *options]
        assert call(*asked, f"--cluster={address}", "--threads=1", "--quiet") == 3
    summary = json.loads((tmp_path / "job" / "summary.json").read_bytes())
    assert (summary["done"], summary["failed"]) == (2, 1)
    for name in ("a", "b"):
        layers = open_layers(tmp_path / "job" / "layers" / f"{name}.ome.zarr")
        assert layers.run_record["threads"] == 1
        # the slide's name is in one, and nothing else tells them apart
        assert differing(finished.path, layers.path) == ["provenance/checksums.json", "zarr.json"]


def test_a_slide_by_workers_of_a_scheduler_elsewhere(
    slide: Slide, finished: Layers, tmp_path: Path
) -> None:
    output = tmp_path / "out.ome.zarr"
    with outer(tmp_path) as address:
        assert slide.run(output, cluster=address, threads=1, **FAST).exit_code == 0
        # it is there for the next one, without anything of ours
        with closing(Client(address, set_as_default=False)) as client:
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
            assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0
    assert open_layers(output).run_record["workers"] == 1
    assert differing(finished.path, output) == []


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """Of an authority that signs itself, in the words of dask's configuration."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(openssl, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here to make certificates with")
    tls = {"distributed.comm.tls.ca-file": str(certificate)}
    for role in ("scheduler", "worker", "client"):
        tls[f"distributed.comm.tls.{role}.cert"] = str(certificate)
        tls[f"distributed.comm.tls.{role}.key"] = str(key)
    return tls


def as_environment(configuration: dict[str, str]) -> dict[str, str]:
    names = {key: key.upper().replace(".", "__").replace("-", "_") for key in configuration}
    return {f"DASK_{names[key]}": value for key, value in configuration.items()}


def test_a_slide_over_tls(
    slide: Slide, finished: Layers, certificates: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out.ome.zarr"
    with outer(tmp_path, "tls", env=as_environment(certificates)) as address:
        with pytest.raises(ClusterError, match=r"cannot be used(.|\n)*distributed\.comm\.tls"):
            make_pool("cpu", None, None, address)
        with dask.config.set(certificates):
            assert slide.run(output, cluster=address, threads=1, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_a_scheduler_that_is_not_there(
    call: Any, slide: Slide, tmp_path: Path, capsys: Any
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    arguments = ["--stains", slide.stains, "--preset", "fast", "--block", 1024, "--tile", 256]
    assert call("run", slide.path, tmp_path / "out", *arguments, "--cluster", address) == 2
    said = "".join(capsys.readouterr().err.split())
    assert "daskclustercannotbeused" in said
    assert address in said
    assert "Traceback" not in said


def answer_once(server: socket.socket, answer: bytes) -> None:
    with server.accept()[0] as connection:
        connection.recv(2**16)
        connection.sendall(answer)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(99)])
def test_a_port_of_something_else(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing, one that hangs up, and two that speak another language."""
    assert dask_workers.ANSWER_S < 30
    monkeypatch.setattr(dask_workers, "ANSWER_S", 2)
    begun = time.monotonic()
    said = r"be used\n  expected: .*dask.*\n  found: .+\n  where: .*127.*\n.*this is its port"
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answer is not None:
            threading.Thread(target=answer_once, args=(server, answer)).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=said) as refused:
            make_pool("cpu", None, None, address)
    assert time.monotonic() - begun < 15
    assert answer == b"" or "no answer from a dask scheduler within 2 s" in str(refused.value)


def test_a_scheduler_without_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_workers, "FIRST_WORKER_S", 1.0)
    notes: list[str] = []
    nobody = pytest.raises(ClusterError, match=r"found: Only 0/1 workers arrived after 1")
    with scheduler(tmp_path) as address, nobody:
        make_pool("cpu", None, None, address, note=notes.append)
    assert notes == [f"{address} has no workers yet"]


@pytest.mark.parametrize(("executing", "works"), [(0, False), (1, True)])
def test_a_worker_that_is_paused_ends_what_it_has_begun(executing: int, works: bool) -> None:
    metrics = {"task_counts": {"executing": executing} if executing else {}}
    info = {"workers": {"tcp://a:1": {"status": "paused", "metrics": metrics}}}
    pool = DaskPool(SimpleNamespace(status="running", scheduler_info=lambda n_workers: info), "")
    assert bool(pool.running()) == works


def unknown_there() -> str:
    return "of a module that others lack"


@pytest.mark.parametrize("who", ["env", "worker_env"])
def test_a_scheduler_or_workers_without_this_program(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "versions", unknown_there)
    found = pytest.raises(ClusterError, match=r"found: .*No module named 'test_cluster'")
    with outer(tmp_path, **{who: {"PYTHONPATH": ""}}) as address, found:
        make_pool("cpu", None, None, address)


@pytest.mark.parametrize("name", ["__version__", "version"])
def test_another_version(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pytest.raises(ClusterError, match=f"found: {dask_workers.versions()}")
    with scheduler(tmp_path) as address, found:
        monkeypatch.setattr(dask_workers, name, Mock(return_value="2020.1.0"))
        make_pool("cpu", None, None, address)


def where_it_is(job: SlideJob) -> tuple[str, int]:
    return job.device, os.getpid()


def test_each_remote_worker_looks_for_its_device(tmp_path: Path) -> None:
    assert device_for("cuda", "tcp://host:1") == "cuda"  # whether there is one here or not
    with pytest.raises(DeviceError, match="unknown device"):
        device_for("cudda", "slurm")
    with outer(tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}) as address:
        pool, workers, threads = make_pool("auto", None, None, address)
        with closing(pool):
            assert pool.remote
            assert (workers, threads) == (1, 2)
            device, process = pool.once(where_it_is, job(tmp_path, "auto"))
            assert device == "cpu"
            assert process != os.getpid()
            with pytest.raises(DeviceError, match=r"no GPU that torch can use(.|\n)*the worker"):
                list(pool.map(deadly, job(tmp_path, "cuda"), [(0, 0)], lambda: None))


def test_one_function_alone_in_this_process(tmp_path: Path) -> None:
    assert Pool().once(where_it_is, job(tmp_path)) == ("cpu", os.getpid())
    assert not Pool().remote


def test_a_block_that_kills_its_worker_is_told_from_its_neighbours(tmp_path: Path) -> None:
    """Several lanes: dask blames all blocks that were at work when the worker died."""
    good, once, bad = [(0, i) for i in range(6)], (2, 0), (1, 0)
    blocks = [good[0], bad, *good[1:3], once, *good[3:]]
    tiles: list[int] = []
    with closing(local_pool(2, ("fake:0", "fake:1"), lanes=2)) as pool:
        outcomes = list(pool.map(deadly, job(tmp_path), blocks, lambda: tiles.append(1)))
        assert sorted(block for block, _ in outcomes) == sorted(blocks)
        done = dict(outcomes)
        assert all(isinstance(done[block], BlockReport) for block in [*good, once])
        assert isinstance(done[bad], WorkerDiedError)
        assert "died twice" in str(done[bad])
        assert len(tiles) == len(good) + 1
        assert len(traces(job(tmp_path), bad)) == 2
        assert len(traces(job(tmp_path), once)) >= 2  # again where a report was lost with a worker
        while len(pool.running()) < 2:
            time.sleep(0.1)
        # those that took the place of the dead have their devices
        again = [(0, 10 + i) for i in range(8)]
        assert len(list(pool.map(deadly, job(tmp_path), again, lambda: None))) == len(again)
        devices = {d for block in again for d in traces(job(tmp_path), block)}
        assert devices == {"fake:0", "fake:1"}


def die(job: SlideJob, always: bool) -> str:
    if always or leave_trace(job, (0, 0), "died") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_one_function_alone_outlives_one_death(tmp_path: Path) -> None:
    with closing(local_pool(1, ("cpu",))) as pool:
        assert pool.once(die, job(tmp_path), False) == "done"
        with pytest.raises(IncompleteRunError, match="died twice"):
            pool.once(die, job(tmp_path), True)


def fail(job: SlideJob, block: Block, on_tile: Any = None) -> BlockReport:
    raise TimeoutError("a network share")


def test_a_timeout_of_the_work_is_its_own(tmp_path: Path) -> None:
    with closing(local_pool(1, ("cpu",))) as pool:
        ((_, outcome),) = pool.map(fail, job(tmp_path), [(0, 0)], lambda: None)
        assert isinstance(outcome, TimeoutError)
        with pytest.raises(TimeoutError, match="a network share"):
            pool.once(fail, job(tmp_path), (0, 0))


def test_deaths_under_a_scheduler_that_allows_some(tmp_path: Path) -> None:
    env = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with outer(tmp_path, env=env) as address, closing(make_pool("cpu", 1, 1, address)[0]) as pool:
        blocks = [(0, 0), (1, 0), (0, 1), (2, 0)]
        done = dict(pool.map(deadly, job(tmp_path), blocks, lambda: None))
    died = {block for block, outcome in done.items() if isinstance(outcome, WorkerDiedError)}
    assert died == {(1, 0)}


def wait_long(job: SlideJob, block: Block, on_tile: Any = None) -> BlockReport:
    leave_trace(job, block, "begun")
    time.sleep(600)
    return BlockReport(block, 1, frozenset())


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Any]:
    """Call something when a worker has begun on the first block."""
    stop = threading.Event()

    def when(action: Any) -> None:
        def watch() -> None:
            while not stop.wait(0.1):
                if traces(job(tmp_path), (0, 0)):
                    action()
                    return

        threading.Thread(target=watch).start()

    yield when
    stop.set()


def test_a_scheduler_that_is_lost(tmp_path: Path, begun: Any) -> None:
    with outer(tmp_path) as address:
        pool, *_ = make_pool("cpu", None, 1, address)
        assert isinstance(pool, DaskPool)
        with closing(pool):
            pid = pool.client.run_on_scheduler(os.getpid)
            begun(lambda: os.kill(pid, signal.SIGKILL))
            with pytest.raises(ClusterError, match=r"were lost(.|\n)*the scheduler ended"):
                list(pool.map(wait_long, job(tmp_path), [(0, 0), (0, 1)], lambda: None))


def test_the_last_worker_is_lost(
    tmp_path: Path, begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "LOOK_S", 0.5)
    with scheduler(tmp_path) as address:
        log, arguments = tmp_path / "worker.log", ("--no-nanny", "--host", "127.0.0.1", address)
        with program(log, "distributed.cli.dask_worker", *arguments, env={}):
            pool, *_ = make_pool("cpu", None, 1, address)
            monkeypatch.setattr(pools, "PATIENCE_S", 2.0)
            with closing(pool):
                (pid,) = pool.client.run(os.getpid).values()
                begun(lambda: os.kill(pid, signal.SIGKILL))
                with pytest.raises(ClusterError, match=r"were lost(.|\n)*no worker process"):
                    list(pool.map(wait_long, job(tmp_path), [(0, 0)], lambda: None))
