"""The machine that a speed was measured on, in words that other readers understand."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from wsi_pgdips.machine import usable_cpus

_MATRIX, _REPEATS = 2048, 3


def device_name(device: str) -> str:
    """``NVIDIA H200, 16 cores``, or the processor's name and its cores."""
    cores = f"{usable_cpus()} cores"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {cores}"
    return f"{_processor()}, {cores}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def matmul_rate(device: str) -> float:
    """Floating-point operations a second of large matrix products, all cores, as networks use them.

    bf16 on a GPU, float32 on a CPU: what the solver computes in there.
    """
    from concurrent.futures import ThreadPoolExecutor
    from time import perf_counter

    gpu = device.startswith("cuda")
    kind = torch.bfloat16 if gpu else torch.float32
    a = torch.randn(_MATRIX, _MATRIX, device=device, dtype=kind)
    workers = 1 if gpu else usable_cpus()

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(a, a)

    repeats = _REPEATS * (50 if gpu else 1)
    with ThreadPoolExecutor(workers) as executor:
        for times in (1, repeats):  # the first pass warms up
            start = perf_counter()
            list(executor.map(multiply, [times] * workers))
            if gpu:
                torch.cuda.synchronize()
            seconds = perf_counter() - start
    return 2.0 * _MATRIX**3 * repeats * workers / seconds
