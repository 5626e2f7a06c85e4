"""How far from the truth: every method on phantoms with known concentrations, S and B.

    python tests/benchmarks/phantom_quality.py --out docs/results/phantom_quality.json \
        --markdown docs/phantom-quality.md [--cases he_flat,hdab_drift] [--seeds 5] \
        [--preset balanced,fast] [--shape 1536,1536] [--keep] [--quick]

For each description in tests/phantoms and each seed a phantom slide is written to a temporary
folder, deconvolved from the library's vectors (9 degrees off the true ones), and compared on tissue
pixels with the baselines of ``phantom_baselines``. ``docs/results/README.md`` explains the records.
OUT is rewritten after every phantom, so a run that is broken off keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from phantom_baselines import (
    Estimate,
    baselines,
    concentration,
    read_od,
    tile_centres,
    unmix_od,
)
from phantom_report import write_markdown

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.optics.stains import make_stain_set, save_stains
from wsi_pgdips.records import FloatArray, TileSource
from wsi_pgdips.report.seams import seam_steps, seam_summary
from wsi_pgdips.report.truth import (
    SquaredError,
    background_error,
    concentration_error,
    stain_angles,
    windows_of,
)
from wsi_pgdips.slide.phantom import (
    PhantomConfig,
    PhantomTruth,
    load_phantom_config,
    write_phantom,
)
from wsi_pgdips.slide.reader import open_source

PHANTOMS = Path(__file__).parent.parent / "phantoms"
QUICK_CASES, QUICK_SHAPE = "he_flat,hdab_drift", (1024, 1536)
ALL_STAINS = "all"
Record = dict[str, Any]


class Scores:
    """Records of one phantom, in the order in which they are measured."""

    def __init__(self, case: str, seed: int, labels: tuple[str, ...]) -> None:
        self.records: list[Record] = []
        self._case, self._seed, self._labels = case, seed, labels

    def add(self, method: str, metric: str, value: float, stain: str = ALL_STAINS) -> None:
        """One figure; what is not finite is recorded as null."""
        self.records.append(
            {
                "case": self._case,
                "seed": self._seed,
                "method": method,
                "stain": stain,
                "metric": metric,
                "value": float(f"{value:.4g}") if math.isfinite(value) else None,
            }
        )

    def add_each(self, method: str, metric: str, values: Iterable[float]) -> None:
        """One figure per stain."""
        for label, value in zip(self._labels, values, strict=True):
            self.add(method, metric, float(value), label)


def measure(
    config: PhantomConfig, case: str, folder: Path, presets: list[str], grid_tile: int = 512
) -> list[Record]:
    """All records of one phantom."""
    slide = folder / f"{case}.tif"
    truth = write_phantom(config, slide)
    scores = Scores(case, config.seed, truth.labels)
    source = open_source(slide, mpp="native", tile=grid_tile)
    try:
        weight = tissue_share(truth, source)
        oracle = score_baselines(scores, source, truth, weight)
        library = make_stain_set("phantom", truth.labels, truth.library)
        save_stains(library, folder / "library.toml")
        for preset in presets:
            layers = deconvolve(slide, folder / preset, folder / "library.toml", preset, scores)
            score_layers(scores, preset, layers, source, truth, weight, oracle)
    finally:
        source.close()
    return scores.records


def deconvolve(slide: Path, out: Path, stains: Path, preset: str, scores: Scores) -> Layers:
    """Run the product itself, as its users do."""
    from wsi_pgdips.run.pipeline import deconvolve_slide

    begin = time.perf_counter()
    deconvolve_slide(slide, out, stains=str(stains), preset=preset, mpp="native")
    scores.add(preset, "seconds", time.perf_counter() - begin)
    return open_layers(out)


def tissue_share(truth: PhantomTruth, source: TileSource) -> FloatArray:
    """(GY, GX) share of true tissue in each tile."""
    grid = source.grid
    share = np.zeros(grid.tile_grid, np.float32)
    for ty, tx in np.ndindex(share.shape):
        r = grid.tile_region(ty, tx)
        share[ty, tx] = truth.tissue(r.y, r.x, r.h, r.w).mean()
    return share


def score_baselines(
    scores: Scores, source: TileSource, truth: PhantomTruth, weight: FloatArray
) -> FloatArray:
    """Score the baselines; returns the oracle's RMSE, (N,)."""
    n = len(truth.labels)
    methods = list(baselines(source, truth))
    errors = {m.name: SquaredError(n) for m in methods}
    for window in windows_of(truth.shape):
        at = (window.y, window.x, window.h, window.w)
        tissue = truth.tissue(*at)
        if tissue.any():
            exact = truth.concentration(*at)
            for m in methods:
                errors[m.name].add(concentration(m, source, truth, window), exact, tissue)
    oracle = errors["oracle"].result().rmse
    for m in methods:
        add_rmse(scores, m.name, errors[m.name], oracle)
        add_parameters(scores, m, source, truth, weight)
    return oracle


