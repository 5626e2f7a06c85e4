"""A small slide with pigment on it, and layers whose verdict is another one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from support.cheap_runs import FAST, Slide, phantom
from wsi_pgdips.layers import provenance
from wsi_pgdips.layers.schema import OWN_KEY
from wsi_pgdips.records import BoolArray, ByteArray

SHAPE = (507, 702)  # ends within a square of 4x4, at both axes
OPTIONS = {**FAST, "calibration_tiles": 12, "mpp_source": 0.5}
PIGMENT = np.array([10, 140, 90]) / 245.0  # transmission


@dataclass(frozen=True)
class Specked:
    """The slide, its pixels, and (H, W) where its pigment lies; ``clean`` are those without."""

    slide: Slide
    rgb: ByteArray
    clean: ByteArray
    pigment: BoolArray


def specked_slide(folder: Path) -> Specked:
    """Lay grains of pigment on the tissue of a phantom, one of them in its last corner."""
    made = phantom(folder, "tiny", SHAPE)
    clean = tifffile.imread(made.path)
    pigment = np.zeros(SHAPE, bool)
    for y, x, side in ((160, 276, 16), (196, 300, 24), (140, 340, 12)):  # all in one square
        pigment[y : y + side, x : x + side] = True
    pigment[-7:, -10:] = True
    rgb = np.where(pigment[..., None], np.rint(clean * PIGMENT), clean).astype(np.uint8)
    path = folder / "specked.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(256, 256), compression="zlib")
    return Specked(Slide(path, made.stains), rgb, clean, pigment)


def judged_copy(layers: Path, output: Path, status: str, *reasons: str) -> Path:
    """Copy layers, and give them another verdict."""
    shutil.copytree(layers, output)
    verdict = {"status": status, "reasons": list(reasons)}
    provenance.write_metadata(output, {OWN_KEY: {"verdict": verdict}})
    return output
