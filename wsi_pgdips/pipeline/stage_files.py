"""The files that the stages of a run leave for the next ones: plan, prior, fits, maps and fields.

Each appears whole or not at all, so a file that is there marks its piece of the work as done.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.disk import load_arrays, save_array, save_arrays
from wsi_pgdips.geometry import Region
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.pipeline.record import TileFaults
from wsi_pgdips.records import Acquisition, BlockFit, Fields, FloatArray, SlidePrior, StainSet
from wsi_pgdips.slide.source import PyramidSource
from wsi_pgdips.stages.context import OVERVIEW_MPP, Context, planned_context
from wsi_pgdips.tiles.blocks import BlockPlan
from wsi_pgdips.tiles.tissue_map import TissueMap

# what lies in the files under the names of the records
_FIT = [f.name for f in fields(BlockFit) if f.name not in ("statistics", "concentration")]
_FIELDS = [f.name for f in fields(Fields) if f.name != "shrinkage"]
_PRIOR = [f.name for f in fields(SlidePrior) if f.name not in ("network", "acquisition")]
_STATISTICS, _NETWORK, _FAULTS = "statistics.", "network.", "faults"
_OPEN_MAPS = 12  # blocks whose maps stay mapped: a block and its neighbours


def save_plan(context: Context, path: Path) -> None:
    """Keep the tissue and glass that were found, so that workers need not search again."""
    t = context.tissue
    save_arrays(
        path,
        mask=t.mask,
        core=t.core,
        planned=context.planned,
        unreadable=_rows(context.source.unreadable),
        scale=np.float64(t.scale),
        flags=np.array(t.flags, dtype=np.str_),
        coverage=np.float64(t.coverage),
        artifact=t.artifact,
        left_out=np.array(list(t.left_out), dtype=np.str_),
        left_out_mm2=np.array(list(t.left_out.values()), np.float64),
        raised=np.zeros(0, np.float32) if t.raised is None else t.raised,
        background=context.background,
        b0=context.b0,
    )


def load_plan(
    source: PyramidSource, stains: StainSet, settings: ScientificSettings, path: Path
) -> Context:
    """Return the context that was planned; its tissue map lacks the glass."""
    a = load_arrays(path)
    nothing = np.zeros(a["mask"].shape, bool)
    tissue = TissueMap(
        mask=a["mask"],
        core=a["core"],
        glass=nothing,
        glass_od=np.zeros((*nothing.shape, 3), np.float32),
        scale=float(a["scale"]),
        shape=source.grid.shape,
        flags=tuple(a["flags"].tolist()),
        raised=a["raised"] if len(a["raised"]) else None,
        coverage=float(a["coverage"]),
        artifact=a["artifact"],
        left_out=dict(zip(a["left_out"].tolist(), a["left_out_mm2"].tolist(), strict=True)),
    )
    return planned_context(source, stains, settings, tissue, a["background"], a["b0"], a["planned"])


def sees_more(source: PyramidSource, path: Path) -> bool:
    """Return whether parts of the slide that could not be read for a plan can be read now."""
    unreadable = load_arrays(path, ("unreadable",))["unreadable"]
    if len(unreadable) == 0:
        return False
    source.overview(OVERVIEW_MPP)
    return not np.array_equal(unreadable, _rows(source.unreadable))


def _rows(regions: tuple[Region, ...]) -> npt.NDArray[np.int64]:
    return np.array([astuple(r) for r in regions], np.int64).reshape(-1, 4)


def save_prior(prior: SlidePrior, path: Path) -> None:
    save_arrays(
        path,
        **{name: np.asarray(getattr(prior, name)) for name in _PRIOR},
        **{f"{_NETWORK}{k}": v for k, v in prior.network.items()},
        acquisition=np.array(_acquisition_texts(prior.acquisition), dtype=np.str_),
    )


def load_prior(path: Path) -> SlidePrior:
    a = load_arrays(path)
    plain: dict[str, Any] = {name: a[name] if a[name].ndim else a[name].item() for name in _PRIOR}
    plain["flags"] = tuple(a["flags"].tolist())
    return SlidePrior(
        **plain, network=_named(a, _NETWORK), acquisition=_acquisition(a["acquisition"])
    )


def _named(arrays: dict[str, FloatArray], start: str) -> dict[str, FloatArray]:
    """The arrays whose names begin so, under the rest of their names."""
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def _acquisition(texts: npt.NDArray[np.str_]) -> Acquisition | None:
    if not len(texts):
        return None
    noise, quality, chroma, defocus, *coarse = (str(w) for w in texts)
    return Acquisition(
        float(noise), int(quality), chroma, float(defocus), tuple(float(c) for c in coarse)
    )


def _acquisition_texts(found: Acquisition | None) -> list[str]:
    if found is None:
        return []
    plain = (found.noise, found.quality, found.chroma, found.defocus)
    return [str(v) for v in (*plain, *found.coarse)]


def save_fit(fit: BlockFit, path: Path, maps: Path, faults: TileFaults | None = None) -> None:
    """Write the maps first, then the fit, since its file marks the block as fitted."""
    if fit.concentration is not None:
        save_array(maps, fit.concentration)
    save_arrays(
        path,
        **{name: getattr(fit, name) for name in _FIT},
        **{f"{_STATISTICS}{k}": v for k, v in fit.statistics.items()},
        **faults_array(faults or TileFaults()),
    )


def load_fit(path: Path, *, statistics: bool = True) -> BlockFit:
    """Return a block's fit without its maps, which ``MapFiles`` reads.

    Args:
        statistics: whether to load these too; they are most of the file.
    """
    a = load_arrays(path, None if statistics else _FIT)
    return BlockFit(**{name: a[name] for name in _FIT}, statistics=_named(a, _STATISTICS))


def faults_array(faults: TileFaults) -> dict[str, npt.NDArray[np.str_]]:
    """Return the faults of a block's tiles as an array beside the others of its file."""
    return {_FAULTS: np.array(json.dumps(faults.kinds), dtype=np.str_)}


