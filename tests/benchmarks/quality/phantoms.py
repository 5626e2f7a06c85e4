"""One phantom: every method that was asked for, against the exact truth.

Also the time and the quality of ``paper`` beside ``balanced``, on one small phantom.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.quality.cases import TIME_QUALITY_CASE, Case, all_cases, choose
from benchmarks.quality.fields import fields_result, gap_closed, render_under
from benchmarks.quality.methods import SPECTRAL, TIME_QUALITY, Method, attempts
from benchmarks.quality.picture import Result
from benchmarks.quality.product import Product
from benchmarks.quality.scale_free import ScaleFreeScorer
from benchmarks.quality.scene import Scene, open_scene
from benchmarks.quality.scoring import MapError, Scorer, Truth, add_stains
from benchmarks.quality.similarity import pcc
from benchmarks.records import Records, Say, silent
from wsi_pgdips.geometry import Region
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.slide.source import ArraySource

SIDE = 256  # of the picture that `paper` is timed on
STEPS = (30, 60, 120, 480, 960)  # of training the slide's network, beside those of the preset
OF_CASE = "he"  # the phantom that the crop is taken of
# rendered with the network of ``balanced``: a seam step is measured against the same render
SEEN_BY_THE_NETWORK = (
    "balanced",
    "ablation-no-blending",
    "ablation-no-data-consistency",
    "fields-constant",
    "fields-oracle",
    "fields-blended",
)


def measure_phantom(
    case: Case,
    seed: int,
    methods: Sequence[Method],
    *,
    shape: tuple[int, int] | None = None,
    say: Say = silent,
) -> Records:
    """All records of one phantom.

    Args:
        methods: those that do not fit the phantom are left out. shape: in place of the case's own.
        say: told one line a method.

    Raises:
        SettingsError: there are no true vectors for this seed. SlideError: a real slide whose
            tissue cannot be used.
    """
    records = Records("quality", {"case": case.name, "kind": case.kind, "seed": seed})
    spectral = case.scene == SPECTRAL
    errors: dict[str, MapError] = {}
    with (
        tempfile.TemporaryDirectory(prefix="phantom-") as folder,
        open_scene(case, seed, Path(folder), shape) as scene,
    ):
        run = _PhantomRun(scene, Path(folder))
        scorer = (ScaleFreeScorer if spectral else Scorer)(scene, records)
        stains = len(scene.labels)
        for name, result, s in attempts(methods, case.scene, stains, run.result, records, say):
            steps = name in SEEN_BY_THE_NETWORK and not spectral
            reference = run.constants if steps else None
            errors[name] = scorer.score(name, result, s, reference)
            for label, step in run.seams.pop(name, {}).items():
                own_step = {"seam_own_od": float("nan") if step is None else step}
                records.add(own_step, method=name, stain=label, seconds=s)
            say(f"  {name}: rmse {errors[name].joint:.4f}")
        _add_gap(records.at(method="fields-blended"), scene.labels, errors)
    return records


class _PhantomRun:
    """Methods on one phantom; what two of them need is made once."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder = scene, folder
        self.product = Product(scene.source, scene.stains)
        self.seams: dict[str, dict[str, float | None]] = {}  # as runs of presets measured them

    @cached_property
    def constants(self) -> FloatArray:
        """(N, H, W) that the render of ``balanced`` makes of the slide's constants."""
        solved = self.product.balanced
        return render_under(self.scene.picture.od, solved, solved.slide_matrix, solved.context.b0)

    def result(self, method: Method) -> Result:
        """The result of a method."""
        name, scene, product = method.name, self.scene, self.product
        if method.family == "preset":
            result, self.seams[name] = product.run(name, scene, self.folder)
            return result
        if method.family == "ablation":
            product.prior = product.balanced.prior
            return product.result(name)
        if method.family == "truth":
            return scene.oracle(constant=name == "oracle-constant")
        if method.family == "fields":
            return fields_result(name, scene, product.balanced)
        return scene.picture.result(name)


def _add_gap(records: Records, labels: Sequence[str], errors: dict[str, MapError]) -> None:
    """Record the share of the way that blended fields go, where all three were measured."""
    names = [f"fields-{f}" for f in ("constant", "blended", "oracle")]
    if all(name in errors for name in names):
        found = [errors[name] for name in names]
        records.add({"gap_closed": gap_closed(*(error.joint for error in found))})
        each = zip(*(map(float, error.rmse) for error in found), strict=True)
        add_stains(records, "gap_closed", labels, [gap_closed(*three) for three in each])


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
            maps = np.nan_to_num(done.maps, nan=0.0)
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
