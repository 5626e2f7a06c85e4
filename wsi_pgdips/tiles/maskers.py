"""The tissue maskers of tiatoolbox, without the rest of its package."""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.records import BoolArray, ByteArray


def dark_mask(rgb: ByteArray, masker: str, mpp: float) -> BoolArray:
    """Find tissue with one of tiatoolbox's maskers.

    Args:
        rgb: (H, W, 3) uint8 overview. masker: ``otsu`` or ``morphological``.
        mpp: micrometres per pixel of the overview.

    Returns:
        (H, W) bool.
    """
    tools = _tissuemask()
    tool = tools.OtsuTissueMasker() if masker == "otsu" else tools.MorphologicalMasker(mpp=mpp)
    images = np.ascontiguousarray(rgb)[None]  # (1, H, W, 3)
    tool.fit(images)
    # Otsu's threshold is the darker class's last grey level, but the maskers compare with `<`
    tool.threshold = int(tool.threshold) + 1  # an int: 255 + 1, for a white overview, exceeds uint8
    return np.asarray(tool.transform(images)[0], bool)


@functools.cache
def _tissuemask() -> Any:
    """Load ``tiatoolbox.tools.tissuemask`` without the rest of its package.

    The rest (graphs, registration, models) is not needed and takes some eight seconds to import.
    """
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
    """Undo the side effects of importing tiatoolbox: warnings, and all logs sent to stdout."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            # an unclosed file (tiatoolbox), deprecations (defusedxml), missing Tensorflow (umap);
            # SimpleITK crashes the interpreter if its deprecation warning is an error
            for category in (ResourceWarning, DeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
