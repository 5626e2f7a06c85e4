"""Figures of maps against exact truth, over all tissue pixels of a phantom at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.quality.methods import ABLATION
from benchmarks.quality.picture import Result
from benchmarks.quality.scene import Scene
from benchmarks.quality.seam_steps import seam_steps
from benchmarks.quality.similarity import SIGMAS, blur
from benchmarks.records import Records
from wsi_pgdips.geometry import OutputGrid, Region, bounding_box
from wsi_pgdips.phantom.score import background_error, stain_angles
from wsi_pgdips.records import BoolArray, FloatArray
from wsi_pgdips.stages.seams import seam_summary

Floats = npt.NDArray[np.float64]
_MARGIN = 16  # pixels around the tissue that a blur may draw from


@dataclass(frozen=True)
class MapError:
    """Error of maps on tissue.

    Attributes:
        rmse: (N,) OD. joint: root of the mean of the squared rmse.
        crosstalk: (N,) largest absolute coefficient of another stain's truth on the error; NaN
            with one stain.
    """

    rmse: Floats
    joint: float
    crosstalk: Floats


class Truth:
    """True concentrations of tissue pixels, ready to compare maps with.

    Args:
        q: (N, H, W). tissue: (H, W) bool, not empty.
    """

    def __init__(self, q: FloatArray, tissue: BoolArray) -> None:
        self.n = len(q)
        self._at = np.flatnonzero(tissue)
        self._true = self._taken(q)  # (N, P)
        self._pixels = self._true.shape[1]
        # regression on an intercept and the truths: with centred truths the intercept drops out
        self._centred = self._true - self._true.mean(1, keepdims=True, dtype=np.float64)
        self._inverse = np.linalg.pinv(self._centred @ self._centred.T)
        self.std: Floats = self._true.std(1, dtype=np.float64)  # (N,)

    def error(self, maps: FloatArray) -> MapError:
        """Error of (N, H, W) maps, finite."""
        error = self._taken(maps)
        error -= self._true
        square = np.einsum("np,np->n", error, error, dtype=np.float64) / self._pixels
        slope = error @ self._centred.T @ self._inverse  # (N, N): error n on truth m
        others = np.abs(slope)
        np.fill_diagonal(others, -1.0)
        crosstalk = others.max(1) if self.n > 1 else np.full(1, np.nan)
        return MapError(np.sqrt(square), float(np.sqrt(square.mean())), crosstalk)

    def factors(self, maps: FloatArray) -> Floats:
        """(N,) factors that bring (N, H, W) maps nearest to the truth; 0 for an empty map."""
        taken = self._taken(maps)
        across, own = (
            np.einsum("np,np->n", taken, b, dtype=np.float64) for b in (self._true, taken)
        )
        return np.asarray(np.divide(across, own, out=np.zeros(self.n), where=own > 0))

    def pcc(self, maps: FloatArray) -> Floats:
        """(N,) correlations of (N, H, W) maps with the truth; NaN for a flat map."""
        taken = self._taken(maps)
        centred = taken - taken.mean(1, keepdims=True, dtype=np.float64)
        power = np.sqrt((centred**2).sum(1) * (self._centred**2).sum(1))
        across = (centred * self._centred).sum(1)
        found = np.divide(across, power, out=np.full(self.n, np.nan), where=power > 0)
        return np.asarray(found, np.float64)

    def _taken(self, maps: FloatArray) -> FloatArray:
        """(N, P) the tissue pixels of (N, H, W)."""
        return np.take(maps.reshape(len(maps), -1), self._at, axis=1)


def add_stains(
    records: Records, metric: str, labels: Sequence[str], values: Iterable[float], **where: Any
) -> None:
    """Add one record of a metric for each stain."""
    for label, value in zip(labels, values, strict=True):
        records.add({metric: float(value)}, stain=label, **where)


class Scorer:
    """Scores methods on one phantom, and records what it finds.

    A tissue pixel that a method did not measure (NaN) counts as zero.

    Args:
        scene: the phantom. records: where figures go.
    """

    def __init__(self, scene: Scene, records: Records) -> None:
        self.scene, self.records = scene, records
        box = bounding_box(scene.tissue).grown(_MARGIN).clipped(scene.tissue.shape)
        self._box = box.slices
        self._truth = Truth(scene.q[:, *self._box], scene.tissue[self._box])
        self.oracle = self._truth.error(self._boxed(scene.oracle().maps)).joint

    def score(
        self,
        method: str,
        result: Result,
        seconds: float | None = None,
        reference: FloatArray | None = None,
    ) -> MapError:
        """All figures of one method: of its maps, of its S and B, and of its maps blurred.

        Parts of our own method are not blurred: they stand beside each other, not beside others.

        Args:
            reference: (N, H, W) the method's own render of the slide's constants, which seam steps
                are measured against; None for the closed form's.
        """
        records, labels = self.records.at(method=method, seconds=seconds), self.scene.labels
        plain = self.scene.reference if reference is None else reference
        boxed = self._boxed(result.maps)
        found = self._truth.error(boxed)
        rows, background = self.scene.tile_fields
        weight, quarter = self.scene.weight, self.scene.grid.tile // 4
        seams = [self._seams(result.maps, plain, k * quarter) for k in range(4)]
        add_stains(records, "rmse", labels, found.rmse)
        joint = {"rmse_joint": found.joint, "rmse_joint_over_oracle": found.joint / self.oracle}
        records.add(joint)
        add_stains(records, "crosstalk", labels, found.crosstalk)
        angles = stain_angles(result.stain_matrix, rows, weight)
        add_stains(records, "angle_deg", labels, angles)
        error = background_error(result.background, background, weight)
        records.add({"background_od": error.largest})
        add_stains(records, "seam_step_od", labels, seams[0])
        add_stains(records, "seam_control_od", labels, np.mean(seams[1:], axis=0))
        if not method.startswith((ABLATION, "fields-")):
            for sigma in SIGMAS:
                softer, at = self._truth.error(blur(boxed, sigma)), records.at(blur_px=sigma)
                add_stains(at, "rmse", labels, softer.rmse)
                at.add({"rmse_joint": softer.joint})
        return found

    def _boxed(self, maps: FloatArray) -> FloatArray:
        return np.nan_to_num(maps[:, *self._box], nan=0.0)

    def _seams(self, maps: FloatArray, reference: FloatArray, offset: int) -> Floats:
        """(N,) seam summary on a tile grid that begins ``offset`` pixels down and to the right."""
        tissue, grid = self.scene.tissue, self.scene.grid
        if min(grid.shape) - offset < grid.tile:
            return np.full(len(maps), np.nan)
        shape = (grid.shape[0] - offset, grid.shape[1] - offset)
        moved = OutputGrid(shape, 1.0, grid.mpp, grid.tile, grid.block)

        def own(r: Region) -> tuple[slice, slice]:
            y, x = r.y + offset, r.x + offset
            return slice(y, y + r.h), slice(x, x + r.w)

        steps, _ = seam_steps(
            moved, lambda r: maps[:, *own(r)] - reference[:, *own(r)], lambda r: tissue[own(r)]
        )
        return seam_summary(steps) if steps.size else np.full(len(maps), np.nan)
