"""Two sheets of pictures: the fields of several scanners, and real slides, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.looks.multiscanner import ORGANS, SCANNERS, TRUTH, load, to_bytes
from benchmarks.looks.scanner_looks import ScannerLooks, others
from benchmarks.looks.scanner_run import FOLDER
from benchmarks.records import Say, save_figure, silent
from wsi_pgdips import NormalizedSlide, load_reference, measure_slide_look, pool_looks
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.records import ByteArray

SIDE = 400  # pixels of a region of a slide
MPP, DPI = 2.0, 80
CELL, SHOWN = (142, 114), (280, 280)  # width and height of a field and a region, as drawn
_SPACE = 0.3  # inches of titles


@dataclass(frozen=True)
class Region:
    """A place of a slide.

    Attributes:
        path: below DIR. centre: (x, y) at level 0. mpp: of level 0.
    """

    path: str
    reference: str
    centre: tuple[int, int]
    mpp: float


REGIONS = (
    Region("slides/CMU-1-Small-Region.svs", "he", (1130, 2070), 0.499),
    Region("slides/BS9_HE2_40x_AT2.svs", "he", (8000, 12900), 0.2528),
    Region("slides/ectopic_pancreas_HE_crop_40x_GT450.svs", "he", (10400, 6000), 0.263),
    Region("slides/metaplasia_trypsin_DAB_20x.svs", "hdab", (4190, 4360), 0.5044),
    Region("failing/pigment_green.svs", "he", (1200, 1580), 0.4406),
)


def draw(data: Path, folder: Path, say: Say = silent) -> None:
    """Write both sheets into a folder.

    Args:
        data: folder with ``multiscanner/``, ``slides/`` and ``failing/``.

    Raises:
        SettingsError, SlideError: a picture or slide cannot be read.
        OutputError: a sheet cannot be written.
    """
    draw_scanners(data, folder / "multiscanner.png")
    draw_slides(data, folder / "normalized.png", say)


def draw_scanners(data: Path, path: Path) -> None:
    """Rows of organs: each scanner's scan, the same after ``group``, and the truth."""
    fields = load(data)
    looks = ScannerLooks(fields, data / FOLDER)
    rows: dict[str, dict[str, ByteArray]] = {}
    for organ in ORGANS:
        shown = rows[organ] = {}
        for scanner in SCANNERS:
            rest = others(organ)
            pair = fields.scans[organ, scanner].rgb, looks.grouped(organ, scanner, rest, rest)
            for title, rgb in zip((scanner, f"{scanner}, after"), pair, strict=True):
                shown[title] = to_bytes(fields.warp(rgb, organ, scanner))
        shown[TRUTH] = fields.truths[organ]
    draw_rows(rows, path, CELL)


def draw_slides(data: Path, path: Path, say: Say = silent) -> None:
    """Rows of slides: a region before and after ``normalize --look --reference``.

    Last by the reference without the slide itself, with the same glass.
    """
    rows = {}
    for region in REGIONS:
        slide = data / region.path
        look = measure_slide_look(slide, stains=region.reference)
        shown = {
            "before": NormalizedSlide(slide, look=look, reference="self"),
            "after": NormalizedSlide(slide, look=look, reference=region.reference),
            "after, by the other slides": NormalizedSlide(
                slide, look=look, reference=without(load_reference(region.reference), look)
            ),
        }
        name = f"{slide.stem[:14]}, {region.reference}"
        rows[name] = {title: read(opened, region) for title, opened in shown.items()}
        for title, opened in shown.items():
            say(f"  {slide.name}, {title}: " + "; ".join(opened.account))
            opened.close()
    draw_rows(rows, path, SHOWN)


def without(reference: Reference, look: Reference) -> Reference:
    """A reference without the slide of a look: most slides shown belong to the package's own."""
    own = {source.get("checksum") for source in look.sources}
    kept = [
        m for m in reference.slides if not own & {source.get("checksum") for source in m.sources}
    ]
    return replace(pool_looks(kept, reference.name), background=reference.background)


def read(slide: NormalizedSlide, region: Region) -> ByteArray:
    """A region of 400 x 400 pixels of 2 um, from the level next finer."""
    level = slide.get_best_level_for_downsample(MPP / region.mpp)
    reach = SIDE * MPP / region.mpp  # at level 0
    size = round(reach / slide.level_downsamples[level])
    corner = [round(c - reach / 2) for c in region.centre]
    shown = slide.read_region((corner[0], corner[1]), level, (size, size)).convert("RGB")
    return np.asarray(shown.resize((SIDE, SIDE), Image.Resampling.BOX))


def draw_rows(rows: Mapping[str, Mapping[str, ByteArray]], path: Path, cell: Sequence[int]) -> None:
    """Draw pictures row by row, each made to fit a cell. Replaces the file.

    Args:
        rows: name of a row -> title -> (h, w, 3) uint8. cell: width and height, pixels.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    width, height = (side / DPI for side in cell)
    columns = max(map(len, rows.values()))
    size = (columns * width + _SPACE, len(rows) * height + _SPACE)
    figure = Figure(figsize=size, facecolor="white")
    axes = figure.subplots(
        len(rows),
        columns,
        squeeze=False,
        gridspec_kw={
            "left": _SPACE / size[0],
            "right": 0.995,
            "bottom": 0.005,
            "top": 1 - _SPACE / size[1],
            "wspace": 0.03,
            "hspace": 0.03,
        },
    )
    for k, (row, (name, pictures)) in enumerate(zip(axes, rows.items(), strict=True)):
        for ax, (title, rgb) in zip(row, pictures.items(), strict=True):
            small = Image.fromarray(rgb).resize((cell[0], cell[1]), Image.Resampling.BOX)
            ax.imshow(small, interpolation="antialiased")
            ax.set_xticks([])
            ax.set_yticks([])
            if k == 0:
                ax.set_title(title, fontsize=8)
        row[0].set_ylabel(name, fontsize=8)
    save_figure(figure, path, DPI)
