"""One phantom: every method that was asked for, against the exact truth."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.quality.cases import Case
from benchmarks.quality.fields import fields_result, gap_closed, render_under
from benchmarks.quality.linear import Result
from benchmarks.quality.methods import PHANTOM, Method, fits
from benchmarks.quality.product import run_ablation, run_preset, solve_in_memory
from benchmarks.quality.scene import Scene, open_scene
from benchmarks.quality.scoring import MapError, Scorer
from benchmarks.records import Sheet
from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.pipeline.image import Solved
from wsi_pgdips.records import FloatArray, SlidePrior

Say = Callable[[str], None]
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
    say: Say = lambda line: None,
) -> Sheet:
    """All records of one phantom.

    Args:
        methods: those that do not fit the phantom are left out. shape: in place of the case's own.
        say: told one line a method.

    Raises:
        SettingsError: there are no true vectors for this seed. SlideError: a real slide whose
            tissue cannot be used.
    """
    sheet = Sheet(case.name, "phantom", seed)
    with (
        tempfile.TemporaryDirectory(prefix="phantom-") as name,
        open_scene(case, seed, Path(name), shape=shape) as scene,
    ):
        run = _PhantomRun(scene, Scorer(scene, sheet), Path(name))
        errors: dict[str, MapError] = {}
        for method in methods:
            if not fits(method, PHANTOM, len(scene.labels)):
                continue
            found = run.measure(method)
            if found is not None:
                errors[method.name] = found
                say(f"  {method.name}: rmse {found.joint:.4f}")
            else:
                say(f"  {method.name}: no result")
        _add_gap(sheet, scene.labels, errors)
    return sheet


class _PhantomRun:
    def __init__(self, scene: Scene, scorer: Scorer, folder: Path) -> None:
        self.scene, self.scorer, self.folder = scene, scorer, folder
        self._solved: Solved | None = None
        self._prior: SlidePrior | None = None
        self._constant: FloatArray | None = None

    def measure(self, method: Method) -> MapError | None:
        begin = time.perf_counter()
        try:
            result, seconds = self._result(method)
        except (WsiPgdipsError, ValueError):  # an extractor or a fit that cannot cope
            self.scorer.lost(method.name, time.perf_counter() - begin)
            return None
        reference = self._reference() if method.name in SEEN_BY_THE_NETWORK else None
        return self.scorer.score(method.name, result, seconds, reference)

    def _reference(self) -> FloatArray:
        """What the render of ``balanced`` makes of the slide's constants."""
        if self._constant is None:
            solved = self._solve()
            self._constant = render_under(
                self.scene.picture.od, solved, solved.slide_matrix, solved.context.b0
            )
        return self._constant

    def _result(self, method: Method) -> tuple[Result, float]:
        name, scene = method.name, self.scene
        if method.family == "preset":
            outcome = run_preset(name, scene, self.folder)
            if name == "balanced":
                self._prior = outcome.prior
            return outcome.result, outcome.seconds
        if method.family == "ablation":
            outcome = run_ablation(name, scene, self._solve().prior)
            return outcome.result, outcome.seconds
        begin = time.perf_counter()
        if method.family == "truth":
            result = scene.oracle(constant=name == "oracle-constant")
        elif method.family == "fields":
            result = fields_result(name, scene, self._solve())
        else:
            result = scene.linear.result(name)
        return result, time.perf_counter() - begin

    def _solve(self) -> Solved:
        """``balanced`` before its render, once; with the prior of its run where there was one."""
        if self._solved is None:
            scene = self.scene
            self._solved = solve_in_memory(
                "balanced", scene.source, scene.stains, str(scene.stains_file), self._prior
            )
        return self._solved


def _add_gap(sheet: Sheet, labels: Sequence[str], errors: dict[str, MapError]) -> None:
    names = [f"fields-{f}" for f in ("constant", "blended", "oracle")]
    if not all(name in errors for name in names):
        return
    constant, blended, oracle = (errors[name] for name in names)
    share = gap_closed(constant.joint, blended.joint, oracle.joint)
    sheet.add("fields-blended", "gap_closed", share)
    each = zip(constant.rmse, blended.rmse, oracle.rmse, strict=True)
    shares = [gap_closed(*map(float, triple)) for triple in each]
    sheet.add_each("fields-blended", "gap_closed", labels, shares)
