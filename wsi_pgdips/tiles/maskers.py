"""tiatoolbox's tissue maskers, with their side effects kept away from the rest."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np

from wsi_pgdips.records import BoolArray, ByteArray

Masker = Literal["otsu", "morphological"]
MASKERS = ("otsu", "morphological")


def dark_mask(rgb: ByteArray, masker: Masker, mpp: float) -> BoolArray:
    """(H, W) bool, what a masker takes for tissue on an (H, W, 3) uint8 overview of ``mpp`` um."""
    with _quiet_import():
        from tiatoolbox.tools.tissuemask import MorphologicalMasker, OtsuTissueMasker
    tool = OtsuTissueMasker() if masker == "otsu" else MorphologicalMasker(mpp=mpp)
    images = np.ascontiguousarray(rgb)[None]  # (1, H, W, 3)
    tool.fit(images)
    # Otsu's threshold is the darker class's last grey level, but the maskers compare by `<`
    tool.threshold = int(tool.threshold) + 1  # of a white overview it is 255, in eight bits
    return np.asarray(tool.transform(images)[0], bool)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Importing tiatoolbox (8 to 17 s) warns, and sends the whole program's log to stdout."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            # a file left open (tiatoolbox), deprecations (defusedxml), missing Tensorflow (umap);
            # SimpleITK crashes the interpreter where its deprecation is an error
            for category in (ResourceWarning, DeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
