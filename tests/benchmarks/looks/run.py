"""The benchmark of looks: pairs of pictures, fields of several scanners, and slides as files."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.looks import plots, reading, scores, sheets
from benchmarks.looks.features import Features, drift
from benchmarks.looks.methods import METHODS, Studio
from benchmarks.looks.pairs import REAL, SCANNER_MPP, LookPair, pairs
from benchmarks.looks.scanner_run import FOLDER, measure_scanners
from benchmarks.looks.scores import LAB, NUCLEAR, OD, SSIM, TEXTURE
from benchmarks.machine import device_name
from benchmarks.records import Records, Say, check_places, kept_records, silent
from wsi_pgdips.looks.distance import TISSUE
from wsi_pgdips.records import ByteArray

SHOWN = "BS9: warm -> original"  # the H&E pair of the figure
QUICK_READS = 12


@dataclass(frozen=True)
class Slide:
    """A slide whose layers are made and read.

    Attributes:
        path: below DIR. timed: read beside OpenSlide. faithful: held to its own pixels.
    """

    path: str
    stains: str
    mpp: float = 0.5
    timed: bool = False
    faithful: bool = True


SLIDES = (
    Slide("slides/CMU-1-Small-Region.svs", "he", timed=True),
    Slide("slides/ectopic_pancreas_HE_crop_40x_GT450.svs", "he", timed=True, faithful=False),
    Slide("slides/metaplasia_trypsin_DAB_20x.svs", "hdab", timed=True),
    Slide("scanners/OS-2-ndpi.ome.tif", "hdab", SCANNER_MPP),
    Slide("scanners/OS-2-vsi.ome.tif", "hdab", SCANNER_MPP),
)


def run(
    out: Path,
    *,
    data: Path | None = None,
    quick: bool = False,
    keep: bool = False,
    pictures: Path | None = None,
    say: Say = silent,
) -> Records:
    """Measure; the file is rewritten after each pair.

    Args:
        out: file of records. data: folder with ``slides/``, ``scanners/`` and, if it is there,
            ``multiscanner/``, or None for a phantom alone. quick: the real pair, one simulated
            pair, few settings of the scanners and one slide.
        keep: the records that ``out`` holds, and measure the rest.
        pictures: file of the figure of one crop under each method, beside which the sheets of
            scanners and slides are drawn; None draws none.
        say: told one line a pair and a slide.

    Raises:
        SettingsError: no such folder, or kept records that cannot be read.
        SlideError: a slide cannot be read. OutputError: the results cannot be written.
    """
    check_places(out, data, "slides")
    records, panels = kept_records("looks", out, keep=keep), list[plots.Panel]()
    done = {(r["kind"], r["case"]) for r in records.rows}
    studio = Studio("fast" if quick else "balanced")
    for pair in pairs(data, quick=quick):
        results = dict[str, ByteArray]()
        if (pair.kind, pair.case) not in done:
            results = measure_pair(records, pair, studio, say)
            records.save(out)
        first_real = pair.kind == REAL and not any(p.kind == REAL for p in panels)
        if pictures is not None and (first_real or pair.case == SHOWN):
            drawn = {m: results[m] if results else studio.apply(m, pair) for m in plots.SHOWN}
            panels.append(plots.panel(pair, drawn))
    if panels and pictures is not None:
        plots.draw_panels(panels, pictures)
    if data is not None:
        if (data / FOLDER).is_dir():
            measure_scanners(records, data, out, quick=quick, say=say)
            if pictures is not None and not quick:
                sheets.draw(data, pictures.parent)
        if (reading.READING, "machine") not in done:
            where = {"kind": reading.READING, "case": "machine", "method": device_name("cpu")}
            records.add({"machine": float("nan")}, **where)
        for slide in SLIDES[: 1 if quick else None]:
            if (
                not {(kind, Path(slide.path).name) for kind in (reading.READING, reading.FAITHFUL)}
                & done
            ):
                _measure_slide(records, data / slide.path, slide, quick, say)
                records.save(out)
    return records


def measure_pair(
    records: Records, pair: LookPair, studio: Studio, say: Say = silent
) -> dict[str, ByteArray]:
    """All figures of a pair; the result of each method.

    Raises:
        SlideError: there is no tissue in one of the pictures.
    """
    start, results = time.perf_counter(), {}
    masks = scores.structures(pair.source.rgb, pair.truth, pair.source.stains, pair.source.mpp)
    features = Features(pair.truth, masks[TISSUE], pair.source.stains, pair.source.mpp)
    texture, nuclei = features.texture(pair.truth), features.nuclei(pair.truth)
    edges = scores.gradient(pair.source.rgb)
    of_pair = records.at(kind=pair.kind, case=pair.case, method="pair")
    for part, mask in masks.items():
        of_pair.add({"share": float(mask.mean())}, part=part)
    of_pair.add({"tiles": len(features.tiles)})
    for method in METHODS:
        made = results[method] = studio.apply(method, pair)
        own = of_pair.at(method=method)
        for part, mask in masks.items():
            own.add(
                dict(zip((OD, LAB), scores.distances(made, pair.truth, mask), strict=True)),
                part=part,
            )
        own.add(
            {
                SSIM: scores.gradient_ssim(scores.gradient(made), edges),
                TEXTURE: drift(features.texture(made), texture),
                NUCLEAR: drift(features.nuclei(made), nuclei),
            }
        )
    say(f"  {pair.kind}, {pair.case}: {time.perf_counter() - start:.0f} s")
    return results


def _measure_slide(records: Records, path: Path, slide: Slide, quick: bool, say: Say) -> None:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-looks-") as folder:
        output = Path(folder) / "layers.ome.zarr"
        layers = reading.make_layers(path, slide.stains, output, slide.mpp)
        if slide.timed:
            most = QUICK_READS if quick else reading.MOST_READS
            reading.measure_reading(records, path, layers, slide.stains, most=most)
            reading.measure_self(records, path, layers)
        if slide.faithful:
            reading.measure_layers(records, path, layers)
    say(f"  {path.name}: {time.perf_counter() - start:.0f} s")
