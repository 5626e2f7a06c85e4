"""Other normalisers on the fields of several scanners: slide by slide, and with pooled pixels.

tiatoolbox's formulas with the statistics of source and target as arguments, so that those of the
source may come from other slides of its scanner. tiatoolbox writes into what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.looks.multiscanner import ORGANS, SCANNERS, TRUTH, Key, MultiScanner
from benchmarks.looks.scanner_looks import Trial, others
from benchmarks.quiet import quiet
from wsi_pgdips.records import ByteArray

REINHARD, PCA = "reinhard", "macenko-pca"
TIATOOLBOX = ("macenko", "vahadane", REINHARD)
POOLED_TARGET, POOLED = "pooled target", "pooled"
_EVERY = 3  # of the pixels of a pool one in so many, in both directions
_TOP = 99.0  # percentile of amounts, of tiatoolbox

Statistics = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def installed() -> tuple[str, ...]:
    """Rivals that are there: tiatoolbox's, and macenko-pca if it is installed."""
    return (*TIATOOLBOX, *((PCA,) if find_spec("macenko_pca") else ()))


@dataclass(frozen=True, eq=False)
class Rival:
    """A normaliser.

    Args:
        name: one of :func:`installed`.
    """

    name: str
    _measured: dict[object, Statistics] = field(default_factory=dict)

    def statistics(self, key: object, pixels: Callable[[], ByteArray]) -> Statistics:
        """Means and deviations of LAB (Reinhard), or vectors and 99th percentiles of amounts.

        Args:
            key: of the pixels; what is measured already is not measured again.
        """
        if key not in self._measured:
            self._measured[key] = self._statistics(pixels())
        return self._measured[key]

    def apply(self, rgb: ByteArray, source: Statistics, target: Statistics) -> ByteArray:
        """A picture from the statistics of its source to those of a target."""
        tool = self._tool
        if self.name == REINHARD:
            planes = [
                (plane - mean) * (there_std / std) + there_mean
                for plane, mean, std, there_mean, there_std in zip(
                    tool.lab_split(rgb.copy()), *source, *target, strict=True
                )
            ]
            return np.asarray(tool.merge_back(*planes), np.uint8)
        amounts = tool.get_concentrations(rgb.copy(), source[0]) * (target[1] / source[1])
        light = np.clip(255 * np.exp(-amounts @ target[0]), 0, 255)
        return np.asarray(light.reshape(rgb.shape), np.uint8)

    def _statistics(self, rgb: ByteArray) -> Statistics:
        tool = self._tool
        with quiet():
            if self.name == REINHARD:
                means, deviations = tool.get_mean_std(rgb.copy())
                return np.asarray(means), np.asarray(deviations)
            if self.name == PCA:
                matrix = _pca_vectors(rgb)
            else:
                matrix = np.asarray(tool.extractor.get_stain_matrix(rgb.copy()), np.float64)
            amounts = tool.get_concentrations(rgb.copy(), matrix)
        return matrix, np.percentile(amounts, _TOP, axis=0)

    @property
    def _tool(self) -> Any:
        """tiatoolbox's normaliser; that of Macenko for the formula of macenko-pca."""
        with quiet():
            from tiatoolbox.tools.stainnorm import get_normalizer

            return get_normalizer("macenko" if self.name == PCA else self.name)


def rival_trials(fields: MultiScanner) -> Iterator[Trial]:
    """All scans under all rivals: to one other truth, to pooled ones, and from a pooled source."""
    for name in installed():
        rival = Rival(name)
        for scanner in SCANNERS:
            for organ in ORGANS:
                rest, at = others(organ), (organ, scanner)
                for other in rest:
                    make = partial(_normalised, rival, fields, at, [organ], [other])
                    yield Trial(name, *at, make, other)
                for how, group in ((POOLED_TARGET, [organ]), (POOLED, rest)):
                    make = partial(_normalised, rival, fields, at, group, rest)
                    yield Trial(f"{name}, {how}", *at, make)


def _normalised(
    rival: Rival, fields: MultiScanner, at: Key, group: Sequence[str], target: Sequence[str]
) -> ByteArray:
    scanner = at[1]
    statistics = [
        rival.statistics((where, *organs), partial(_pixels, fields, where, organs))
        for where, organs in ((scanner, group), (TRUTH, target))
    ]
    return rival.apply(fields.scans[at].rgb, statistics[0], statistics[1])


def _pixels(fields: MultiScanner, scanner: str, organs: Sequence[str]) -> ByteArray:
    """A picture of one field, or pixels of several as one picture."""
    pictures = [
        fields.truths[organ] if scanner == TRUTH else fields.scans[organ, scanner].rgb
        for organ in organs
    ]
    if len(pictures) == 1:
        return pictures[0]
    return np.concatenate([rgb[::_EVERY, ::_EVERY].reshape(-1, 1, 3) for rgb in pictures])


def _pca_vectors(rgb: ByteArray) -> npt.NDArray[np.float64]:
    """Rows of hematoxylin and eosin by macenko-pca, which takes glass for 256."""
    from tiatoolbox.tools.stainextract import h_and_e_in_right_order

    package = import_module("macenko_pca")
    found = np.asarray(package.rgb_separate_stains_macenko_pca(rgb.astype(np.float64)), np.float64)
    vectors = [v if v.sum() > 0 else -v for v in found.T[:2]]
    return np.asarray(h_and_e_in_right_order(*vectors), np.float64)