def add_rmse(scores: Scores, method: str, error: SquaredError, oracle: FloatArray) -> None:
    result = error.result()
    scores.add_each(method, "rmse", result.rmse)
    scores.add_each(method, "rmse_ratio_to_oracle", result.rmse / oracle)
    scores.add_each(method, "bias", result.bias)
    scores.add(method, "rmse", result.joint)
    scores.add(method, "rmse_ratio_to_oracle", result.joint / float(np.sqrt((oracle**2).mean())))


def add_parameters(
    scores: Scores, m: Estimate, source: TileSource, truth: PhantomTruth, weight: FloatArray
) -> None:
    """Angles of S and error of B of a method with one S and B for the slide."""
    if m.stain_matrix is None or m.background is None:
        return
    true_rows, true_background = true_fields(source, truth)
    scores.add_each(m.name, "angle_deg", stain_angles(m.stain_matrix, true_rows, weight))
    error = background_error(m.background, true_background, weight)
    scores.add(m.name, "background_od", error.largest)
    scores.add(m.name, "background_rms_od", error.rms)


def true_fields(source: TileSource, truth: PhantomTruth) -> tuple[FloatArray, FloatArray]:
    """(GY, GX, N, 3) and (GY, GX, 3) at tile centres."""
    centres = tile_centres(source.grid)
    rows = np.moveaxis(truth.stain_matrix_at(*centres), (0, 1), (2, 3))
    return rows, np.moveaxis(truth.background_at(*centres), 0, -1)


