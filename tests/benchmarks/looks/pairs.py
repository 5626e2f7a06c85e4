"""Pairs of pictures: one that is to look like another, and what it should then look like."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.looks.cameras import CAMERAS
from benchmarks.looks.scores import over_white
from benchmarks.quality import similarity
from wsi_pgdips.phantom.config import load_phantom_config
from wsi_pgdips.phantom.phantom import Phantom
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.slide.source import PyramidSource

REAL, SIMULATED, ELSEWHERE, PHANTOM = "real", "simulated", "elsewhere", "phantom"
KINDS = (REAL, SIMULATED, ELSEWHERE, PHANTOM)
SCANNER_MPP, MPP = 0.346, 0.5
SIDE, QUICK_SIDE = 1280, 768  # of a crop
PHANTOM_SIDE, QUICK_PHANTOM_SIDE = 1024, 512
SCANNERS = ("ndpi", "vsi")
ORIGINAL = "original"
DIRECTIONS = (("warm", ORIGINAL), (ORIGINAL, "dark"), ("flat", ORIGINAL), ("flat", "dark"))
_SEARCH_MPP = 8.0
_PALE, _BROWN = 215, 30  # bytes: least channel of glass, red less blue of DAB
# of a crop is tissue, where the slide has such a place: some glass stays
_LEAST, _MOST = 0.6, 0.85


# slides of DIR/slides whose crops are seen by simulated cameras, and their stains
SLIDES = {
    "CMU-1": ("CMU-1-Small-Region.svs", "he"),
    "BS9": ("BS9_HE2_40x_AT2.svs", "he"),
    "ectopic": ("ectopic_pancreas_HE_crop_40x_GT450.svs", "he"),
    "metaplasia": ("metaplasia_trypsin_DAB_20x.svs", "hdab"),
}
# vectors, amounts and glass of the phantom's other laboratory
_OTHER_MATRIX = ((0.55, 0.74, 0.39), (0.16, 0.93, 0.33))
_OTHER_AMOUNTS, _OTHER_GLASS = (1.3, 0.75), (0.06, 0.04, 0.09)


@dataclass(frozen=True, eq=False)
class Picture:
    """(H, W, 3) uint8 at some mpp, stained with a set of the library."""

    name: str
    rgb: ByteArray
    stains: str
    mpp: float


@dataclass(frozen=True, eq=False)
class LookPair:
    """A pair.

    Attributes:
        source: what is normalised. target: what the methods are shown.
        truth: (H, W, 3), the source's tissue in the target's look, in register with the source.
    """

    kind: str
    case: str
    source: Picture
    target: Picture
    truth: ByteArray


def pairs(data: Path | None, *, quick: bool = False) -> Iterator[LookPair]:
    """All pairs of the benchmark; without data the phantom alone.

    Raises:
        SlideError: a slide cannot be read.
    """
    if data is not None:
        yield from scanner_pairs(data / "scanners")
        for name in list(SLIDES)[: 1 if quick else None]:
            yield from simulated_pairs(data / "slides", name, quick=quick)
    yield from phantom_pairs(QUICK_PHANTOM_SIDE if quick else PHANTOM_SIDE)


def scanner_pairs(folder: Path) -> Iterator[LookPair]:
    """The field that two scanners have seen, both ways, in register by whole pixels."""
    rgb = []
    for name in SCANNERS:
        path = folder / f"OS-2-{name}.ome.tif"
        with contextlib.closing(open_source(path, mpp=SCANNER_MPP)) as source:
            rgb.append(source.read(0, 0, *source.grid.shape))
    h, w = (min(picture.shape[axis] for picture in rgb) for axis in (0, 1))
    planes = [picture[:h, :w].transpose(2, 0, 1) for picture in rgb]
    od = [similarity.scaled(over_white(picture[:h, :w]).mean(0)) for picture in rgb]
    planes = list(similarity.in_register(*planes, similarity.best_shift(*od)))  # type: ignore
    first, second = (
        Picture(f"OS-2-{name}", np.ascontiguousarray(p.transpose(1, 2, 0)), "hdab", SCANNER_MPP)
        for name, p in zip(SCANNERS, planes, strict=True)
    )
    for a, b in ((first, second), (second, first)):
        yield LookPair(REAL, f"{a.name} -> {b.name}", a, b, b.rgb)


def simulated_pairs(folder: Path, name: str, *, quick: bool = False) -> Iterator[LookPair]:
    """A crop of a slide through cameras; last, with another place of the slide as the target."""
    slide, stains = SLIDES[name]
    with contextlib.closing(open_source(folder / slide, mpp=MPP)) as source:
        rgb, elsewhere = crops(source, QUICK_SIDE if quick else SIDE, stains)
    seen = {ORIGINAL: Picture(name, rgb, stains, MPP)}
    for camera, made in CAMERAS.items():
        seen[camera] = Picture(f"{name}, {camera}", made.picture(rgb), stains, MPP)
    for a, b in DIRECTIONS[: 1 if quick else None]:
        yield LookPair(SIMULATED, f"{name}: {a} -> {b}", seen[a], seen[b], seen[b].rgb)
    if not quick:
        other = Picture(f"{name}, elsewhere", elsewhere, stains, MPP)
        case = f"{name}: warm -> original elsewhere"
        yield LookPair(ELSEWHERE, case, seen["warm"], other, rgb)


def crops(source: PyramidSource, side: int, stains: str) -> tuple[ByteArray, ByteArray]:
    """Two squares of a slide that do not overlap: most tissue (of DAB slides most DAB), and next.

    Args:
        source: the slide. side: of a square, output pixels.
    """
    rgb, scale = source.overview(_SEARCH_MPP)
    k = max(int(side / scale), 1)
    tissue = _boxes(rgb.min(-1) < _PALE, k)
    wanted = np.minimum(tissue, _MOST)
    if stains == "hdab":
        brown = _boxes(rgb[..., 0].astype(int) - rgb[..., 2] > _BROWN, k)
        wanted = np.where((tissue > _LEAST) & (tissue < _MOST), 0.5 + brown, brown)
    h, w = source.grid.shape
    found = []
    for _ in range(2):
        y, x = np.unravel_index(int(wanted.argmax()), wanted.shape)
        top, left = min(int(y * scale), h - side), min(int(x * scale), w - side)
        found.append(source.read(top, left, side, side))
        wanted[max(y - k, 0) : y + k + 1, max(x - k, 0) : x + k + 1] = -1
    return found[0], found[1]


def phantom_pairs(side: int) -> Iterator[LookPair]:
    """Synthetic tissue under two sets of S, M and B, both ways."""
    path = Path(__file__).parents[1] / "quality" / "cases" / "he.toml"
    config = load_phantom_config(path).model_copy(update={"shape": (side, side)})
    stains = tuple(
        s.model_copy(update={"amount": m})
        for s, m in zip(config.stains, _OTHER_AMOUNTS, strict=True)
    )
    changes = {"stains": stains, "true_stain_matrix": _OTHER_MATRIX, "background": _OTHER_GLASS}
    first, second = (
        Picture(name, Phantom.make(c).window(0, 0, side, side).rgb, "he", c.mpp)
        for name, c in (("phantom", config), ("phantom, other", config.model_copy(update=changes)))
    )
    for a, b in ((first, second), (second, first)):
        yield LookPair(PHANTOM, f"{a.name} -> {b.name}", a, b, b.rgb)


def _boxes(mask: BoolArray, side: int) -> FloatArray:
    """Share of a mask in every square of ``side``, by its top left corner."""
    total = np.pad(np.asarray(mask, np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    k = min(side, *(n for n in mask.shape))
    box = total[k:, k:] - total[:-k, k:] - total[k:, :-k] + total[:-k, :-k]
    return np.asarray(box / k**2, np.float32)
