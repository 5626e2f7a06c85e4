"""The user's own masks and regions, from PNG and GeoJSON, on the grid of the overview."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import OutputGrid
from wsi_pgdips.records import BoolArray

ASPECT_TOLERANCE = 0.01
Ring: TypeAlias = list[tuple[float, float]]  # (x, y) as in GeoJSON
_JSON_ENDINGS = (".geojson", ".json")


def file_digest(path: Path) -> str:
    """The hex SHA-256 of a file, for provenance.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(
            "the file cannot be read", where=path, found=error.strerror or error
        ) from None


def load_mask(path: Path, grid: OutputGrid, shape: tuple[int, int], scale: float) -> BoolArray:
    """Load the tissue on the overview from a PNG (nonzero is tissue) or a GeoJSON file.

    Args:
        path: ``.png`` of any size that shows the whole slide, or ``.geojson``/``.json`` with
            polygons in level-0 pixels (x, y).
        grid: the output grid. shape: (H, W) of the overview. scale: output pixels per its pixel.

    Returns:
        (H, W) bool.

    Raises:
        SettingsError: the file is unreadable, has another format or aspect ratio, or marks no pixel
            of the slide.
    """
    ending = path.suffix.lower()
    if ending in _JSON_ENDINGS:
        return _load_geojson(path, grid, shape, scale, "--mask")
    if ending == ".png":
        return _load_png(path, grid, shape, scale)
    raise SettingsError(
        "the mask has an unknown format",
        expected=".png, .geojson or .json",
        found=ending or "a name without an ending",
        where=path,
    )


def load_roi(path: Path, grid: OutputGrid, shape: tuple[int, int], scale: float) -> BoolArray:
    """Load a region of interest, (H, W) bool, from GeoJSON; arguments as for :func:`load_mask`."""
    return _load_geojson(path, grid, shape, scale, "--roi")


def _load_png(path: Path, grid: OutputGrid, shape: tuple[int, int], scale: float) -> BoolArray:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # a mask of the slide's own size is large, and the user trusts it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SettingsError(
            "the mask image cannot be read", expected="a PNG", found=error, where=path
        ) from None
    if pixels.ndim == 3:
        channels = pixels.shape[2]
        colour = pixels[..., : channels - 1] if channels in (2, 4) else pixels
        nonzero = (colour != 0).any(2)
        if channels in (2, 4):
            nonzero &= pixels[..., -1] != 0
    else:
        nonzero = pixels != 0
    height, width = nonzero.shape
    height_l0, width_l0 = grid.shape_l0
    if abs(width / height / (width_l0 / height_l0) - 1) > ASPECT_TOLERANCE:
        raise SettingsError(
            "the mask does not have the slide's aspect ratio",
            expected=f"the ratio of {height_l0} x {width_l0} (height x width), within 1 %",
            found=f"{height} x {width}",
            where=path,
        )
    # the overview may end by a fraction of a pixel before or after the slide
    step_y = scale * grid.factor * height / height_l0
    step_x = scale * grid.factor * width / width_l0
    box = (0, 0, min(shape[1] * step_x, width), min(shape[0] * step_y, height))
    grey = Image.fromarray(nonzero.astype(np.uint8) * 255)
    scaled = grey.resize((shape[1], shape[0]), Image.Resampling.BOX, box=box)
    out = np.asarray(scaled) >= 128
    _refuse_empty(out, path, "pixels other than zero")
    return out


def _load_geojson(
    path: Path, grid: OutputGrid, shape: tuple[int, int], scale: float, option: str
) -> BoolArray:
    from PIL import Image, ImageDraw

    polygons = list(_polygons(_parse(path, option), path))
    if not polygons:
        raise SettingsError(
            "the GeoJSON file holds no area",
            expected="Polygon or MultiPolygon geometries in level-0 pixels (x, y)",
            where=path,
        )
    factor = scale * grid.factor
    out = np.zeros(shape, bool)
    for rings in polygons:
        layer = Image.new("1", (shape[1], shape[0]), 0)
        draw = ImageDraw.Draw(layer)
        for i, ring in enumerate(rings):
            # whole numbers are pixel centres in PIL, but pixel corners in GeoJSON
            draw.polygon([(x / factor - 0.5, y / factor - 0.5) for x, y in ring], fill=int(i == 0))
        out |= np.asarray(layer, bool)
    _refuse_empty(out, path, f"polygons within {grid.shape_l0[1]} x {grid.shape_l0[0]} pixels")
    return out


def _refuse_empty(mask: BoolArray, path: Path, expected: str) -> None:
    if not mask.any():
        raise SettingsError(
            "the file marks nothing on this slide",
            expected=expected,
            where=path,
            hint="give coordinates in level-0 pixels (x, y), not in micrometres",
        )


def _parse(path: Path, option: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"the file of {option} cannot be read", where=path, found=error.strerror or error
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"the file of {option} is not valid GeoJSON", where=path, found=error
        ) from None


def _polygons(node: Any, path: Path) -> Iterator[list[Ring]]:
    """Yield the polygons of a GeoJSON object, each as its rings (outline, then holes)."""
    if not isinstance(node, dict):
        raise _invalid(path, "a GeoJSON object", type(node).__name__)
    kind = node.get("type")
    if kind == "FeatureCollection":
        for feature in _items(node.get("features"), path):
            yield from _polygons(feature, path)
    elif kind == "GeometryCollection":
        for geometry in _items(node.get("geometries"), path):
            yield from _polygons(geometry, path)
    elif kind == "Feature":
        if node.get("geometry") is not None:
            yield from _polygons(node["geometry"], path)
    elif kind == "Polygon":
        yield _rings(node.get("coordinates"), path)
    elif kind == "MultiPolygon":
        for part in _items(node.get("coordinates"), path):
            yield _rings(part, path)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise _invalid(path, "a GeoJSON type", repr(kind))


def _rings(coordinates: Any, path: Path) -> list[Ring]:
    rings = []
    for ring in _items(coordinates, path):
        points = [_point(p, path) for p in _items(ring, path)]
        if len(points) < 3:
            raise _invalid(path, "rings of at least 3 points", f"{len(points)} points")
        rings.append(points)
    if not rings:
        raise _invalid(path, "a polygon with an outline", "no ring")
    return rings


def _point(value: Any, path: Path) -> tuple[float, float]:
    if (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value[:2])
    ):
        return float(value[0]), float(value[1])
    raise _invalid(path, "positions [x, y] of finite numbers", repr(value))


def _items(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise _invalid(path, "a list", type(value).__name__)
    return value


def _invalid(path: Path, expected: str, found: str) -> SettingsError:
    return SettingsError(
        "the GeoJSON file has an invalid structure",
        expected=expected,
        found=found,
        where=path,
    )
