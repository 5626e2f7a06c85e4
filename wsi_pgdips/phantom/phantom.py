"""Phantom slides: a synthetic slide that OpenSlide opens, with its exact truth beside it.

Forward model: OD = sum_n q_n S_n(x) + B(x), I = 255 * 10**-OD, then defocus, noise, rounding and
JPEG. The truth is stored as concentrations in Zarr and fields as exact functions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from scipy import ndimage

from wsi_pgdips.errors import OutputError, SlideError, StainError
from wsi_pgdips.export.tiff import PyramidWriter
from wsi_pgdips.optics.physics import I0, unit_rows
from wsi_pgdips.phantom.config import PhantomConfig, make_phantom_config
from wsi_pgdips.phantom.fields import PhantomFields, make_fields
from wsi_pgdips.phantom.layout import make_layout
from wsi_pgdips.phantom.tissue import CELL, ProceduralTissue, Tissue, halo
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

Q_STEP = 1e-4
_FIELD_SAMPLES = 64
Counts = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class PhantomTruth:
    """The truth of a written phantom.

    Attributes:
        path: of the slide. config: its description. fields: exact S(x), M(x), B(x).
    """

    path: Path
    config: PhantomConfig
    fields: PhantomFields

    @property
    def library(self) -> FloatArray:
        """(N, 3) unit vectors to start a run from, at least ``tilt_deg`` off the true ones."""
        return unit_rows([s.vector for s in self.config.stains])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the N stains."""
        return tuple(s.label for s in self.config.stains)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0."""
        return self.config.shape

    def counts(self, y: int, x: int, h: int, w: int) -> Counts:
        """Read (N, h, w) uint16 q in steps of 1e-4 OD."""
        return np.asarray(self._array("q")[:, y : y + h, x : x + w], np.uint16)

    def concentration(self, y: int, x: int, h: int, w: int) -> FloatArray:
        """Read (N, h, w) float32 q_n = M_n C_n, OD along the true unit vectors."""
        return self.counts(y, x, h, w).astype(np.float32) * np.float32(Q_STEP)

    def tissue(self, y: int, x: int, h: int, w: int) -> BoolArray:
        """Read the (h, w) bool mask of tissue; glass in lumens is not tissue."""
        return np.asarray(self._array("tissue")[y : y + h, x : x + w], np.uint8) > 0

    def stain_matrix_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """Return the (N, 3, ...) true unit vectors at level-0 pixels."""
        return self.fields.stain_matrix_at(yy, xx)

    def background_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """Return the (3, ...) true B at level-0 pixels, OD."""
        return self.fields.background_at(yy, xx)

    def render(self, y: int, x: int, h: int, w: int) -> FloatArray:
        """Return the (h, w, 3) float32 intensity by the truth, without blur, noise and JPEG."""
        yy, xx = np.arange(y, y + h)[:, None], np.arange(x, x + w)[None, :]
        return _intensity(self.counts(y, x, h, w), self.fields, yy, xx).transpose(1, 2, 0)

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(truth_paths(self.path)[0], mode="r")

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise SlideError("the truth of this phantom is damaged", where=self.path, found=name)
        return array


def truth_paths(out_path: Path) -> tuple[Path, Path]:
    """Return ``OUT.truth.zarr`` and ``OUT.truth.npz`` of a phantom slide ``OUT``."""
    zarr_path, npz_path = (Path(f"{out_path}.truth.{kind}") for kind in ("zarr", "npz"))
    return zarr_path, npz_path


def open_truth(path: Path) -> PhantomTruth:
    """Open the truth beside a phantom slide.

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
            hint="only slides made by `wsi-pgdips phantom` have a truth",
        )
    with np.load(truth_paths(path)[1]) as stored:
        config = make_phantom_config(json.loads(str(stored["config"])), path)
        fields = PhantomFields.from_dict(json.loads(str(stored["fields"])))
    return PhantomTruth(path, config, fields)


@dataclass(frozen=True)
class PhantomPixels:
    """Pixels of a phantom with their truth.

    Attributes:
        rgb: (h, w, 3) uint8 before compression. counts: (N, h, w) uint16 q in steps of 1e-4 OD.
        tissue: (h, w) uint8 mask of 0 and 1.
    """

    rgb: ByteArray
    counts: Counts
    tissue: ByteArray


