"""Seam-free stain concentrations of whole slides by physics-guided deep image priors.

The names below are the public interface; ``wsi_pgdips.adapters`` has those for other libraries.
Where a docstring says "decision N", it means the entry of that number in ``docs/decisions.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_pgdips.cohort.runner import run_cohort
    from wsi_pgdips.export.normalize import normalize_slide
    from wsi_pgdips.export.rgb_zarr import export_rgb_zarr
    from wsi_pgdips.export.tiff import export_tiff
    from wsi_pgdips.export.tiles import export_tiles
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.looks.files import load_reference, save_reference
    from wsi_pgdips.looks.groups import pool_looks
    from wsi_pgdips.looks.normalized_slide import NormalizedSlide
    from wsi_pgdips.pipeline.estimate import estimate_slide
    from wsi_pgdips.pipeline.image import deconvolve_image
    from wsi_pgdips.pipeline.looks import measure_slide_look
    from wsi_pgdips.pipeline.references import fit_reference
    from wsi_pgdips.pipeline.slide import deconvolve_slide

__version__ = "0.1.0"

__all__ = [
    "NormalizedSlide",
    "__version__",
    "deconvolve_image",
    "deconvolve_slide",
    "estimate_slide",
    "export_rgb_zarr",
    "export_tiff",
    "export_tiles",
    "fit_reference",
    "load_reference",
    "measure_slide_look",
    "normalize_slide",
    "open_layers",
    "pool_looks",
    "run_cohort",
    "save_reference",
]

# imported when first asked for, because they bring torch, zarr and OpenSlide
_HOMES = {
    "NormalizedSlide": "wsi_pgdips.looks.normalized_slide",
    "deconvolve_image": "wsi_pgdips.pipeline.image",
    "deconvolve_slide": "wsi_pgdips.pipeline.slide",
    "estimate_slide": "wsi_pgdips.pipeline.estimate",
    "export_rgb_zarr": "wsi_pgdips.export.rgb_zarr",
    "export_tiff": "wsi_pgdips.export.tiff",
    "export_tiles": "wsi_pgdips.export.tiles",
    "fit_reference": "wsi_pgdips.pipeline.references",
    "load_reference": "wsi_pgdips.looks.files",
    "measure_slide_look": "wsi_pgdips.pipeline.looks",
    "normalize_slide": "wsi_pgdips.export.normalize",
    "open_layers": "wsi_pgdips.layers.reader",
    "pool_looks": "wsi_pgdips.looks.groups",
    "run_cohort": "wsi_pgdips.cohort.runner",
    "save_reference": "wsi_pgdips.looks.files",
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
