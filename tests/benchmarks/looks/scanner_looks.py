"""Looks of the fields of several scanners, the pools made of them, and scans normalised by these.

No setting sees the truth of the field that it is scored on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from benchmarks.looks.multiscanner import ORGANS, SCANNERS, TRUTH, TRUTH_MPP, Key, MultiScanner
from wsi_pgdips import NormalizedSlide, deconvolve_image, pool_looks
from wsi_pgdips.adapters.normalizer import PgdipsNormalizer
from wsi_pgdips.looks.map_fit import fit_map
from wsi_pgdips.looks.pairs import PairPixels, read_pair
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.optics.physics import od_to_rgb, rgb_to_od
from wsi_pgdips.records import ByteArray

NONE, GLASS, SLIDE, SLIDE_ONE = "none", "glass", "slide", "slide, one target"
GROUP, NAMED, DISJOINT, PAIRS = "group", "group, tissues named", "disjoint organs", "map of pairs"
OURS = (GLASS, SLIDE, SLIDE_ONE, GROUP, NAMED, DISJOINT, PAIRS)
QUICK = (NONE, GLASS, SLIDE, GROUP)
DRAWS, SEED = 20, 0


@dataclass(frozen=True)
class Trial:
    """One scan under one setting.

    Attributes:
        part: which of several: the organ whose truth is the target, or a draw; else ``tissue``.
        make: the normalised scan, (h, w, 3) uint8.
    """

    method: str
    organ: str
    scanner: str
    make: Callable[[], ByteArray]
    part: str = "tissue"


@dataclass(frozen=True, eq=False)
class ScannerLooks:
    """Looks of scans and truths, each measured once.

    Args:
        folder: with the files of the scans, for the maps of pairs.
    """

    fields: MultiScanner
    folder: Path
    _looks: dict[Key, Reference] = field(default_factory=dict)
    _pools: dict[object, Reference] = field(default_factory=dict)

    def look(self, organ: str, scanner: str) -> Reference:
        """The look of a scan, or of a truth.

        Raises:
            SlideError: it shows no tissue.
        """
        if (organ, scanner) not in self._looks:
            if scanner == TRUTH:
                rgb, mpp = self.fields.truths[organ], TRUTH_MPP
            else:
                scan = self.fields.scans[organ, scanner]
                rgb, mpp = scan.rgb, scan.mpp
            found = deconvolve_image(rgb, "he", preset="fast", mpp=mpp).look
            assert found is not None  # of whole images it is always measured
            self._looks[organ, scanner] = found
        return self._looks[organ, scanner]

    def pool(self, scanner: str, organs: Sequence[str], *, named: bool = False) -> Reference:
        """The look of some organs on a scanner, or of their truths."""
        key = (scanner, tuple(organs), named)
        if key not in self._pools:
            looks = [self.look(organ, scanner) for organ in organs]
            tissue = list(organs) if named else None
            self._pools[key] = pool_looks(looks, scanner, tissue=tissue)
        return self._pools[key]

    def normalised(
        self, organ: str, scanner: str, target: Reference, group: Reference | None = None
    ) -> ByteArray:
        """A scan in the look of a target."""
        normaliser = PgdipsNormalizer(self.look(organ, scanner), group_look=group)
        normaliser.fit(target)
        return normaliser.transform(self.fields.scans[organ, scanner].rgb)

    def grouped(
        self,
        organ: str,
        scanner: str,
        group: Sequence[str],
        target: Sequence[str],
        *,
        named: bool = False,
    ) -> ByteArray:
        """A scan by a group and a target of other organs."""
        pools = (
            self.pool(where, organs, named=named)
            for where, organs in ((TRUTH, target), (scanner, group))
        )
        return self.normalised(organ, scanner, *pools)

    def moved_glass(self, organ: str, scanner: str) -> ByteArray:
        """A scan whose glass is that of the target, and nothing else is changed."""
        target = self.pool(TRUTH, others(organ))
        step = np.asarray(target.background) - np.asarray(self.look(organ, scanner).background)
        return od_to_rgb(rgb_to_od(self.fields.scans[organ, scanner].rgb) + step)

    def mapped(self, organ: str, scanner: str) -> ByteArray:
        """A scan by the map of the registered pairs of the other organs."""
        pairs = [self._pairs[other, scanner] for other in others(organ)]
        slide = NormalizedSlide(
            self._file(organ, scanner),
            look=self.look(organ, scanner),
            colour_map=fit_map(pairs, scanner),
        )
        found = slide.read_region((0, 0), 0, slide.dimensions)
        slide.close()
        return np.ascontiguousarray(np.asarray(found)[..., :3])

    @cached_property
    def _pairs(self) -> dict[Key, PairPixels]:
        """Pixels of each scan and its truth, in register by the package's own registration."""
        return {
            (organ, scanner): read_pair(self._file(organ, scanner), self._file(organ, TRUTH))
            for organ, scanner in self.fields.scans
        }

    def _file(self, organ: str, scanner: str) -> Path:
        return self.folder / f"{organ}_{scanner}.png"


def others(organ: str) -> list[str]:
    """All organs but one."""
    return [other for other in ORGANS if other != organ]


def draws() -> list[tuple[str, list[str], list[str]]]:
    """The organ that is scored, two organs for the group, and the other two for the target."""
    every = [
        (organ, [*group], [o for o in others(organ) if o not in group])
        for organ in ORGANS
        for group in itertools.combinations(others(organ), 2)
    ]
    drawn = np.random.default_rng(SEED).permutation(len(every))[:DRAWS]
    return [every[i] for i in drawn]


def our_trials(looks: ScannerLooks) -> Iterator[Trial]:
    """All scans under our settings, and left alone."""
    for scanner in SCANNERS:
        for organ in ORGANS:
            rest = others(organ)
            at = (organ, scanner)

            def trial(
                method: str,
                make: Callable[..., ByteArray],
                *given: object,
                part: str = "tissue",
                at: Key = at,
                **options: object,
            ) -> Trial:
                return Trial(method, *at, partial(make, *at, *given, **options), part)

            yield Trial(NONE, *at, partial(_alone, looks.fields, *at))
            yield trial(GLASS, looks.moved_glass)
            yield trial(SLIDE, partial(_single, looks), rest)
            for other in rest:
                yield trial(SLIDE_ONE, partial(_single, looks), [other], part=other)
            yield trial(GROUP, looks.grouped, rest, rest)
            yield trial(NAMED, looks.grouped, rest, rest, named=True)
            for k, (tested, group, target) in enumerate(draws()):
                if tested == organ:
                    yield trial(DISJOINT, looks.grouped, group, target, part=f"draw {k}")
            yield trial(PAIRS, looks.mapped)


def _alone(fields: MultiScanner, organ: str, scanner: str) -> ByteArray:
    return fields.scans[organ, scanner].rgb


def _single(looks: ScannerLooks, organ: str, scanner: str, target: Sequence[str]) -> ByteArray:
    return looks.normalised(organ, scanner, looks.pool(TRUTH, target))
