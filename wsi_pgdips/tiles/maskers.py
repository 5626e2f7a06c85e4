"""tiatoolbox's tissue maskers, with their side effects kept away from the rest."""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_pgdips.records import BoolArray, ByteArray

Masker = Literal["otsu", "morphological"]
MASKERS = ("otsu", "morphological")


def dark_mask(rgb: ByteArray, masker: Masker, mpp: float) -> BoolArray:
    """(H, W) bool, what a masker takes for tissue on an (H, W, 3) uint8 overview of ``mpp`` um."""
    tools = _tissuemask()
    tool = tools.OtsuTissueMasker() if masker == "otsu" else tools.MorphologicalMasker(mpp=mpp)
    images = np.ascontiguousarray(rgb)[None]  # (1, H, W, 3)
    tool.fit(images)
    # Otsu's threshold is the darker class's last grey level, but the maskers compare by `<`
    tool.threshold = int(tool.threshold) + 1  # of a white overview it is 255, in eight bits
    return np.asarray(tool.transform(images)[0], bool)


@functools.cache
def _tissuemask() -> Any:
    """``tiatoolbox.tools.tissuemask`` without the package around it, which is not needed: graphs,
    registration and models, that take some eight seconds of every run to import."""
    with _quiet_import():
        import tiatoolbox

        file = Path(tiatoolbox.__file__).parent / "tools" / "tissuemask.py"
        spec = importlib.util.spec_from_file_location("tiatoolbox_tissuemask", file)
        if not file.is_file() or spec is None or spec.loader is None:
            from tiatoolbox.tools import tissuemask

            return tissuemask
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Importing tiatoolbox (3 s and more) warns, and sends the whole program's log to stdout."""
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