def load_faults(path: Path) -> TileFaults:
    """Return the faults of a block's tiles, from its file of ``fit`` or ``render``."""
    with np.load(path, allow_pickle=False) as data:
        # a version that kept none may have written it
        return TileFaults(kinds=json.loads(str(data[_FAULTS])) if _FAULTS in data.files else ())


class FitFiles(Sequence[BlockFit]):
    """Fits of a slide's blocks, one in memory at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, i: int) -> BlockFit: ...

    @overload
    def __getitem__(self, i: slice) -> FitFiles: ...

    def __getitem__(self, i: int | slice) -> BlockFit | FitFiles:
        return FitFiles(self._paths[i]) if isinstance(i, slice) else load_fit(self._paths[i])


class MapFiles:
    """Maps of the tiles' own networks, mapped from the files of the blocks that own them."""

    def __init__(self, ledger: Ledger, plans: Sequence[BlockPlan]) -> None:
        self._ledger = ledger
        self._rows = {tile: ((p.by, p.bx), i) for p in plans for i, tile in enumerate(p.render)}
        self._block = functools.lru_cache(maxsize=_OPEN_MAPS)(self._mapped)

    def __call__(self, tile: tuple[int, int]) -> npt.NDArray[np.float16] | None:
        """Return (N, h, w) of a tile with its halo; None for a tile or block without maps."""
        if tile not in self._rows:
            return None
        block, row = self._rows[tile]
        maps = self._block(block)
        return None if maps is None else np.asarray(maps[row])

    def _mapped(self, block: Block) -> npt.NDArray[np.float16] | None:
        path = self._ledger.maps(block)
        return np.load(path, mmap_mode="r") if path.exists() else None


def save_fields(blended: Fields, slide_matrix: FloatArray, path: Path) -> None:
    save_arrays(
        path,
        slide_matrix=slide_matrix,
        shrinkage_names=np.array(list(blended.shrinkage), dtype=np.str_),
        shrinkage=np.array(list(blended.shrinkage.values()), np.float64),
        **{name: getattr(blended, name) for name in _FIELDS},
    )


def load_fields(path: Path) -> tuple[Fields, FloatArray]:
    """Return the fields over the slide, and its (N, 3) stain matrix."""
    a = load_arrays(path)
    shrinkage = dict(zip(a["shrinkage_names"].tolist(), a["shrinkage"].tolist(), strict=True))
    return Fields(**{name: a[name] for name in _FIELDS}, shrinkage=shrinkage), a["slide_matrix"]
