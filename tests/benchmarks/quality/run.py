"""The benchmark of quality: every case, every method, one JSON file of records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.quality import cases as known_cases
from benchmarks.quality import methods as known_methods
from benchmarks.quality.cases import QUICK_CASES, QUICK_SHAPE, TIME_QUALITY_CASE, Case
from benchmarks.quality.methods import TIME_QUALITY, Method, fits
from benchmarks.records import Records, Say, check_places, kept_records, silent
from wsi_pgdips.errors import SettingsError

ABLATION_SEEDS = 1  # where they are not asked for by name: each costs as much as the product
QUICK_METHODS = (
    "oracle",
    "fixed-glass",
    "macenko-slide-glass",
    "rays-slide",
    "fast",
    "balanced",
    "fields-constant",
    "fields-oracle",
    "fields-blended",
)


def run(
    out: Path,
    *,
    data: Path | None = None,
    methods: Sequence[str] | None = None,
    presets: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    seeds: int = 5,
    extra: tuple[Path, str] | None = None,
    quick: bool = False,
    keep: bool = False,
    say: Say = silent,
) -> Records:
    """Measure what is asked for; the file is rewritten after every case and seed.

    Where methods are not named, ablations are measured on the first seed only. With ``keep``, a
    case and seed is skipped where the file has records of all methods asked for; where some are
    missing, a phantom is measured for those alone.

    Args:
        out: file of records. data: folder of real images, or None for phantoms alone.
        methods, presets, cases: names, or None for the usual ones.
        seeds: phantoms of each case, seeds 1, 2... extra: a slide and its stain set, of which one
            more phantom takes its tissue.
        quick: the fixed small slice of the regression guard. keep: go on with the file's records.
        say: told one line a method.

    Raises:
        SettingsError: an unknown case, method or preset, or no such folder or slide.
        OutputError: the results cannot be written.
        WsiPgdipsError: a case that cannot be measured; what was measured before is in the file.
    """
    check_places(out, data)
    if seeds < 1:
        raise SettingsError("a benchmark needs a phantom", expected="--seeds of at least 1")
    named = QUICK_METHODS if quick and methods is None else methods
    chosen = known_methods.choose(named, presets)
    wanted = QUICK_CASES if quick and cases is None else cases
    there = known_cases.choose(known_cases.all_cases(data, extra), wanted)
    records = kept_records("quality", out, keep=keep)
    # without --methods, only where all cases are asked for
    timed = any(m.name == TIME_QUALITY for m in chosen) and (methods is not None or cases is None)
    jobs = list(_jobs(there, 1 if quick else seeds, timed))
    for k, (case, seed) in enumerate(jobs, 1):
        title = f"[{k}/{len(jobs)}] {case.name}" + ("" if seed is None else f", seed {seed}")
        missing = _missing(records, case, seed, chosen)
        if methods is None and (seed or 1) > ABLATION_SEEDS:
            missing = [m for m in missing if m.family != "ablation"]
        if not missing:
            say(f"{title}: kept")
            continue
        say(title)
        begin = time.perf_counter()
        try:
            found = _measure(case, seed, missing, QUICK_SHAPE if quick else None, say)
        except SettingsError as error:
            if not case.seeded:
                raise
            say(f"  left out: {error.message}")  # no physical vectors for this seed
            continue
        records.put(found, "kind", "case", "seed", "method")
        records.save(out)
        say(f"  {time.perf_counter() - begin:.0f} s")
    return records


def _jobs(cases: Sequence[Case], seeds: int, timed: bool) -> Iterator[tuple[Case, int | None]]:
    """Seed by seed, so that what is broken off early has seen all cases; pictures once."""
    for seed in range(1, seeds + 1):
        for case in cases:
            if case.seeded:
                yield case, seed
            elif seed == 1:
                # a second phantom tells nothing new of a shift
                yield case, 1 if case.description is not None else None
    if timed:
        yield Case(TIME_QUALITY_CASE, "phantom"), 1


def _missing(
    records: Records, case: Case, seed: int | None, methods: Sequence[Method]
) -> list[Method]:
    """The methods that a case is to be measured for."""
    place = (case.kind, case.name, seed)
    have = {r["method"] for r in records.rows if (r["kind"], r["case"], r["seed"]) == place}
    if case.name == TIME_QUALITY_CASE:
        return [] if have else [m for m in methods if m.name == TIME_QUALITY]
    wanted = [m for m in methods if fits(m, case.scene, known_cases.stains_of(case))]
    missing = [m for m in wanted if m.name not in have]
    # figures at equal sharpness depend on all methods of the picture, the gap on all fields
    if missing and case.scene == known_methods.PICTURE:
        return wanted
    if any(m.family == "fields" for m in missing):
        return [m for m in wanted if m in missing or m.family == "fields"]
    return missing


def _measure(
    case: Case, seed: int | None, methods: Sequence[Method], shape: tuple[int, int] | None, say: Say
) -> Records:
    from benchmarks.quality.consistency import measure_shift
    from benchmarks.quality.phantoms import measure_phantom, measure_time_quality
    from benchmarks.quality.pictures import measure_picture

    if case.name == TIME_QUALITY_CASE:
        return measure_time_quality(seed or 1, say=say)
    if case.scene == known_methods.PICTURE:
        return measure_picture(case, methods, say=say)
    if case.scene == known_methods.SHIFT:
        return measure_shift(case, seed, methods, shape=shape, say=say)
    return measure_phantom(case, seed or 1, methods, shape=shape, say=say)
