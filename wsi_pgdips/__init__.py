"""Seam-free stain concentrations of whole slides by physics-guided deep image priors.

Where a docstring says "decision N", it means the entry of that number in ``docs/decisions.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.looks.files import load_reference
    from wsi_pgdips.looks.normalized_slide import NormalizedSlide
    from wsi_pgdips.pipeline.image import deconvolve_image
    from wsi_pgdips.pipeline.slide import deconvolve_slide

__version__ = "0.1.0"

__all__ = [
    "NormalizedSlide",
    "__version__",
    "deconvolve_image",
    "deconvolve_slide",
    "load_reference",
    "open_layers",
]

# loaded when first asked for: they bring torch and zarr
_HOMES = {
    "NormalizedSlide": "wsi_pgdips.looks.normalized_slide",
    "deconvolve_image": "wsi_pgdips.pipeline.image",
    "deconvolve_slide": "wsi_pgdips.pipeline.slide",
    "load_reference": "wsi_pgdips.looks.files",
    "open_layers": "wsi_pgdips.layers.reader",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
