"""The true fields S(x), M(x) and B(x) of a phantom, as exact functions of the position."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.phantom.config import PhantomConfig
from wsi_pgdips.records import FloatArray

_MIN_COMPONENT = 0.02
# least angle between true vectors: a share of the library's angle, and degrees in any case
_MIN_SEPARATION_SHARE, _MIN_SEPARATION_DEG = 0.8, 5.0
_STEP_WIDTH = 0.03
_TRIES = 4000

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PhantomFields:
    """The fields in closed form. Positions are level-0 pixels of any broadcastable shapes.

    ``S_n(x) = S0_n cos(a_n) + T_n sin(a_n)`` with ``a_n = drift * g(x . d_n)``; M and B are
    ``M0 (1 + drift g)`` and ``B0 + drift g``; g runs from -1/2 to 1/2 across the slide.

    Attributes:
        stain_matrix: N unit rows S0 at the centre. tangent: N unit rows T, normal to S0.
        stain_direction, mass_direction: N (y, x) directions; background_direction: one.
    """

    shape: tuple[int, int]
    drift_shape: str
    stain_matrix: Rows
    tangent: Rows
    stain_drift_deg: float
    stain_direction: Rows
    mass: tuple[float, ...]
    mass_drift: float
    mass_direction: Rows
    background: tuple[float, ...]
    background_drift: tuple[float, ...]
    background_direction: tuple[float, ...]

    def course(
        self, direction: tuple[float, ...], yy: npt.ArrayLike, xx: npt.ArrayLike
    ) -> FloatArray:
        """Return g(x) in [-1/2, 1/2] along a direction, float32 of the broadcast shape."""
        total = abs(direction[0]) + abs(direction[1])
        u = np.asarray(yy, np.float64) / (self.shape[0] - 1) - 0.5
        v = np.asarray(xx, np.float64) / (self.shape[1] - 1) - 0.5
        t = np.asarray(
            (u * (direction[0] / total)).astype(np.float32)
            + (v * (direction[1] / total)).astype(np.float32)
        )
        if self.drift_shape == "step":
            return np.asarray(0.5 * np.tanh(t / np.float32(_STEP_WIDTH)), np.float32)
        return np.asarray(t + 0.08 * np.sin(np.float32(2 * np.pi) * t), np.float32)

    def stain_matrix_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """Return the (N, 3, ...) float32 unit vectors S_n at the positions."""
        s0 = np.asarray(self.stain_matrix, np.float32)
        tangent = np.asarray(self.tangent, np.float32)
        cos, sin = self.rotation_at(yy, xx)
        extra = (slice(None), slice(None)) + (None,) * (cos.ndim - 1)
        return np.asarray(cos[:, None] * s0[extra] + sin[:, None] * tangent[extra], np.float32)

    def rotation_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return cos and sin of each stain's rotation, (N, ...) float32 each."""
        drift = np.float32(np.radians(self.stain_drift_deg))
        angle = np.stack([drift * self.course(d, yy, xx) for d in self.stain_direction])
        return np.cos(angle), np.sin(angle)

    def mass_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """Return the (N, ...) float32 M_n at the positions: the factor from textures to q."""
        return np.stack(
            [
                np.float32(m) * (1 + np.float32(self.mass_drift) * self.course(d, yy, xx))
                for m, d in zip(self.mass, self.mass_direction, strict=True)
            ]
        )

    def background_at(self, yy: npt.ArrayLike, xx: npt.ArrayLike) -> FloatArray:
        """Return the (3, ...) float32 B at the positions, OD."""
        g = self.course(self.background_direction, yy, xx)
        pairs = zip(self.background, self.background_drift, strict=True)
        return np.stack([np.float32(b) + np.float32(d) * g for b, d in pairs])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``PhantomFields.from_dict`` is the exact inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> PhantomFields:
        """Return the fields of :meth:`as_dict`, before or after JSON."""
        return PhantomFields(**{k: _tuples(v) for k, v in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _normal(v: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a unit vector normal to another."""
    w = rng.standard_normal(3)
    w -= v * (w @ v)
    return np.asarray(w / np.linalg.norm(w))


def _least_angles(reference: npt.NDArray[np.float64]) -> dict[tuple[int, int], float]:
    """Return the degrees that each pair of true vectors must keep, from (N, 3) vectors."""
    pairs = combinations(range(len(reference)), 2)
    apart = {(i, j): float(angle_deg(reference[i], reference[j])) for i, j in pairs}
    return {pair: max(_MIN_SEPARATION_DEG, _MIN_SEPARATION_SHARE * a) for pair, a in apart.items()}


def _acceptable(ends: npt.NDArray[np.float64], least_angles: dict[tuple[int, int], float]) -> bool:
    """Return whether the ends (2, N, 3) of the drift are physical, and all stains apart."""
    return bool(ends.min() >= _MIN_COMPONENT) and all(
        angle_deg(ends[a, i], ends[b, j]) >= least
        for (i, j), least in least_angles.items()
        for a in (0, 1)
        for b in (0, 1)
    )


def make_fields(config: PhantomConfig) -> PhantomFields:
    """Choose true vectors and directions of drift, by the seed.

    The drift is normal to the plane of library and true vector, so that the true vector is nowhere
    nearer to the library's than ``tilt_deg``. Directions of tilt are drawn until every pair of
    stains keeps 80 % of its angle in the library (of its own angle, if true vectors are given).

    Raises:
        SettingsError: no physical, well separated vectors were found for this tilt and drift.
    """
    rng = np.random.default_rng([config.seed, 101])
    library = unit_rows([s.vector for s in config.stains]).astype(np.float64)
    library /= np.linalg.norm(library, axis=1, keepdims=True)
    tilt, half = np.radians(config.tilt_deg), np.radians(config.stain_drift_deg) / 2
    given = config.true_stain_matrix
    least_angles = _least_angles(library if given is None else np.asarray(given, np.float64))
    for _ in range(_TRIES):
        rows, tangents = [], []
        for n, lib in enumerate(library):
            normal = _normal(lib, rng)
            row = lib * np.cos(tilt) + normal * np.sin(tilt)
            if given is not None:
                row = np.asarray(given[n], np.float64)
                row /= np.linalg.norm(row)
                normal = _normal(row, rng)
            tangent = np.cross(row, normal)
            rows.append(row)
            tangents.append(tangent / np.linalg.norm(tangent))
        s0, t = np.array(rows), np.array(tangents)
        ends = np.stack([s0 * np.cos(half) + sign * t * np.sin(half) for sign in (-1, 1)])
        if _acceptable(ends, least_angles):
            break
    else:
        raise SettingsError(
            "no true stain vectors found for this phantom",
            expected=f"components of at least {_MIN_COMPONENT}, and angles between stains of at "
            f"least {_MIN_SEPARATION_SHARE:g} of the library's and {_MIN_SEPARATION_DEG:g} degrees",
            found=f"tilt_deg = {config.tilt_deg:g}, stain_drift_deg = {config.stain_drift_deg:g}",
            hint="lower the tilt or the drift, or give other vectors",
        )

    def directions(count: int) -> Rows:
        angles = rng.uniform(0, 2 * np.pi, count)
        return tuple((float(np.sin(a)), float(np.cos(a))) for a in angles)

    n = config.n_stains
    return PhantomFields(
        shape=config.shape,
        drift_shape=config.drift_shape,
        stain_matrix=_tuples(s0.tolist()),
        tangent=_tuples(t.tolist()),
        stain_drift_deg=config.stain_drift_deg,
        stain_direction=directions(n),
        mass=tuple(s.amount for s in config.stains),
        mass_drift=config.mass_drift,
        mass_direction=directions(n),
        background=config.background,
        background_drift=config.background_drift,
        background_direction=directions(1)[0],
    )
