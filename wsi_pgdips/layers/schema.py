"""The metadata of the layers as JSON-ready dicts: OME-Zarr 0.5, and our own key beside ``ome``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import numpy as np

from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.records import Artifact, SlidePrior, StainSet

Json = dict[str, Any]

SCHEMA_VERSION = 1
OME_VERSION = "0.5"
OWN_KEY = "wsi_pgdips"
SCALE_FACTOR = 1e-3  # OD per count
FILL = 0  # "not measured" in every uint16 array
CODE_MAX = 65535
SIGNED_ZERO = 32768  # code of a residual of 0 OD
WINDOW_END = 2000  # 2 OD: the same window for all slides, so that they can be compared by eye
SIGNED_WINDOW = (SIGNED_ZERO - 300, SIGNED_ZERO + 300)

TISSUE = "labels/tissue"
ARTIFACT = "labels/artifact"
RESIDUAL_RMS = "qc/residual"
RESIDUAL = "residual"

# value, class and colour of each label
_TISSUE_CLASSES = ((1, "tissue", [0, 160, 120, 96]),)
_ARTIFACT_CLASSES = (
    (int(Artifact.FILL), "fill", [128, 128, 128, 128]),
    (int(Artifact.INK), "ink", [0, 114, 178, 160]),
    (int(Artifact.FOREIGN), "foreign", [230, 159, 0, 200]),
    (int(Artifact.SATURATED), "saturated", [204, 121, 167, 160]),
)
_PRIOR_VALUES = (
    *("stain_matrix", "spectral_correction", "background", "presence", "noise_od"),
    *("pooled_noise_od", "measured", "prior_weight", "flags", "loss"),
)


def ome_image(grid: OutputGrid, stains: StainSet, name: str) -> Json:
    """The ``ome`` value of the root: one channel per stain on all levels of the grid."""
    return {
        "version": OME_VERSION,
        "multiscales": [
            _multiscale(
                grid,
                name,
                "cyx",
                range(grid.n_levels),
                kind="mean",
                description="2x2 mean over measured pixels; 0 is not measured",
            )
        ],
        "omero": _omero(stains.labels, stains.colors, (0, WINDOW_END)),
    }


def ome_labels() -> Json:
    """The ``ome`` value of the ``labels`` group."""
    return {"version": OME_VERSION, "labels": ["tissue", "artifact"]}


def ome_label(grid: OutputGrid, path: str) -> Json:
    """The ``ome`` value of a label, ``TISSUE`` or ``ARTIFACT``, with the levels of the image."""
    name = path.rpartition("/")[2]
    classes = _TISSUE_CLASSES if path == TISSUE else _ARTIFACT_CLASSES
    levels = range(grid.n_levels)
    return {
        "version": OME_VERSION,
        "multiscales": [
            _multiscale(grid, name, "yx", levels, kind="max", description="2x2 maximum")
        ],
        "image-label": {
            "colors": [{"label-value": value, "rgba": rgba} for value, _, rgba in classes],
            "properties": [{"label-value": value, "class": label} for value, label, _ in classes],
            "source": {"image": "../../"},
        },
    }


def ome_residual_rms(grid: OutputGrid) -> Json:
    """The ``ome`` value of ``qc/residual``: the image's levels from ``residual_level`` up."""
    levels = range(residual_level(grid), grid.n_levels)
    text = "root of the mean squared residual OD over measured pixels; 0 is not measured"
    return {
        "version": OME_VERSION,
        "multiscales": [
            _multiscale(grid, "residual_rms", "yx", levels, kind="rms", description=text)
        ],
    }


def ome_residual(grid: OutputGrid) -> Json:
    """The ``ome`` value of ``residual``: signed OD of r, g, b at level 0."""
    text = f"OD - B - q S; code {SIGNED_ZERO} is 0 OD, 0 is not measured"
    return {
        "version": OME_VERSION,
        "multiscales": [
            _multiscale(grid, "residual", "cyx", range(1), kind="none", description=text)
        ],
        "omero": _omero(
            ("Residual R", "Residual G", "Residual B"),
            ("FF0000", "00FF00", "0000FF"),
            SIGNED_WINDOW,
        ),
    }


