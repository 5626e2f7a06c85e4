"""Figures that do not depend on the scale of a map, for cameras with known spectra.

What a camera sees of a stain has no length that could be compared with a concentration: every map
is multiplied with the one factor per stain that brings it nearest to the truth.
"""

from __future__ import annotations

import numpy as np

from benchmarks.quality.picture import Result
from benchmarks.quality.scene import Scene
from benchmarks.quality.scoring import Floats, MapError, Scorer, add_stains
from benchmarks.quality.similarity import SIGMAS, blur
from benchmarks.records import Records
from wsi_pgdips.optics.physics import angle_deg
from wsi_pgdips.phantom.score import background_error, stain_angles
from wsi_pgdips.records import FloatArray

CAMERA = "camera"  # not a method: what is known of the camera


class ScaleFreeScorer(Scorer):
    """Scores methods on one phantom that a camera with known spectra saw.

    Errors are in standard deviations of the true concentration over tissue.

    Args:
        scene: the phantom; it has a linear fit of its camera. records: where figures go.
    """

    def __init__(self, scene: Scene, records: Records) -> None:
        super().__init__(scene, records)
        self.oracle = self._error(self._boxed(scene.oracle().maps)).joint
        if scene.linear is not None:
            known = {
                "departure": scene.linear.departure,
                "vectors_apart_deg": float(angle_deg(*scene.linear.vectors[:2])),
            }
            records.add(known, method=CAMERA)

    def score(
        self,
        method: str,
        result: Result,
        seconds: float | None = None,
        reference: FloatArray | None = None,
    ) -> MapError:
        """All figures of one method, and of its maps blurred; seams have none here."""
        records, labels = self.records.at(method=method, seconds=seconds), self.scene.labels
        boxed = self._boxed(result.maps)
        found = self._error(boxed)
        add_stains(records, "pcc", labels, self._truth.pcc(boxed))
        add_stains(records, "rmse_scaled", labels, found.rmse)
        over = found.joint / self.oracle
        records.add({"rmse_scaled_joint": found.joint, "rmse_scaled_joint_over_oracle": over})
        add_stains(records, "crosstalk", labels, found.crosstalk)
        rows, background = self.scene.tile_fields
        weight = self.scene.weight
        angles = stain_angles(result.stain_matrix, rows, weight)
        add_stains(records, "angle_deg", labels, angles)
        error = background_error(result.background, background, weight)
        records.add({"background_od": error.largest})
        for sigma in SIGMAS:
            soft, at = blur(boxed, sigma), records.at(blur_px=sigma)
            softer = self._error(soft)
            add_stains(at, "pcc", labels, self._truth.pcc(soft))
            add_stains(at, "rmse_scaled", labels, softer.rmse)
            at.add({"rmse_scaled_joint": softer.joint})
        return found

    def _error(self, maps: FloatArray) -> MapError:
        """Error after the best factor for each stain; crosstalk in units of concentration."""
        factor = self._truth.factors(maps)
        found = self._truth.error(maps * factor[:, None, None].astype(np.float32))
        rmse: Floats = found.rmse / self._truth.std
        return MapError(rmse, float(np.sqrt(np.mean(rmse**2))), found.crosstalk)
