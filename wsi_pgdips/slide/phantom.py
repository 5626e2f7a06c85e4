"""Phantom slides: a synthetic slide that OpenSlide opens, with exact truth beside it.

Forward model (DESIGN section 1): OD = sum_n q_n S_n(x) + B(x), I = 255 * 10**-OD, then defocus,
noise, rounding and JPEG.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from scipy import ndimage

from wsi_pgdips.errors import OutputError, SlideError
from wsi_pgdips.optics.density import I0
from wsi_pgdips.optics.physics import unit_rows
from wsi_pgdips.records import ByteArray, FloatArray
from wsi_pgdips.slide.phantom_config import (
    PhantomConfig,
    default_config,
    load_phantom_config,
    make_phantom_config,
)
from wsi_pgdips.slide.phantom_fields import PhantomFields, make_fields
from wsi_pgdips.slide.phantom_scene import CELL, ProceduralTissue, Tissue, halo, make_layout
from wsi_pgdips.slide.tiff_pyramid import PyramidWriter

__all__ = [
    "Phantom",
    "PhantomConfig",
    "PhantomTruth",
    "default_config",
    "load_phantom_config",
    "open_truth",
    "truth_paths",
    "write_phantom",
]

Q_STEP = 1e-4
FIELD_SAMPLES = 64
Counts = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class PhantomCell:
    """One cell: (h, w, 3) uint8 pixels before compression, (N, h, w) uint16 q in steps of 1e-4,
    (h, w) uint8 tissue mask."""

    rgb: ByteArray
    counts: Counts
    tissue: ByteArray


@dataclass(frozen=True)
class Phantom:
    """A phantom slide that is computed where it is asked for.

    Args:
        config: what the slide holds. fields: its true fields. tissue: its concentrations.
    """

    config: PhantomConfig
    fields: PhantomFields
    tissue: Tissue

    @classmethod
    def make(cls, config: PhantomConfig, texture: Tissue | None = None) -> Phantom:
        """Phantom with procedural tissue, or with ``texture`` in its place.

        Raises:
            SettingsError: no true stain vectors exist for this tilt and drift.
        """
        source = texture or ProceduralTissue(config, make_layout(config))
        return cls(config, make_fields(config), source)

    def cell(self, cy: int, cx: int) -> PhantomCell:
        """The pixels of cell (cy, cx); all cells are full, those at the slide's end too."""
        reach = halo(self.config)
        side = CELL + 2 * reach
        y, x = cy * CELL - reach, cx * CELL - reach
        q, tissue = self.tissue.concentration(y, x, side, side)
        yy, xx = np.arange(y, y + side)[:, None], np.arange(x, x + side)[None, :]
        q = q * self.fields.mass_at(yy, xx)
        counts = np.clip(np.rint(q / np.float32(Q_STEP)), 0, 65535).astype(np.uint16)
        intensity = render_intensity(counts, self.fields, yy, xx)
        inner = slice(reach, reach + CELL)
        if reach:
            for plane in intensity:
                plane[...] = ndimage.gaussian_filter(plane, self.config.defocus_sigma, truncate=4)
            intensity, tissue = intensity[:, inner, inner], tissue[inner, inner]
            counts = counts[:, inner, inner]
        if self.config.noise:
            rng = np.random.default_rng([self.config.seed, 404, cy, cx])
            # photon noise: variance proportional to the intensity
            spread = np.sqrt(intensity * np.float32(1 / I0)) * np.float32(self.config.noise)
            intensity = intensity + spread * rng.standard_normal(intensity.shape, np.float32)
        rgb = np.clip(np.rint(intensity), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return PhantomCell(np.ascontiguousarray(rgb), counts, tissue)

    def window(self, y: int, x: int, h: int, w: int) -> PhantomCell:
        """Any window inside the slide, cut from its cells."""
        rgb = np.empty((h, w, 3), np.uint8)
        counts = np.empty((self.config.n_stains, h, w), np.uint16)
        tissue = np.empty((h, w), np.uint8)
        for cy in range(y // CELL, (y + h - 1) // CELL + 1):
            for cx in range(x // CELL, (x + w - 1) // CELL + 1):
                cell = self.cell(cy, cx)
                t, b = max(cy * CELL, y), min((cy + 1) * CELL, y + h)
                le, r = max(cx * CELL, x), min((cx + 1) * CELL, x + w)
                here = (slice(t - y, b - y), slice(le - x, r - x))
                there = (slice(t - cy * CELL, b - cy * CELL), slice(le - cx * CELL, r - cx * CELL))
                rgb[here], tissue[here] = cell.rgb[there], cell.tissue[there]
                counts[:, here[0], here[1]] = cell.counts[:, there[0], there[1]]
        return PhantomCell(rgb, counts, tissue)


def render_intensity(
    counts: Counts, fields: PhantomFields, yy: npt.ArrayLike, xx: npt.ArrayLike
) -> FloatArray:
    """Noise-free intensity of stored concentrations at given pixels.

    Args:
        counts: (N, h, w) q in steps of 1e-4. yy, xx: (h, 1) and (1, w) level-0 pixels.

    Returns:
        (3, h, w) float32, not rounded, in (0, 255].
    """
    od = np.ascontiguousarray(fields.background_at(yy, xx))
    cos, sin = fields.rotation_at(yy, xx)
    moving = fields.stain_drift_deg > 0
    for n, count in enumerate(counts):
        q = count.astype(np.float32) * np.float32(Q_STEP)
        along, across = (q * cos[n], q * sin[n]) if moving else (q, q)
        for c in range(3):
            od[c] += along * np.float32(fields.stain_matrix[n][c])
            if moving:
                od[c] += across * np.float32(fields.tangent[n][c])
    od *= np.float32(-np.log(10.0))
    np.exp(od, out=od)
    od *= np.float32(I0)
    return od


def truth_paths(out_path: Path) -> tuple[Path, Path]:
    """(``OUT.truth.zarr``, ``OUT.truth.npz``) of a phantom slide ``OUT``."""
    out_path = Path(out_path)
    return (
        out_path.with_name(out_path.name + ".truth.zarr"),
        out_path.with_name(out_path.name + ".truth.npz"),
    )


@dataclass(frozen=True)
class PhantomTruth:
    """The truth of a written phantom.

    Attributes:
        path: of the slide. fields: exact S(x), M(x), B(x).
        library: (N, 3) unit vectors a method may start from, at least ``tilt_deg`` off.
    """

    path: Path
    config: PhantomConfig
    fields: PhantomFields

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(truth_paths(self.path)[0], mode="r")

    @property
    def library(self) -> FloatArray:
        return unit_rows([s.vector for s in self.config.stains])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(s.label for s in self.config.stains)

    @property
    def shape(self) -> tuple[int, int]:
        return self.config.shape

    def counts(self, y: int, x: int, h: int, w: int) -> Counts:
        """(N, h, w) uint16 q in steps of 1e-4."""
        return np.asarray(self._array("q")[:, y : y + h, x : x + w], np.uint16)

    def concentration(self, y: int, x: int, h: int, w: int) -> FloatArray:
        """(N, h, w) float32 q_n = M_n C_n, OD along the true unit vectors."""
        return self.counts(y, x, h, w).astype(np.float32) * np.float32(Q_STEP)

    def tissue(self, y: int, x: int, h: int, w: int) -> npt.NDArray[np.bool_]:
        """(h, w) bool, true on tissue; glass in lumens is not tissue."""
        return np.asarray(self._array("tissue")[y : y + h, x : x + w], np.uint8) > 0

    def stain_matrix_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """(N, 3, ...) true unit vectors at level-0 pixels."""
        return self.fields.stain_matrix_at(yy, xx)

    def mass_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """(N, ...) true M."""
        return self.fields.mass_at(yy, xx)

    def background_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """(3, ...) true B, OD."""
        return self.fields.background_at(yy, xx)

    def render(self, y: int, x: int, h: int, w: int) -> FloatArray:
        """(h, w, 3) float32 intensity that the truth predicts, without blur, noise and JPEG."""
        yy, xx = np.arange(y, y + h)[:, None], np.arange(x, x + w)[None, :]
        return render_intensity(self.counts(y, x, h, w), self.fields, yy, xx).transpose(1, 2, 0)

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise SlideError("the truth of this phantom is damaged", where=self.path, found=name)
        return array


def write_phantom(
    config: PhantomConfig,
    out_path: Path,
    *,
    texture: Tissue | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomTruth:
    """Write a phantom slide and its truth.

    Writes ``out_path`` (pyramidal BigTIFF), ``out_path.truth.zarr`` (``q`` (N, H, W) uint16 of
    1e-4, ``tissue`` (H, W) uint8) and ``out_path.truth.npz`` (fields on a coarse grid, the library,
    and the exact functions as JSON). Memory holds a strip of 512 rows whatever the slide's height.

    Args:
        texture: concentrations of a real slide (``phantom_texture.RealTissue``) in place of
            procedural tissue.
        progress: called with (strips done, strips in all).

    Raises:
        SettingsError: no true stain vectors exist for this tilt and drift.
        OutputError: the folder is missing.
    """
    out_path = Path(out_path)
    if not out_path.parent.is_dir():
        raise OutputError("the folder of the phantom does not exist", where=out_path.parent)
    phantom = Phantom.make(config, texture)
    height, width = config.shape
    columns, strips = -(-width // CELL), -(-height // CELL)
    group = zarr.create_group(truth_paths(out_path)[0], zarr_format=3, overwrite=True)
    arrays = {}
    for name, lead, dtype in (("q", (config.n_stains,), "uint16"), ("tissue", (), "uint8")):
        ones = (1,) * len(lead)
        # one shard a strip: written once, whole
        arrays[name] = group.create_array(
            name,
            shape=(*lead, height, width),
            chunks=(*ones, CELL, CELL),
            shards=(*lead, CELL, columns * CELL),
            dtype=dtype,
            fill_value=0,
        )
    arrays["q"].attrs["scale_factor"] = Q_STEP
    writer = PyramidWriter(
        out_path,
        config.shape,
        config.mpp,
        tile=config.tile,
        factor=config.level_factor,
        quality=config.jpeg_quality,
        subsampling=config.jpeg_subsampling,
        description=json.dumps({"phantom": config.model_dump(mode="json")}),
    )
    for k in range(strips):
        top, rows = k * CELL, min(CELL, height - k * CELL)
        strip = phantom.window(top, 0, rows, width)
        arrays["q"][:, top : top + rows] = strip.counts
        arrays["tissue"][top : top + rows] = strip.tissue
        writer.write(strip.rgb)
        if progress is not None:
            progress(k + 1, strips)
    writer.close()
    _write_fields(out_path, config, phantom.fields)
    return PhantomTruth(out_path, config, phantom.fields)


def _write_fields(out_path: Path, config: PhantomConfig, fields: PhantomFields) -> None:
    yy = np.linspace(0, config.shape[0] - 1, FIELD_SAMPLES)
    xx = np.linspace(0, config.shape[1] - 1, FIELD_SAMPLES)
    grid = (yy[:, None], xx[None, :])
    np.savez(
        truth_paths(out_path)[1],
        y=yy,
        x=xx,
        stain_matrix=fields.stain_matrix_at(*grid),
        mass=fields.mass_at(*grid),
        background=fields.background_at(*grid),
        library=unit_rows([s.vector for s in config.stains]),
        config=np.array(config.model_dump_json()),
        fields=np.array(json.dumps(fields.as_dict())),
    )


def open_truth(path: Path) -> PhantomTruth:
    """The truth beside a phantom slide.

    Args:
        path: of the slide, as given to :func:`write_phantom`.

    Raises:
        SlideError: there is no truth beside this slide.
    """
    path = Path(path)
    missing = [p for p in truth_paths(path) if not p.exists()]
    if missing:
        raise SlideError(
            "no truth beside this slide",
            expected=missing[0].name,
            where=path.parent,
            hint="truth exists for slides made by `wsi-pgdips phantom` only",
        )
    with np.load(truth_paths(path)[1]) as stored:
        config = make_phantom_config(json.loads(str(stored["config"])), path)
        fields = PhantomFields.from_dict(json.loads(str(stored["fields"])))
    return PhantomTruth(path, config, fields)
