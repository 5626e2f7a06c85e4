"""Phantom slides: a synthetic slide that OpenSlide opens, with exact truth beside it.

Forward model: OD = sum_n q_n S_n(x) + B(x), I = 255 * 10**-OD, then defocus,
noise, rounding and JPEG.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage

from wsi_pgdips.errors import OutputError, StainError
from wsi_pgdips.export.tiff import PyramidWriter
from wsi_pgdips.optics.physics import I0
from wsi_pgdips.phantom.config import (
    PhantomConfig,
    default_config,
    load_phantom_config,
)
from wsi_pgdips.phantom.fields import PhantomFields, make_fields
from wsi_pgdips.phantom.layout import make_layout
from wsi_pgdips.phantom.scene import CELL, ProceduralTissue, Tissue, halo
from wsi_pgdips.phantom.truth import (
    Q_STEP,
    Counts,
    PhantomTruth,
    open_truth,
    render_intensity,
    truth_paths,
    write_fields,
)
from wsi_pgdips.records import ByteArray

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
            StainError: the texture holds another number of stains.
        """
        if texture is not None and (n := len(texture.concentration(0, 0, 8, 8)[0])) != (
            config.n_stains
        ):
            raise StainError(
                "the texture does not fit the phantom",
                expected=f"{config.n_stains} stains, as in the phantom's description",
                found=n,
                where=config.name,
            )
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
            procedural tissue; roles, presence, folds and layout of the config do not act on it.
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
        description="phantom " + json.dumps(config.model_dump(mode="json")),
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
    write_fields(out_path, config, phantom.fields)
    return PhantomTruth(out_path, config, phantom.fields)
