"""The truth of a phantom: concentrations in zarr, fields as exact functions, the forward model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from wsi_pgdips.errors import SlideError
from wsi_pgdips.optics.physics import I0, unit_rows
from wsi_pgdips.phantom.config import PhantomConfig, make_phantom_config
from wsi_pgdips.phantom.fields import PhantomFields
from wsi_pgdips.records import FloatArray

Q_STEP = 1e-4
FIELD_SAMPLES = 64
Counts = npt.NDArray[np.uint16]


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


def write_fields(out_path: Path, config: PhantomConfig, fields: PhantomFields) -> None:
    """Write ``OUT.truth.npz``: fields on a 64 x 64 grid, library, configuration, exact fields."""
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
