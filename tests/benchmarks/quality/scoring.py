"""Figures of maps against exact truth, over all tissue pixels of a phantom at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.quality.blur import SIGMAS, blurred
from benchmarks.quality.linear import Result
from benchmarks.quality.methods import ABLATION
from benchmarks.quality.scene import Scene
from benchmarks.quality.seam_steps import seam_steps
from benchmarks.records import Sheet
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
        centre = self._true.mean(1, keepdims=True, dtype=np.float64)
        self._centred = self._true - centre.astype(np.float32)
        self._inverse = np.linalg.pinv(self._product(self._centred, self._centred))

    def error(self, maps: FloatArray) -> MapError:
        """Error of (N, H, W) maps, finite."""
        error = self._taken(maps)
        error -= self._true
        square = np.einsum("np,np->n", error, error, dtype=np.float64) / self._pixels
        slope = self._product(error, self._centred) @ self._inverse  # (N, N): error n on truth m
        others = np.abs(slope)
        np.fill_diagonal(others, -1.0)
        crosstalk = others.max(1) if self.n > 1 else np.full(1, np.nan)
        return MapError(np.sqrt(square), float(np.sqrt(square.mean())), crosstalk)

    def _taken(self, maps: FloatArray) -> FloatArray:
        """(N, P) the tissue pixels of (N, H, W)."""
        return np.take(maps.reshape(len(maps), -1), self._at, axis=1)

    @staticmethod
    def _product(a: FloatArray, b: FloatArray) -> Floats:
        """(N, M) sums over pixels, by runs that float32 can hold."""
        step = 1 << 16
        total = np.zeros((len(a), len(b)))
        for start in range(0, a.shape[1], step):
            total += a[:, start : start + step] @ b[:, start : start + step].T
        return total


class Scorer:
    """Scores methods on one phantom, and writes what it finds on a sheet.

    A tissue pixel that a method did not measure (NaN) counts as zero.

    Args:
        scene: the phantom. sheet: where figures go.
    """

    def __init__(self, scene: Scene, sheet: Sheet) -> None:
        self.scene, self.sheet = scene, sheet
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
        plain = self.scene.reference if reference is None else reference
        boxed = self._boxed(result.maps)
        found = self._truth.error(boxed)
        self._add(method, found, 0, seconds)
        labels, sheet = self.scene.labels, self.sheet
        sheet.add_each(method, "crosstalk", labels, found.crosstalk, seconds=seconds)
        rows, background = self.scene.tile_fields
        angles = stain_angles(result.stain_matrix, rows, self.scene.weight)
        sheet.add_each(method, "angle_deg", labels, angles, seconds=seconds)
        error = background_error(result.background, background, self.scene.weight)
        sheet.add(method, "background_od", error.largest, seconds=seconds)
        sheet.add_each(
            method, "seam_step_od", labels, self._seams(result.maps, plain, 0), seconds=seconds
        )
        quarter = self.scene.grid.tile // 4
        control = np.mean([self._seams(result.maps, plain, k * quarter) for k in (1, 2, 3)], axis=0)
        sheet.add_each(method, "seam_control_od", labels, control, seconds=seconds)
        if method.startswith((ABLATION, "fields-")):
            return found
        for sigma, maps in blurred(boxed, SIGMAS):
            self._add(method, self._truth.error(maps), sigma, seconds)
        return found

    def lost(self, method: str, seconds: float | None = None) -> None:
        """A method that gave no result."""
        self.sheet.add(method, "rmse_joint", math.nan, seconds=seconds)

    def own_seam(self, method: str, label: str, step: float | None, seconds: float) -> None:
        """The seam step that a run measured itself; None for a stain it did not find."""
        value = math.nan if step is None else step
        self.sheet.add(method, "seam_own_od", value, label, seconds=seconds)

    def _boxed(self, maps: FloatArray) -> FloatArray:
        return np.nan_to_num(maps[:, *self._box], nan=0.0)

    def _add(self, method: str, error: MapError, blur: float, seconds: float | None) -> None:
        sheet = self.sheet
        sheet.add_each(method, "rmse", self.scene.labels, error.rmse, blur_px=blur, seconds=seconds)
        sheet.add(method, "rmse_joint", error.joint, blur_px=blur, seconds=seconds)
        if blur == 0:
            ratio = error.joint / self.oracle
            sheet.add(method, "rmse_joint_over_oracle", ratio, seconds=seconds)

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
