"""Three scanners that saw the same organs, and slides whose colours a look once made wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.looks.multiscanner import MultiScanner, load
from wsi_pgdips import (
    NormalizedSlide,
    deconvolve_image,
    load_reference,
    measure_slide_look,
    pool_looks,
)
from wsi_pgdips.adapters import PgdipsNormalizer
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.records import ByteArray

pytestmark = pytest.mark.realslide

ORGANS = ("brain", "breast", "colon", "kidney", "liver")
# scanner, and the most of doing nothing that the median organ keeps
BARS = {"hamamatsu": 0.6, "leica": 0.8, "zeiss": 0.6}
TRUTH = "truth"
Looks = dict[tuple[str, str], Reference]


@pytest.fixture(scope="module")
def data(data_dir: Path) -> MultiScanner:
    return load(data_dir)


@pytest.fixture(scope="module")
def looks(data: MultiScanner) -> Looks:
    def look(rgb: ByteArray, mpp: float) -> Reference:
        found = deconvolve_image(rgb, "he", "fast", mpp).look
        assert found is not None
        return found

    scans = {at: look(scan.rgb, scan.mpp) for at, scan in data.scans.items()}
    truths = {(organ, TRUTH): look(rgb, 0.74) for organ, rgb in data.truths.items()}
    return scans | truths


def ratios(
    data: MultiScanner, looks: Looks, scanner: str, target: Callable, group: Callable
) -> Iterator[float]:
    """What is left of the distance to the truth, for each organ."""
    for organ in ORGANS:
        normaliser = PgdipsNormalizer(looks[organ, scanner], group_look=group(organ))
        normaliser.fit(target(organ))
        rgb = data.scans[organ, scanner].rgb
        after = data.median_de(normaliser.transform(rgb), organ, scanner)
        yield after / data.median_de(rgb, organ, scanner)


def others(looks: Looks, scanner: str, *, named: bool = False) -> Callable[[str], Reference]:
    """The pooled look of all organs but one."""

    def pool(organ: str) -> Reference:
        left = [o for o in ORGANS if o != organ]
        return pool_looks([looks[o, scanner] for o in left], "others", left if named else None)

    return pool


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("scanner", BARS)
def test_a_group_brings_an_organ_that_it_lacks_nearer_to_the_truth(
    data: MultiScanner, looks: Looks, scanner: str, named: bool
) -> None:
    target, group = others(looks, TRUTH, named=named), others(looks, scanner, named=named)
    found = list(ratios(data, looks, scanner, target, group))
    assert np.median(found) <= BARS[scanner]
    assert max(found) <= 1.05


@pytest.mark.parametrize("scanner", BARS)
def test_one_slide_alone_is_not_made_worse(data: MultiScanner, looks: Looks, scanner: str) -> None:
    found = list(ratios(data, looks, scanner, others(looks, TRUTH), lambda _: None))
    assert np.median(found) <= 1
    assert max(found) <= 1.15


@pytest.mark.parametrize("scanner", BARS)
def test_groups_and_references_of_other_organs_do_no_harm(
    data: MultiScanner, looks: Looks, scanner: str
) -> None:
    def target(organ: str) -> Reference:
        return pool_looks([looks[o, TRUTH] for o in sorted({*ORGANS} - {organ})[:2]])

    def group(organ: str) -> Reference:
        return pool_looks([looks[o, scanner] for o in sorted({*ORGANS} - {organ})[2:]])

    found = list(ratios(data, looks, scanner, target, group))
    assert np.median(found) <= 1
    assert max(found) <= 1.1


def counts(rgb: ByteArray) -> tuple[float, float]:
    """Shares of pixels that are neon blue and green, of those that are no glass."""
    r, g, b = np.moveaxis(rgb.astype(int), -1, 0)
    dark = rgb.min(-1) < 225
    neon, green = dark & (b - r > 70), dark & (g - np.maximum(r, b) >= 10)
    return neon.sum() / dark.sum(), green.sum() / dark.sum()


@pytest.mark.parametrize(
    ("name", "stains"), [("hdab_neon.svs", "hdab"), ("pigment_green.svs", "he")]
)
def test_no_pixel_turns_neon_or_green(data_dir: Path, name: str, stains: str) -> None:
    path = data_dir / "failing" / name
    look = measure_slide_look(path, stains=stains)
    with closing(NormalizedSlide(path, look=look, reference=stains)) as ours:
        level = ours.get_best_level_for_downsample(4)
        size = ours.level_dimensions[level]
        rgb = np.asarray(ours.read_region((0, 0), level, size))[..., :3]
    assert max(counts(rgb)) <= 1e-4
    if look.glass_measured:
        light = 255 * 10 ** -np.array(load_reference(stains).background)
        clear = rgb[rgb.min(-1) >= 225]
        assert np.abs(np.median(clear, 0) - light).max() <= 3
