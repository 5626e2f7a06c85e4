"""Adapters to other libraries: TIAToolbox, torch and SpatialData.

* ``PgdipsNormalizer``: a stain normaliser with TIAToolbox's interface.
* ``NormalizedTiles``, ``StainAugment``: normalised tiles and stain augmentation for torch.
* ``to_spatialdata``: layers as a SpatialData object.

Each is imported when first asked for, together with the library that it adapts to.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_pgdips.adapters.augment import StainAugment
    from wsi_pgdips.adapters.dataset import NormalizedTiles
    from wsi_pgdips.adapters.normalizer import PgdipsNormalizer
    from wsi_pgdips.adapters.spatial import to_spatialdata

__all__ = ["NormalizedTiles", "PgdipsNormalizer", "StainAugment", "to_spatialdata"]

_HOMES = {
    "NormalizedTiles": "dataset",
    "PgdipsNormalizer": "normalizer",
    "StainAugment": "augment",
    "to_spatialdata": "spatial",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
