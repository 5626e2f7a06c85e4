"""What ``paper`` takes, and what it gives for it, beside ``balanced``: one small phantom."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.quality.cases import TIME_QUALITY_CASE, all_cases, choose
from benchmarks.quality.methods import TIME_QUALITY
from benchmarks.quality.product import Product
from benchmarks.quality.scene import open_scene
from benchmarks.quality.scoring import Truth
from benchmarks.quality.similarity import pcc
from benchmarks.records import Records, Say, silent
from wsi_pgdips.geometry import Region
from wsi_pgdips.records import BoolArray
from wsi_pgdips.slide.source import ArraySource

SIDE = 256
STEPS = (30, 60, 120, 480, 960)  # of training the slide's network, beside those of the preset
OF_CASE = "he"  # the phantom that the crop is taken of


def measure_time_quality(seed: int, *, say: Say = silent) -> Records:
    """Seconds, joint RMSE and mean PCC of ``paper``, with all its iterations, and of ``balanced``.

    ``balanced-N`` trains the slide's network for N steps: the curve its default was read from.

    On the 256 x 256 pixels of a phantom that hold most tissue beside some glass, as a picture of
    one tile in which neither has a slide to draw on; the ratio of their seconds under the method
    ``time-quality``.
    """
    records = Records("quality", {"case": TIME_QUALITY_CASE, "kind": "phantom", "seed": seed})
    (case,) = choose(all_cases(None), [OF_CASE])
    with (
        tempfile.TemporaryDirectory(prefix="phantom-") as folder,
        open_scene(case, seed, Path(folder)) as scene,
    ):
        own = _part(scene.tissue).slices
        q, tissue = scene.q[:, *own], scene.tissue[own]
        truth = Truth(q, tissue)
        picture = ArraySource(scene.picture.rgb[own].copy(), mpp=scene.grid.mpp, tile=SIDE)
        took = {}
        runs: list[tuple[str, str, dict[str, Any]]] = [("balanced", "balanced", {})]
        runs += [(f"balanced-{n}", "balanced", {"calibration_steps": n}) for n in STEPS]
        for name, preset, options in [*runs, ("paper", "paper", {})]:
            begin = time.perf_counter()
            done = Product(picture, scene.stains).result(preset, **options)
            took[name] = seconds = time.perf_counter() - begin
            maps = np.nan_to_num(done.concentration, nan=0.0)
            joint = truth.error(maps).joint
            likeness = np.mean([pcc(a[tissue], b[tissue]) for a, b in zip(maps, q, strict=True)])
            values = {"seconds": seconds, "rmse_joint": joint, "pcc": float(likeness)}
            records.add(values, method=name, seconds=seconds)
            say(f"  {name}: {seconds:.0f} s, rmse {joint:.4f}")
        ratio = took["paper"] / took["balanced"]
        records.add({"seconds_ratio": ratio}, method=TIME_QUALITY)
    return records


def _part(tissue: BoolArray) -> Region:
    """The window whose share of tissue is nearest to three quarters; the first of equals."""
    share = sliding_window_view(tissue, (SIDE, SIDE))[::16, ::16].mean((2, 3))
    row, column = np.unravel_index(int(np.abs(share - 0.75).argmin()), share.shape)
    return Region(int(row) * 16, int(column) * 16, SIDE, SIDE)
