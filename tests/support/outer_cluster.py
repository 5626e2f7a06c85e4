"""A scheduler and workers of dask that are not the run's own, as processes on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]
PATIENCE_S = 120
Env = Mapping[str, str] | None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(log: Path, module: str, *arguments: object, env: Mapping[str, str]) -> Iterator[None]:
    """``python -m module`` until the end, with the tests' functions within its reach."""
    path = os.pathsep.join(
        [str(TESTS), str(TESTS / "pipeline"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **env},
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def scheduler(folder: Path, scheme: str = "tcp", env: Env = None):
    """Its address, once it answers."""
    port = free_port()
    arguments = ("--port", port, "--host", f"{scheme}://127.0.0.1", "--no-dashboard")
    log = folder / "scheduler.log"
    with program(log, "distributed.cli.dask_scheduler", *arguments, env=env or {}):
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.1)
        yield f"{scheme}://127.0.0.1:{port}"


@contextmanager
def outer(
    folder: Path, scheme: str = "tcp", env: Env = None, worker_env: Env = None
) -> Iterator[str]:
    """The address of a scheduler with one worker, which its nanny restarts."""
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(folder, scheme, env))
        arguments = ("--nthreads", 2, "--host", "127.0.0.1", "--memory-limit", 0)
        arguments += ("--no-dashboard", "--local-directory", folder / "scratch", address)
        log = folder / "worker.log"
        env = worker_env or env or {}
        stack.enter_context(program(log, "distributed.cli.dask_worker", *arguments, env=env))
        yield address
