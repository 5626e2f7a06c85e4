"""The same tissue twice, the tile grid shifted by half a tile: does the result depend on it?"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.cases import Case
from benchmarks.quality.methods import SHIFT, Method, attempts
from benchmarks.quality.picture import read_picture
from benchmarks.quality.product import Product
from benchmarks.quality.scene import open_scene
from benchmarks.quality.scoring import Floats, add_stains
from benchmarks.records import Records, Say, silent
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.phantom.make import richest_window
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, StainSet
from wsi_pgdips.slide.reader import open_source
from wsi_pgdips.slide.source import ArraySource
from wsi_pgdips.tiles.tissue import find_tissue

SLIDE_MPP = 0.5
SIDE = 3000  # largest part of a slide that is run, output pixels


def measure_shift(
    case: Case,
    seed: int | None,
    methods: Sequence[Method],
    *,
    shape: tuple[int, int] | None = None,
    tile: int = 512,
    say: Say = silent,
) -> Records:
    """RMS difference of q between two runs, per stain, on pixels that are tissue in both.

    Both have white fill above and to the left, one by a tile, the other by half of one: so that
    nothing but the place of the tile grid differs, not what borders on the glass.

    Args:
        seed: of a phantom; None for a slide. shape: of a phantom, in place of its description's.

    Raises:
        SettingsError: neither a phantom nor a slide. SlideError: the slide cannot be read.
    """
    rgb, mpp, stains = _pixels(case, seed, shape)
    records = Records("quality", {"case": case.name, "kind": case.kind, "seed": seed})
    runs = [_Filled(case.name, rgb, mpp, stains, tile, fill) for fill in (tile, tile // 2)]

    def difference(method: Method) -> Floats:
        (q, tissue), (q_moved, tissue_moved) = (run(method) for run in runs)
        both = tissue & tissue_moved
        off = (q_moved[:, both] - q[:, both]).astype(np.float64)
        return np.asarray(np.sqrt(np.nanmean(off**2, axis=1)))

    for name, rms, seconds in attempts(methods, SHIFT, stains.n, difference, records, say):
        own = records.at(method=name, seconds=seconds)
        add_stains(own, "rmse", stains.labels, rms)
        own.add({"rmse_joint": float(np.sqrt((rms**2).mean()))})
        say(f"  {name}: " + " ".join(f"{v:.4f}" for v in rms))
    return records


class _Filled:
    """Methods on the pixels with so many rows and columns of white above and to the left."""

    def __init__(
        self, name: str, rgb: ByteArray, mpp: float, stains: StainSet, tile: int, fill: int
    ) -> None:
        filled = np.pad(rgb, ((fill, 0), (fill, 0), (0, 0)), constant_values=255)
        self._source = ArraySource(filled, mpp=mpp, tile=tile, name=name)
        self._stains, self._own = stains, np.s_[..., fill:, fill:]
        self._product = Product(self._source, stains)

    def __call__(self, method: Method) -> tuple[FloatArray, BoolArray]:
        """q and tissue without the fill."""
        if method.family == "linear":
            picture = read_picture(self._source, self._stains.stain_matrix)
            return picture.result(method.name).maps[self._own], picture.tissue[self._own]
        done = self._product.result(method.name)
        assert done.tissue is not None
        return done.maps[self._own], done.tissue[self._own]


def _pixels(
    case: Case, seed: int | None, shape: tuple[int, int] | None
) -> tuple[ByteArray, float, StainSet]:
    """All pixels of a phantom, or the part of a slide that holds most tissue."""
    if case.description is not None:
        with (
            tempfile.TemporaryDirectory(prefix="phantom-") as name,
            open_scene(case, seed or 0, Path(name), shape) as scene,
        ):
            return scene.picture.rgb, scene.grid.mpp, scene.stains
    if case.slide is None or case.stains is None:
        raise SettingsError("a slide needs a file and its stains", where=case.name)
    with contextlib.closing(open_source(case.slide, mpp=SLIDE_MPP)) as source:
        part = richest_window(find_tissue(source), shape or (SIDE, SIDE))
        rgb = source.read(part.y, part.x, part.h, part.w)
        return rgb, source.grid.mpp, load_stains(case.stains)
