"""Measure how much of what is stained a tissue mask holds, and how much glass.

    python tests/mask_coverage.py OUT.json SLIDE...

Written as JSON, for each slide: ``coverage``, the share of stained pixels that lie in the mask;
``glass``, the share of the undilated mask that is not stained (with filled holes, and with tissue
that is too pale to count as stained); ``mask``, its share of the scanned area; and what the mask
says of itself, ``own_coverage`` and ``left_out`` in mm2. A pixel of the layers' level 2 is stained
if the mean OD sum over 9 x 9 of them exceeds 0.05, relative to white, the 99th percentile of each
channel. Fill and ink have no part in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import Artifact
from wsi_pgdips.slide.reader import fallback_mpp, open_source
from wsi_pgdips.tiles.tissue import find_tissue

STAINED_OD, WINDOW = 0.05, 9
SILENT_MPP = 0.25  # of files that state none


def measure(path: Path) -> dict[str, Any]:
    """Measure the default mask of one slide; see the module.

    Raises:
        WsiPgdipsError: the slide cannot be read, or has no tissue.
    """
    source = open_source(path, mpp_source=fallback_mpp(path, SILENT_MPP))
    tissue = find_tissue(source)
    rgb, scale = source.overview(4 * source.grid.mpp)
    scanned = (rgb.min(2) < 254) & (rgb.max(2) > 8)
    if tissue.artifact.size:  # ink is not tissue
        scanned &= on_grid(tissue.artifact, scanned.shape, tissue.scale / scale) != Artifact.INK
    od = rgb_to_od(rgb)
    above = (od - np.percentile(od[scanned], 1, axis=0)).sum(2)
    total = ndimage.uniform_filter(np.where(scanned, above, 0.0), WINDOW)
    share = ndimage.uniform_filter(scanned.astype(float), WINDOW)
    mean = np.divide(total, share, out=np.zeros_like(total), where=scanned)
    mask, core = (
        on_grid(a, scanned.shape, tissue.scale / scale) for a in (tissue.mask, tissue.core)
    )
    stained = scanned & (mean > STAINED_OD)
    return {
        "coverage": round(float(mask[stained].mean()), 4),
        "glass": round(float((~stained)[core & scanned].mean()), 4),
        "mask": round(float(mask[scanned].mean()), 4),
        "own_coverage": getattr(tissue, "coverage", None),
        "left_out": getattr(tissue, "left_out", None),
        "flags": list(tissue.flags),
    }


def on_grid(mask: np.ndarray, shape: tuple[int, int], ratio: float) -> np.ndarray:
    """Sample a coarse (h, w) mask at the pixels of a finer grid."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) / ratio).astype(int), m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    )
    return np.asarray(mask[np.ix_(rows, columns)])


def main() -> None:
    out, *slides = map(Path, sys.argv[1:])
    found = {}
    for path in slides:
        try:
            found[path.name] = measure(path)
        except WsiPgdipsError as error:
            found[path.name] = {"refused": error.message, "found": str(error.found)}
        print(path.name, found[path.name], flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