def residual_level(grid: OutputGrid) -> int:
    """First level of ``qc/residual``: the coarsest a block owns, 3 for blocks of 4096."""
    return grid.owned_levels - 1


def od_attributes(*, signed: bool = False) -> Json:
    """CF-style attributes of a uint16 array: OD = code * scale_factor + add_offset."""
    return {
        "scale_factor": SCALE_FACTOR,
        "add_offset": -SIGNED_ZERO * SCALE_FACTOR if signed else 0.0,
        "_FillValue": FILL,
        "units": "optical density",
    }


def own_block(grid: OutputGrid, stains: StainSet) -> Json:
    """The part of our own key that readers need: schema version, grid, and stains."""
    return {
        "schema": SCHEMA_VERSION,
        "grid": {
            "shape_l0": list(grid.shape_l0),
            "factor": grid.factor,
            "mpp": grid.mpp,
            "tile": grid.tile,
            "block": grid.block,
        },
        "stains": {
            "name": stains.name,
            "labels": list(stains.labels),
            "colors": list(stains.colors),
            "library_matrix": [list(row) for row in stains.matrix],
            "library_source": stains.source,
        },
        "encoding": {"scale_factor": SCALE_FACTOR, "fill": FILL, "unit": "optical density"},
    }


def provenance_block(
    *,
    software: Mapping[str, str],
    settings: Mapping[str, Any],
    slide: Mapping[str, Any],
    prior: SlidePrior | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Json:
    """The provenance of the layers, for ``write_metadata({OWN_KEY: ...})``.

    It is the same on every machine.

    Args:
        software: name -> version.
        settings: the scientific settings, seed included, with the content of files in place of
            their paths (``stages.context.identity``).
        slide: the slide's metadata (``SlideMeta`` as a dict), nothing personal.
        prior: the slide's S0, M0, B0, presence thresholds, noise and Lambda.
        extra: anything else that does not differ from run to run.
    """
    block: Json = {
        "software": dict(software),
        "settings": dict(settings),
        "seeds": {
            "seed": settings.get("seed"),
            "tile": "sha256 of 'identity:ty:tx:identity', first 63 bits",
        },
        "slide": dict(slide),
    }
    if prior is not None:
        acquisition = None if prior.acquisition is None else asdict(prior.acquisition)
        block["prior"] = {name: getattr(prior, name) for name in _PRIOR_VALUES}
        block["prior"]["acquisition"] = acquisition
    block.update(extra or {})
    clean: Json = to_json(block)
    return clean


def to_json(value: Any) -> Any:
    """Convert to JSON values: arrays to lists, numpy scalars to Python's, NaN and infinity to None.

    A path is reduced to its last part, because the layers must not hold a machine's folders.
    """
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [to_json(v) for v in items]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, PurePath):
        return value.name
    return value


def _multiscale(
    grid: OutputGrid, name: str, axes: str, levels: Sequence[int], *, kind: str, description: str
) -> Json:
    n_other = len(axes) - 2
    return {
        "name": name,
        "type": kind,
        "axes": [
            {"name": a, "type": "channel"}
            if a == "c"
            else {"name": a, "type": "space", "unit": "micrometer"}
            for a in axes
        ],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * n_other + [grid.mpp * 2.0**level] * 2},
                    # the centre of a coarse pixel lies half-way between those it averages
                    {
                        "type": "translation",
                        "translation": [0.0] * n_other + [grid.mpp * (2**level - 1) / 2] * 2,
                    },
                ],
            }
            for level in levels
        ],
        "metadata": {"description": description},
    }


def _omero(labels: Sequence[str], colors: Sequence[str], window: tuple[int, int]) -> Json:
    return {
        "channels": [
            {
                "label": label,
                "color": color.lstrip("#").upper(),
                "active": True,
                "coefficient": 1,
                "family": "linear",
                "inverted": False,
                "window": {"min": 0, "max": CODE_MAX, "start": window[0], "end": window[1]},
            }
            for label, color in zip(labels, colors, strict=True)
        ],
        "rdefs": {"model": "color", "defaultT": 0, "defaultZ": 0},
    }
