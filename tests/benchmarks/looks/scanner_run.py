"""Fields of several scanners under all settings: colours, amounts, and what a model sees alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.looks import agreement
from benchmarks.looks.multiscanner import ORGANS, SCANNERS, TRUTH, MultiScanner, load, to_bytes
from benchmarks.looks.scanner_looks import (
    GROUP,
    QUICK,
    ScannerLooks,
    Trial,
    others,
    our_trials,
)
from benchmarks.looks.scanner_rivals import rival_trials
from benchmarks.records import Records, Say, silent
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.distance import TISSUE
from wsi_pgdips.looks.pixels import unmixed
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray

FOLDER = "multiscanner"
SCANNED, AMOUNTS = "scanners", "amounts"  # kinds of records
MEDIAN_DE, CHANGE, ONE_SET = "median_de", "change", "one set"
BEFORE, AFTER, TRUTH_SHARE = "eosin_before", "eosin_after", "eosin_truth"


def case(organ: str, scanner: str) -> str:
    """The case of a record."""
    return f"{organ}, {scanner}"


def measure_scanners(
    records: Records, data: Path, out: Path, *, quick: bool = False, say: Say = silent
) -> None:
    """Add all figures of the scanners; settings that the records hold are not measured again.

    Args:
        data: folder with ``multiscanner/``. out: file of records, rewritten after each scanner.
        quick: four settings, and nothing but colours.

    Raises:
        SettingsError: the fields cannot be read.
    """
    fields = load(data)
    looks = ScannerLooks(fields, data / FOLDER)
    done = {(r["kind"], r["method"]) for r in records.rows}
    trials = [*our_trials(looks), *([] if quick else rival_trials(fields))]
    for method in dict.fromkeys(t.method for t in trials):
        if (SCANNED, method) in done or (quick and method not in QUICK):
            continue
        start = time.perf_counter()
        for trial in (t for t in trials if t.method == method):
            measure_trial(records, fields, trial)
        records.save(out)
        say(f"  {SCANNED}, {method}: {time.perf_counter() - start:.0f} s")
    if quick:
        return
    if (AMOUNTS, GROUP) not in done:
        measure_amounts(records, looks)
        records.save(out)
    if (agreement.KIND, GROUP) not in done:
        measure_agreement(records, looks, say)
        records.save(out)


def measure_trial(records: Records, fields: MultiScanner, trial: Trial) -> None:
    """Add the median dE of a normalised scan to its truth."""
    at = {"kind": SCANNED, "case": case(trial.organ, trial.scanner), "method": trial.method}
    de = fields.median_de(trial.make(), trial.organ, trial.scanner)
    records.add({MEDIAN_DE: de}, part=trial.part, **at)


def measure_amounts(records: Records, looks: ScannerLooks) -> None:
    """Add eosin over hematoxylin of each organ relative to the mean of organs, before and after.

    Before: the scan, under the vectors and the glass of its group. After: the scan by ``group``,
    under those of the target; so is the truth. Part ``one set``: all under the pools of all five
    organs, which do not differ between organs.
    """
    fields = looks.fields
    for scanner in SCANNERS:
        shares: dict[str, dict[str, list[float]]] = {TISSUE: {}, ONE_SET: {}}
        for organ in ORGANS:
            at, tissue = (organ, scanner), fields.tissue(organ, scanner)
            pictures = [
                to_bytes(fields.warp(rgb, *at))
                for rgb in (fields.scans[at].rgb, _grouped(looks, *at))
            ]
            pictures.append(fields.truths[organ])
            for part, organs in ((TISSUE, others(organ)), (ONE_SET, list(ORGANS))):
                own, target = looks.pool(scanner, organs), looks.pool(TRUTH, organs)
                shares[part][organ] = [
                    eosin_share(rgb, look, tissue)
                    for rgb, look in zip(pictures, (own, target, target), strict=True)
                ]
        for part, found in shares.items():
            for organ, values in relative(found).items():
                at_case = {"kind": AMOUNTS, "case": case(organ, scanner), "method": GROUP}
                records.add(values, part=part, **at_case)


def eosin_share(rgb: ByteArray, look: Reference, tissue: BoolArray) -> float:
    """Mean eosin over mean hematoxylin of tissue, by non-negative least squares.

    Args:
        rgb: (H, W, 3). look: whose vectors and glass count. tissue: (H, W).
    """
    order = [look.labels.index(label) for label in ("Eosin", "Hematoxylin")]
    od = rgb_to_od(rgb[tissue]).T
    glass = np.asarray(look.background or (0.0,) * 3, np.float32)
    q = unmixed(od, look.stain_matrix, glass).mean(1, dtype=np.float64)[order]
    return float(q[0] / q[1])


def relative(shares: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Organ -> its figures over the mean of organs, and the change from before to after.

    Args:
        shares: organ -> before, after, truth.
    """
    means = np.mean([*shares.values()], axis=0)
    found = {}
    for organ, values in shares.items():
        before, after, truth = (float(v / m) for v, m in zip(values, means, strict=True))
        of_organ = {BEFORE: before, AFTER: after, TRUTH_SHARE: truth}
        found[organ] = {**of_organ, CHANGE: after / before - 1}
    return found


def measure_agreement(records: Records, looks: ScannerLooks, say: Say = silent) -> None:
    """Add how far a fixed model sees the scanners alike; nothing where it is not installed."""
    try:
        extractor = agreement.efficientnet_lite0()
    except SettingsError as error:
        say(f"  {agreement.KIND}: {error.message}")
        return
    fields = looks.fields
    after = fields.pictures(lambda _, organ, scanner: _grouped(looks, organ, scanner))
    tissue = {o: fields.tissue(o, min_od=agreement.PALE_OD) for o in fields.truths}
    pairs = agreement.agreement(fields.pictures(), after, tissue, extractor)
    agreement.add_records(records, pairs, GROUP)
    say(agreement.report(pairs))


def _grouped(looks: ScannerLooks, organ: str, scanner: str) -> ByteArray:
    rest = others(organ)
    return looks.grouped(organ, scanner, rest, rest)
