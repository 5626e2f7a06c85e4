"""The benchmark of looks: pairs of pictures under all methods, and a normalised slide as a file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.looks.features import Features, drift
from benchmarks.looks.masks import structures
from benchmarks.looks.methods import Studio
from benchmarks.looks.pairs import SCANNER_MPP, LookPair, pairs
from benchmarks.looks.plots import SHOWN as DRAWN
from benchmarks.looks.plots import Panel, panel
from benchmarks.looks.reading import (
    MOST_READS,
    make_layers,
    measure_layers,
    measure_reading,
    measure_self,
)
from benchmarks.looks.records import (
    FAITHFUL,
    LAB,
    METHODS,
    NUCLEAR,
    OD,
    READING,
    REAL,
    SSIM,
    TEXTURE,
    Looks,
    load_looks,
    save_looks,
)
from benchmarks.looks.scores import distances, gradient, gradient_ssim
from benchmarks.machine import device_name
from benchmarks.speed.records import check_folder
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.looks.distance import TISSUE
from wsi_pgdips.records import ByteArray

Say = Callable[[str], None]
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


@dataclass(frozen=True)
class LooksRequest:
    """What is to be measured.

    Attributes:
        out: file of records. data: folder with ``slides/`` and ``scanners/``, or None for a
            phantom alone. quick: the real pair, one simulated pair and one slide.
        keep: the records that ``out`` holds, and measure the rest.
    """

    out: Path
    data: Path | None = None
    quick: bool = False
    keep: bool = False


def run_looks(request: LooksRequest, say: Say = lambda line: None) -> tuple[Looks, list[Panel]]:
    """Measure; the file is rewritten after each pair. Also the rows of the figure.

    Raises:
        SettingsError: no such folder, or kept records that cannot be read.
        SlideError: a slide cannot be read. OutputError: the results cannot be written.
    """
    check_folder(request.out)
    if request.data is not None and not (request.data / "slides").is_dir():
        raise SettingsError(
            "no such folder of data", expected="a folder with slides/", found=request.data
        )
    kept = load_looks(request.out) if request.keep and request.out.exists() else []
    looks, panels = Looks(kept), list[Panel]()
    done = {(r["kind"], r["case"]) for r in kept}
    studio = Studio("fast" if request.quick else "balanced")
    for pair in pairs(request.data, quick=request.quick):
        first_real = pair.kind == REAL and not any(p.kind == REAL for p in panels)
        shown, results = first_real or pair.case == SHOWN, dict[str, ByteArray]()
        if (pair.kind, pair.case) not in done:
            results = measure_pair(looks, pair, studio, say)
            save_looks(request.out, looks)
        if shown:
            drawn = {m: results[m] if results else studio.apply(m, pair) for m in DRAWN}
            panels.append(panel(pair, drawn))
    if request.data is not None:
        if (READING, "machine") not in done:
            looks.add(READING, "machine", device_name("cpu"), "machine", float("nan"))
        for slide in SLIDES[: 1 if request.quick else None]:
            if {(kind, Path(slide.path).name) for kind in (READING, FAITHFUL)} & done:
                continue
            _measure_slide(looks, request.data / slide.path, slide, request.quick, say)
            save_looks(request.out, looks)
    return looks, panels


def measure_pair(
    looks: Looks, pair: LookPair, studio: Studio, say: Say = lambda line: None
) -> dict[str, ByteArray]:
    """All figures of a pair; the result of each method.

    Raises:
        SlideError: there is no tissue in one of the pictures.
    """
    start, results = time.perf_counter(), {}
    masks = structures(pair.source.rgb, pair.truth, pair.source.stains, pair.source.mpp)
    features = Features(pair.truth, masks[TISSUE], pair.source.stains, pair.source.mpp)
    texture, nuclei = features.texture(pair.truth), features.nuclei(pair.truth)
    edges = gradient(pair.source.rgb)
    for part, mask in masks.items():
        looks.add(pair.kind, pair.case, "pair", "share", float(mask.mean()), part)
    looks.add(pair.kind, pair.case, "pair", "tiles", len(features.tiles))
    for method in METHODS:
        made = results[method] = studio.apply(method, pair)
        for part, mask in masks.items():
            for metric, value in zip((OD, LAB), distances(made, pair.truth, mask), strict=True):
                looks.add(pair.kind, pair.case, method, metric, value, part)
        for metric, value in (
            (SSIM, gradient_ssim(gradient(made), edges)),
            (TEXTURE, drift(features.texture(made), texture)),
            (NUCLEAR, drift(features.nuclei(made), nuclei)),
        ):
            looks.add(pair.kind, pair.case, method, metric, value)
    say(f"  {pair.kind}, {pair.case}: {time.perf_counter() - start:.0f} s")
    return results


def _measure_slide(looks: Looks, path: Path, slide: Slide, quick: bool, say: Say) -> None:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-looks-") as folder:
        layers = make_layers(path, slide.stains, Path(folder) / "layers.ome.zarr", slide.mpp)
        if slide.timed:
            most = QUICK_READS if quick else MOST_READS
            measure_reading(looks, path, layers, slide.stains, most=most)
            measure_self(looks, path, layers)
        if slide.faithful:
            measure_layers(looks, path, layers)
    say(f"  {path.name}: {time.perf_counter() - start:.0f} s")