def score_layers(
    scores: Scores,
    method: str,
    layers: Layers,
    source: TileSource,
    truth: PhantomTruth,
    weight: FloatArray,
    oracle: FloatArray,
) -> None:
    """Errors of what the product wrote, and its seams."""

    def true_tissue(r: Region) -> np.ndarray:
        return truth.tissue(r.y, r.x, r.h, r.w)

    n = len(truth.labels)
    total = concentration_error(
        lambda r: layers.read(r.y, r.x, r.h, r.w),
        lambda r: truth.concentration(r.y, r.x, r.h, r.w),
        true_tissue,
        windows_of(truth.shape),
        n,
    )
    scores.add_each(method, "rmse", total.rmse)
    scores.add_each(method, "rmse_ratio_to_oracle", total.rmse / oracle)
    scores.add_each(method, "bias", total.bias)
    scores.add(method, "rmse", total.joint)
    scores.add(method, "rmse_ratio_to_oracle", total.joint / float(np.sqrt((oracle**2).mean())))
    scores.add(method, "measured", total.measured)
    fields = layers.fields
    true_rows, true_background = true_fields(source, truth)
    scores.add_each(method, "angle_deg", stain_angles(fields.stain_matrix, true_rows, weight))
    error = background_error(fields.background, true_background, weight)
    scores.add(method, "background_od", error.largest)
    scores.add(method, "background_rms_od", error.rms)
    prior = layers.provenance["prior"]
    rows = np.asarray(prior["stain_matrix"], np.float32)
    background = np.asarray(prior["background"], np.float32)
    scores.add_each(method, "angle_slide_deg", stain_angles(rows, true_rows, weight))

    def constant(r: Region) -> FloatArray:
        return unmix_od(read_od(source, r), rows, background)

    def blended(r: Region) -> FloatArray:
        return layers.read(r.y, r.x, r.h, r.w) - constant(r)

    raw_rows = np.where(np.isfinite(fields.raw_stain_matrix), fields.raw_stain_matrix, rows)
    raw_background = np.where(np.isfinite(fields.raw_background), fields.raw_background, background)

    def unblended(r: Region) -> FloatArray:
        side = layers.grid.tile
        ty = (np.arange(r.y, r.stop_y) // side)[:, None]
        tx = (np.arange(r.x, r.stop_x) // side)[None, :]
        own = np.moveaxis(raw_rows[ty, tx], (2, 3), (0, 1)).astype(np.float32)  # (N, 3, h, w)
        own_background = np.moveaxis(raw_background[ty, tx], 2, 0).astype(np.float32)
        return unmix_od(read_od(source, r), own, own_background) - constant(r)

    for metric, difference in (
        ("seam_step_od", blended),
        ("seam_step_unblended_od", unblended),
    ):
        steps, _ = seam_steps(layers.grid, difference, true_tissue)
        scores.add_each(method, metric, seam_summary(steps) if steps.size else [math.nan] * n)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.cases, options.seeds = options.cases or QUICK_CASES, 1
    cases = options.cases.split(",") if options.cases else sorted(_descriptions())
    unknown = sorted(set(cases) - set(_descriptions()))
    if unknown:
        print(f"no such phantom: {', '.join(unknown)}; known: {', '.join(sorted(_descriptions()))}")
        return 2
    presets = [p for p in options.preset.split(",") if p and p != "none"]
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    records: list[Record] = json.loads(out.read_text()) if options.keep and out.exists() else []
    for case in cases:
        for seed in range(1, options.seeds + 1):
            config = load_phantom_config(_descriptions()[case])
            update: dict[str, Any] = {"seed": seed}
            shape = QUICK_SHAPE if options.quick else options.shape
            if shape:
                update["shape"] = shape
            begin = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="phantom-") as folder:
                try:
                    new = measure(config.model_copy(update=update), case, Path(folder), presets)
                except SettingsError as error:  # no physical vectors for this seed
                    print(f"{case}, seed {seed}: {error}", file=sys.stderr)
                    continue
            records = [r for r in records if (r["case"], r["seed"]) != (case, seed)] + new
            _write(out, records)
            print(f"{case}, seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    if options.markdown:
        write_markdown(out, Path(options.markdown))
    return 0


def _descriptions() -> dict[str, Path]:
    return {path.stem: path for path in PHANTOMS.glob("*.toml")}


def _write(path: Path, records: list[Record]) -> None:
    partial = path.with_name(path.name + ".partial")
    lines = ",\n".join(json.dumps(record) for record in records)
    partial.write_text(f"[\n{lines}\n]\n")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON file of records")
    parser.add_argument("--markdown", help="also render OUT as a page of tables")
    parser.add_argument("--cases", help="names of tests/phantoms, comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="phantoms per case (seeds 1, 2, ...)")
    parser.add_argument(
        "--preset", default="balanced,fast", help="comma-separated; `none` runs the baselines only"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep OUT's records of other cases and seeds"
    )
    parser.add_argument(
        "--shape",
        type=lambda text: tuple(int(side) for side in text.split(",")),
        help="HEIGHT,WIDTH in pixels instead of the description's",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small phantoms, one seed: does it run at all"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
