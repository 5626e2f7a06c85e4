"""A run leaves the threads and settings of its process as they were, and its own threads end."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from support.cheap_runs import FAST, Slide
from wsi_pgdips import machine
from wsi_pgdips.errors import SlideError
from wsi_pgdips.pipeline.image import deconvolve_image

LINGERS_S = 0.3

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads of the system are not listed")


def shared() -> dict[str, Any]:
    """The settings of the whole process."""
    return {
        "blas": {
            p["filepath"]: p["num_threads"] for p in threadpool_info() if "blas" in p.values()
        },
        "blosc": os.environ.get("BLOSC_NTHREADS"),
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products": torch.backends.cuda.matmul.allow_tf32,
        "frozen": gc.get_freeze_count() > 0,
    }


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Settings that differ from those of a run, in a process that is not quiet for good."""
    fresh = {"_inside": 0, "_process": contextlib.ExitStack(), "_here": threading.local()}
    for name, value in fresh.items():
        monkeypatch.setattr(machine, name, value)
    gc.unfreeze()
    monkeypatch.setenv("BLOSC_NTHREADS", "5")
    backends, before = (torch.backends.cudnn, torch.backends.cuda.matmul), torch.get_num_threads()
    allowed = [b.allow_tf32 for b in backends]
    backends[0].allow_tf32, backends[1].allow_tf32 = False, True
    torch.set_num_threads(3)
    with threadpool_limits(2, user_api="blas"):
        yield shared()
    torch.set_num_threads(before)
    backends[0].allow_tf32, backends[1].allow_tf32 = allowed


def test_the_last_of_nested_and_concurrent_calls_restores(loud: dict[str, Any]) -> None:
    stays = machine.quiet_machine()
    with ThreadPoolExecutor(1) as other:
        with machine.quiet_machine():
            other.submit(stays.__enter__).result()
            with machine.quiet_machine():
                quiet = shared()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        assert other.submit(torch.get_num_threads).result() == 1
        assert quiet == shared()
        assert all(quiet[name] != loud[name] for name in loud)
        other.submit(stays.__exit__, None, None, None).result()
        assert other.submit(torch.get_num_threads).result() == 3
    assert shared() == loud


def assert_as_before(loud: dict[str, Any]) -> None:
    now = shared()
    now["blas"] = {
        path: now["blas"][path] for path in loud["blas"]
    }  # others have been loaded since
    assert (now, torch.get_num_threads()) == (loud, 3)


def test_an_image_leaves_its_process_as_it_was(loud: dict[str, Any]) -> None:
    rgb = np.full((256, 256, 3), 255, np.uint8)
    with pytest.raises(SlideError, match="no tissue"):
        deconvolve_image(rgb, **FAST)
    assert_as_before(loud)
    rgb[64:192, 64:192] = np.random.default_rng(0).integers(90, 160, (128, 128, 3))
    deconvolve_image(rgb, **FAST)
    assert_as_before(loud)


def test_a_slide_leaves_its_process_as_it_was(
    slide: Slide, tmp_path: Path, loud: dict[str, Any]
) -> None:
    assert slide.run(tmp_path / "out.ome.zarr", **FAST).exit_code == 0
    assert_as_before(loud)


def lingering() -> int:
    """Have this thread go on after Python has joined it; its number."""
    machine._one_thread_each()
    system = ctypes.CDLL(None)
    key = ctypes.c_uint()
    # at the end of the thread the system calls usleep with what is kept under the key
    assert system.pthread_key_create(ctypes.byref(key), system.usleep) == 0
    assert system.pthread_setspecific(key, ctypes.c_void_p(int(1e6 * LINGERS_S))) == 0
    return threading.get_native_id()


@linux
def test_a_joined_thread_is_waited_for_until_it_is_gone() -> None:
    with ThreadPoolExecutor(1) as pool:
        number = pool.submit(lingering).result()
    assert Path(f"/proc/self/task/{number}").exists()
    machine.outwait_threads()
    assert not Path(f"/proc/self/task/{number}").exists()


@linux
def test_a_living_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_: float) -> None:
        pytest.fail("it would be waited for")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(machine._one_thread_each).result()
        monkeypatch.setattr(machine.time, "sleep", sleep)
        machine.outwait_threads()


@linux
def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GONE_S", LINGERS_S / 10)
    with ThreadPoolExecutor(1) as pool:
        number = pool.submit(lingering).result()
    machine.outwait_threads()
    assert Path(f"/proc/self/task/{number}").exists()