@dataclass(frozen=True)
class Phantom:
    """A phantom slide whose pixels are computed on request.

    Attributes:
        config: its description. fields: its true fields. tissue: its concentrations before M.
    """

    config: PhantomConfig
    fields: PhantomFields
    tissue: Tissue

    @classmethod
    def make(cls, config: PhantomConfig, texture: Tissue | None = None) -> Phantom:
        """Make a phantom with procedural tissue, or with ``texture`` in its place.

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

    def cell(self, cy: int, cx: int) -> PhantomPixels:
        """Compute cell (cy, cx), 512 x 512 pixels, also where it reaches over the slide's end."""
        reach = halo(self.config)
        side = CELL + 2 * reach
        y, x = cy * CELL - reach, cx * CELL - reach
        q, tissue = self.tissue.concentration(y, x, side, side)
        yy, xx = np.arange(y, y + side)[:, None], np.arange(x, x + side)[None, :]
        q = q * self.fields.mass_at(yy, xx)
        counts = np.clip(np.rint(q / np.float32(Q_STEP)), 0, 65535).astype(np.uint16)
        intensity = _intensity(counts, self.fields, yy, xx)
        if reach:
            for plane in intensity:
                plane[...] = ndimage.gaussian_filter(plane, self.config.defocus_sigma, truncate=4)
            inner = (slice(reach, reach + CELL),) * 2
            intensity, tissue, counts = intensity[:, *inner], tissue[inner], counts[:, *inner]
        if self.config.noise:
            rng = np.random.default_rng([self.config.seed, 404, cy, cx])
            # photon noise: variance proportional to the intensity
            spread = np.sqrt(intensity * np.float32(1 / I0)) * np.float32(self.config.noise)
            intensity = intensity + spread * rng.standard_normal(intensity.shape, np.float32)
        rgb = np.clip(np.rint(intensity), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return PhantomPixels(np.ascontiguousarray(rgb), counts, tissue)

    def window(self, y: int, x: int, h: int, w: int) -> PhantomPixels:
        """Compute any window inside the slide, from its cells."""
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
                counts[:, *here] = cell.counts[:, *there]
        return PhantomPixels(rgb, counts, tissue)


def _intensity(
    counts: Counts, fields: PhantomFields, yy: npt.ArrayLike, xx: npt.ArrayLike
) -> FloatArray:
    """Compute the noise-free intensity of stored concentrations.

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


def write_phantom(
    config: PhantomConfig,
    out_path: Path,
    *,
    texture: Tissue | None = None,
    progress: Progress | None = None,
) -> PhantomTruth:
    """Write a phantom slide and its truth.

    Writes ``out_path`` (pyramidal BigTIFF), ``out_path.truth.zarr`` (``q`` (N, H, W) uint16 of
    1e-4 OD, ``tissue`` (H, W) uint8) and ``out_path.truth.npz`` (fields on a 64 x 64 grid, the
    library, the description, and the exact functions as JSON). Memory is that of a strip of 512
    rows, whatever the slide's height.

    Args:
        texture: concentrations of a real slide (``RealTissue``) in place of procedural tissue;
            roles, presence, folds and layout of the description then have no effect.
        progress: counts strips.

    Raises:
        SettingsError: no true stain vectors exist for this tilt and drift.
        StainError: the texture holds another number of stains.
        OutputError: the folder is missing.
    """
    out_path = Path(out_path)
    if not out_path.parent.is_dir():
        raise OutputError("the folder of the phantom does not exist", where=out_path.parent)
    progress = progress or QuietProgress()
    phantom = Phantom.make(config, texture)
    height, width = config.shape
    group = zarr.create_group(truth_paths(out_path)[0], zarr_format=3, overwrite=True)
    arrays = {}
    for name, lead, dtype in (("q", (config.n_stains,), "uint16"), ("tissue", (), "uint8")):
        ones = (1,) * len(lead)
        # one shard a strip: written once, whole
        arrays[name] = group.create_array(
            name,
            shape=(*lead, height, width),
            chunks=(*ones, CELL, CELL),
            shards=(*lead, CELL, -(-width // CELL) * CELL),
            dtype=dtype,
            fill_value=0,
        )
    arrays["q"].attrs["scale_factor"] = Q_STEP
    progress.stage("phantom", -(-height // CELL), "strips")
    with PyramidWriter(
        out_path,
        config.shape,
        config.mpp,
        tile=config.tile,
        factor=config.level_factor,
        quality=config.jpeg_quality,
        subsampling=config.jpeg_subsampling,
        description="phantom " + json.dumps(config.model_dump(mode="json")),
    ) as writer:
        for top in range(0, height, CELL):
            rows = min(CELL, height - top)
            strip = phantom.window(top, 0, rows, width)
            arrays["q"][:, top : top + rows] = strip.counts
            arrays["tissue"][top : top + rows] = strip.tissue
            writer.write(strip.rgb)
            progress.advance()
        writer.close()
    truth = PhantomTruth(out_path, config, phantom.fields)
    _write_fields(truth)
    return truth


def _write_fields(truth: PhantomTruth) -> None:
    """Write ``OUT.truth.npz``, see :func:`write_phantom`."""
    fields, config = truth.fields, truth.config
    y, x = (np.linspace(0, n - 1, _FIELD_SAMPLES) for n in config.shape)
    grid = (y[:, None], x[None, :])
    np.savez(
        truth_paths(truth.path)[1],
        y=y,
        x=x,
        stain_matrix=fields.stain_matrix_at(*grid),
        mass=fields.mass_at(*grid),
        background=fields.background_at(*grid),
        library=truth.library,
        config=np.array(config.model_dump_json()),
        fields=np.array(json.dumps(fields.as_dict())),
    )
