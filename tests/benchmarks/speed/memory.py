"""Peak memory of a run against the size of its slide.

Runs preset ``fast`` on a phantom of 4096 x 4096 pixels, and on the same tissue repeated to
12288 x 12288 (28672 x 28672 for the full measurement: some ten minutes, 5 GB of memory to make it,
2 GB of disk), each in a process of its own, and writes the peak resident memory of both.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from benchmarks.speed.runs import timed_run
from wsi_pgdips.disk import write_atomic
from wsi_pgdips.export.tiff import PyramidWriter
from wsi_pgdips.phantom.make import make_phantom
from wsi_pgdips.records import ByteArray

PHANTOM = Path(__file__).parents[2] / "phantoms" / "he_drift.toml"
SIDE = 4096
STRIP = 1024


def run(out: Path, *, full: bool = False) -> None:
    """Measure, and write a JSON file.

    Args:
        full: the larger slide has 28672 pixels a side.

    Raises:
        OutputError: the file cannot be written. IncompleteRunError: a run failed.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, big = folder / "small.tiff", folder / "big.tiff"
        made = make_phantom(small, config=PHANTOM, shape=(SIDE, SIDE))
        times = 7 if full else 3
        write_repeated(tifffile.imread(small, key=0), times, big)
        for slide, side in ((small, SIDE), (big, SIDE * times)):
            took = timed_run(slide, str(made.stains), "--preset", "fast", "--device", "cpu")
            rows.append({"side_px": side, "peak_rss_mb": took.peak_rss_mb})
            print(rows[-1], flush=True)
    result = {
        "what": "peak resident memory of one CPU process, preset fast, stains he",
        "runs": rows,
        "growth": round(rows[1]["peak_rss_mb"] / rows[0]["peak_rss_mb"] - 1, 3),
        "pixels_ratio": (rows[1]["side_px"] / rows[0]["side_px"]) ** 2,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }
    write_atomic(out, (json.dumps(result, indent=2) + "\n").encode())


def write_repeated(rgb: ByteArray, times: int, path: Path) -> None:
    """A slide of ``times`` x ``times`` copies, mirrored so that they meet without an edge."""
    more = (times - 1) * len(rgb)
    wide = np.pad(rgb, ((0, more), (0, more), (0, 0)), mode="symmetric")
    shape = wide.shape[:2]
    writer = PyramidWriter(path, shape, 0.5, tile=512, factor=2, quality=80, subsampling="4:2:0")
    for top in range(0, len(wide), STRIP):
        writer.write(wide[top : top + STRIP])
    writer.close()
