"""Measure the references that come with the package.

    python tests/make_references.py DATA [OUT]

DATA is the folder of the real slides, OUT the folder of the references (default: the package's).
Each is the pooled look of public slides of several scanners, on neutral glass: the median of the
slides' glass, equal in all channels. Slides that show no glass have no say in it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import wsi_pgdips.looks
from wsi_pgdips import measure_slide_look, pool_looks, save_reference
from wsi_pgdips.looks.reference import Reference, triple

TRUTH_MPP = 0.74
ORGANS = ("brain", "breast", "colon", "kidney", "liver")
SCANNERS = ("hamamatsu", "leica", "zeiss")
# slide, and the mpp of those that state none
HE: tuple[tuple[str, float | None], ...] = (
    ("slides/BS9_HE2_40x_AT2.svs", None),
    ("slides/CMU-1-Small-Region.svs", None),
    ("slides/TCGA-CR-7395-01A-01-TS1.svs", 0.25),
    ("slides/ectopic_pancreas_HE_crop_40x_GT450.svs", None),
)
HDAB: tuple[tuple[str, float | None], ...] = (
    ("slides/metaplasia_trypsin_DAB_20x.svs", None),
    ("failing/dab_saturated.svs", None),
    ("failing/faint_ihc_mask.svs", None),
    ("scanners/OS-2-ndpi.ome.tif", None),
    ("scanners/OS-2-vsi.ome.tif", None),
    ("truth/Lung1_IHC.png", 0.25),
)


def multiscanner(data: Path) -> list[tuple[str, float | None]]:
    """The fields that three scanners took, with their mpp, which follows from the registration."""
    found = json.loads((data / "multiscanner" / "registration.json").read_text())
    out: list[tuple[str, float | None]] = []
    for name in (f"{organ}_{scanner}" for organ in ORGANS for scanner in SCANNERS):
        affine = np.array(found[name]["affine_xy_to_truth"])[:, :2]
        out.append((f"multiscanner/{name}.png", TRUTH_MPP * abs(np.linalg.det(affine)) ** 0.5))
    return out


def reference(data: Path, name: str, slides: list[tuple[str, float | None]]) -> Reference:
    """The pooled look of slides, on neutral glass."""
    looks = []
    for path, mpp in slides:
        options = {"mpp": "native"} if mpp is not None and mpp > 0.5 else {}
        look = measure_slide_look(data / path, stains=name, mpp_source=mpp, **options)
        print(f"{name}: {path} glass {look.background} {look.glass_measured}")
        looks.append(look)
    pooled = pool_looks(looks, name)
    glass = [np.mean(look.background or 0.0) for look in looks if look.glass_measured]
    neutral = float(np.median(glass))
    return replace(pooled, background=triple([neutral] * 3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    default = Path(wsi_pgdips.looks.__file__).parent / "references"
    parser.add_argument("out", type=Path, nargs="?", default=default)
    given = parser.parse_args()
    for name, slides in (("he", [*HE, *multiscanner(given.data)]), ("hdab", [*HDAB])):
        save_reference(reference(given.data, name, slides), given.out / f"{name}.json")
