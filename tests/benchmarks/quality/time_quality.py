"""What ``paper`` takes, and what it gives for it, beside ``balanced``: one small phantom."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.cases import TIME_QUALITY_CASE, Case, all_cases, choose
from benchmarks.quality.methods import TIME_QUALITY
from benchmarks.quality.product import run_in_memory
from benchmarks.quality.scene import open_scene
from benchmarks.quality.scoring import Truth
from benchmarks.quality.similarity import pcc
from benchmarks.records import Sheet
from wsi_pgdips.geometry import Region
from wsi_pgdips.records import BoolArray
from wsi_pgdips.slide.source import ArraySource

SIDE = 256
STEPS = (30, 60, 120, 480, 960)  # of training the slide's network, beside those of the preset
OF_CASE = "he"
Say = Callable[[str], None]


def time_quality_case() -> Case:
    """The phantom that the crop is taken of."""
    return choose(all_cases(None), [OF_CASE])[0]


def measure_time_quality(seed: int, *, say: Say = lambda line: None) -> Sheet:
    """Seconds, joint RMSE and mean PCC of ``paper``, with all its iterations, and of ``balanced``.

    ``balanced-N`` trains the slide's network for N steps: the curve its default was read from.

    On the 256 x 256 pixels of a phantom that hold most tissue beside some glass, as a picture of
    one tile in which neither has a slide to draw on; the ratio of their seconds under the method
    ``time-quality``.
    """
    sheet = Sheet(TIME_QUALITY_CASE, "phantom", seed)
    with (
        tempfile.TemporaryDirectory(prefix="phantom-") as name,
        open_scene(time_quality_case(), seed, Path(name)) as scene,
    ):
        part = _part(scene.tissue)
        own = part.slices
        q, tissue = scene.q[:, *own], scene.tissue[own]
        truth = Truth(q, tissue)
        picture = ArraySource(scene.picture.rgb[own].copy(), mpp=scene.grid.mpp, tile=SIDE)
        took = {}
        runs: list[tuple[str, str, dict[str, Any]]] = [("balanced", "balanced", {})]
        runs += [(f"balanced-{n}", "balanced", {"calibration_steps": n}) for n in STEPS]
        for name, preset, options in [*runs, ("paper", "paper", {})]:
            done, took[name] = run_in_memory(
                preset, picture, scene.stains, str(scene.stains_file), **options
            )
            maps = np.nan_to_num(done.concentration, nan=0.0)
            error = truth.error(maps)
            likeness = np.mean([pcc(a[tissue], b[tissue]) for a, b in zip(maps, q, strict=True)])
            seconds = took[name]
            sheet.add(name, "seconds", seconds, seconds=seconds)
            sheet.add(name, "rmse_joint", error.joint, seconds=seconds)
            sheet.add(name, "pcc", float(likeness), seconds=seconds)
            say(f"  {name}: {seconds:.0f} s, rmse {error.joint:.4f}")
        sheet.add(TIME_QUALITY, "seconds_ratio", took["paper"] / took["balanced"])
    return sheet


def _part(tissue: BoolArray) -> Region:
    """The window whose share of tissue is nearest to three quarters; the first of equals."""
    total = np.pad(tissue.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    held = total[SIDE:, SIDE:] - total[:-SIDE, SIDE:] - total[SIDE:, :-SIDE]
    share = (held + total[:-SIDE, :-SIDE])[::16, ::16] / SIDE**2
    row, column = np.unravel_index(int(np.abs(share - 0.75).argmin()), share.shape)
    return Region(int(row) * 16, int(column) * 16, SIDE, SIDE)
