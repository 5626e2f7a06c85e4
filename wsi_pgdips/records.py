"""Plain records that travel between rooms; no logic, no heavy imports beyond numpy."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from wsi_pgdips.geometry import OutputGrid, Region

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Vector = tuple[float, float, float]
BoolArray = npt.NDArray[np.bool_]


class TileFlag(enum.IntFlag):
    """Reasons why a tile was not fitted on its own, and oddities of it (bit mask)."""

    NONE = 0
    LOW_TISSUE = 1  # below --min-tissue: rendered, not fitted
    BLANK = 2  # hardly any optical density
    DIVERGED = 4  # the network's result was not finite; parameters fell back to the prior
    SCARCE_STAIN = 8  # a stain is below its presence threshold in this tile
    OUTSIDE_GATE = 16  # a fitted stain vector left the angular gate and was refused
    SWAPPED = 32  # rows came out in another order than the library's
    READ_FAILED = 64  # pixels could not be read; the tile is not measured
    # an unexpected error, and the tile inherits the slide's parameters; or what lies around it
    # could not be read, and its own pixels were reflected
    FAILED = 128
    INHERITED = 256  # S, M, B of this tile come from its neighbours or the slide
    SATURATED = 512  # more than 1 % of tissue pixels are at the detector's floor


class Artifact(enum.IntEnum):
    """Classes of the label ``artifact``: what is not stained tissue, or not to be believed."""

    FILL = 1  # never scanned, or overwritten with one value
    INK = 2  # of a pen, or paint
    FOREIGN = 3  # a colour that the stains cannot make: pigment, carbon, dirt, ink on tissue
    SATURATED = 4  # black of a stain: there is at least as much of it as is stored


def key_of(label: str) -> str:
    """The name of a stain in columns and flags, such as ``fast_red``."""
    return label.strip().lower().replace(" ", "_")


@dataclass(frozen=True)
class StainSet:
    """N stains and their OD colour vectors.

    Attributes:
        name: short name of the set, e.g. ``hdab``.
        labels: N display names, e.g. ``("Hematoxylin", "DAB")``.
        colors: N colours, six hex digits without ``#``.
        matrix: ((R, G, B), ...) N unit rows in OD space, in the order of ``labels``.
        source: where the vectors come from.
        freedom_deg: N angles by which a slide's own vector may differ from the set's: infinite to
            estimate it, 0 to keep the set's. Empty: infinite for all.
        saturating: index of the stain whose colour runs to black with its amount, as DAB's does; -1
            without one.
        alternatives: N tuples of further unit rows, for stains that laboratories make differently.
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    matrix: tuple[Vector, ...]
    source: str = ""
    freedom_deg: tuple[float, ...] = ()
    alternatives: tuple[tuple[Vector, ...], ...] = ()
    saturating: int = -1

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def stain_matrix(self) -> FloatArray:
        """(N, 3) float32, unit rows."""
        return np.asarray(self.matrix, np.float32)

    @property
    def freedom(self) -> FloatArray:
        """(N,) float32 degrees, see ``freedom_deg``."""
        return np.asarray(self.freedom_deg or (np.inf,) * self.n, np.float32)

    @property
    def libraries(self) -> list[FloatArray]:
        """All (N, 3) matrices of the set's vectors and their alternatives, the set's own first."""
        others = self.alternatives or ((),) * self.n
        choices = [(row, *rows) for row, rows in zip(self.matrix, others, strict=True)]
        return [np.asarray(rows, np.float32) for rows in product(*choices)]


@dataclass(frozen=True)
class Verdict:
    """Whether the result of a slide can be used.

    Attributes:
        status: ``pass``, ``review`` (somebody should look), ``fail``, or ``unknown`` (of layers of
            an earlier version). reasons: in plain words, the worst first.
    """

    status: str = "unknown"
    reasons: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, found: Mapping[str, Any] | None) -> Self:
        return cls() if not found else cls(found["status"], tuple(found["reasons"]))


@dataclass(frozen=True)
class SlideMeta:
    """The metadata of a slide, with nothing personal in it.

    ``mpp_l0`` is the slide's own micrometres per level-0 pixel, or None; ``properties`` holds only
    allowed keys (see ``slide.reader``); ``icc_sha256`` is the hash of the embedded colour profile.
    """

    name: str
    vendor: str
    shape_l0: tuple[int, int]
    mpp_l0: float | None
    objective_power: float | None
    level_shapes: tuple[tuple[int, int], ...]
    bounds_l0: tuple[int, int, int, int] | None
    has_icc: bool
    checksum: str
    properties: dict[str, str] = field(default_factory=dict)
    icc_sha256: str | None = None


class Pixels(Protocol):
    """RGB pixels on an output grid. Thread-safe."""

    def read(self, y: int, x: int, h: int, w: int) -> ByteArray:
        """Return (h, w, 3) uint8 RGB of the output grid; pixels outside are white."""
        ...


class TileSource(Pixels, Protocol):
    """A slide, or an image in memory, on its output grid."""

    @property
    def grid(self) -> OutputGrid: ...

    @property
    def meta(self) -> SlideMeta: ...

    def overview(self, mpp: float, part: Region | None = None) -> tuple[ByteArray, float]:
        """Return ((H, W, 3) uint8 of the slide or a part, output pixels per overview pixel).

        The overview's mpp is about ``mpp`` but never finer than the grid; overview pixel (i, j)
        covers output pixels [i*s, (i+1)*s) with s the second value returned. Of a part, all
        overview pixels that it touches are returned.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Acquisition:
    """The acquisition of a slide's pixels, before they were read (decision 22).

    Attributes:
        noise: standard deviation in counts at white; falls as the root of the intensity.
        quality: of the JPEG, 0 where none shows.
        chroma: its sampling, ``4:4:4``, ``4:2:2`` or ``4:2:0``; ``rgb`` without a change of colour
            space, as some scanners write.
        defocus: sigma in pixels of the blur by which full resolution is softer than half of it,
            beyond what sharp slides are; 0 in focus (decision 32).
        coarse: standard deviations in counts of blotches of colour, of 0.7, 1.4 and 2.8 pixels, as
            a JPEG leaves them that was resampled; empty where there are none (decision 34).
    """

    noise: float
    quality: int
    chroma: str
    defocus: float = 0.0
    coarse: tuple[float, ...] = ()


@dataclass(frozen=True)
class SlidePrior:
    """The estimates of ``calibrate`` for a slide, before any tile is fitted.

    Attributes:
        stain_matrix: (N, 3) unit rows S0, the slide's own robust estimate.
        spectral_correction: (N,) M0, the 99.9th percentile of q in OD.
        background: (3,) B0, OD of glass.
        presence: (N,) OD: a tile whose 99th percentile of q_n is below holds none of that stain.
        noise_od: standard deviation of pixel noise in OD on tissue.
        pooled_noise_od: of OD pooled 4x4, across the rays (decision 15).
        prior_weight: (N,) Lambda of the data-consistent render, >= 0 (decision 22).
        measured: (N,) bool, stains whose vector the slide itself supports.
        network: name -> array of the slide's network, empty where there is none.
        flags: what could not be done (``no_glass``, ``stain_gated:DAB``...).
        loss: of the slide's network, mean squared error of q on simulated pixels, OD.
        acquisition: under which the network was trained, or None.
        foreign: share of the sampled tissue whose colour the stains cannot make.
        library: (N, 3) vectors that the estimate started from, the set's or alternatives.
        saturating: see ``StainSet``. usual: (N,) mean q of tissue, OD.
    """

    stain_matrix: FloatArray
    spectral_correction: FloatArray
    background: FloatArray
    presence: FloatArray
    noise_od: float
    pooled_noise_od: float
    prior_weight: FloatArray
    measured: BoolArray
    network: dict[str, FloatArray] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    loss: float = float("nan")
    acquisition: Acquisition | None = None
    foreign: float = 0.0
    library: FloatArray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    saturating: int = -1
    usual: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class BlockFit:
    """Results of ``fit`` for the T tiles of one block (struct of arrays, tile axis first).

    Attributes:
        index: (T, 2) int32 tile indices (ty, tx).
        tissue: (T,) float32 share of tissue pixels.
        stain_matrix: (T, N, 3) S_t. spectral_correction: (T, N) M_t. background: (T, 3) B_t.
        confidence: (T, N) in [0, 1].
        loss: (T,) mean squared OD error. steps: (T,) int32. flags: (T,) int32, ``TileFlag`` bits.
        statistics: name -> (T, ...) sufficient statistics (see ``solver.statistics``).
        concentration: (T, N, h, w) float16 q of the tiles' own networks with their halo, or None
            where tiles have none.
    """

    index: npt.NDArray[np.int32]
    tissue: FloatArray
    stain_matrix: FloatArray
    spectral_correction: FloatArray
    background: FloatArray
    confidence: FloatArray
    loss: FloatArray
    steps: npt.NDArray[np.int32]
    flags: npt.NDArray[np.int32]
    statistics: dict[str, npt.NDArray[Any]]
    concentration: npt.NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Fields:
    """Parameter fields on the tile grid (GY, GX), S and B on its cells (CY, CX) (decision 29).

    Attributes:
        stain_matrix: (CY, CX, N, 3) unit rows at the centres of cells. background: (CY, CX, 3).
        spectral_correction: (GY, GX, N), as all that follow at the centres of tiles.
        raw_*: the tiles' own values, NaN where a tile was not fitted.
        confidence: (GY, GX, N). inherited: (GY, GX) bool.
        shrinkage: name -> share of the local deviation kept, in [0, 1] (0: constant field).
        brown: (CY, CX) in [0, 1], how far black is the saturating stain there; empty without one.
    """

    stain_matrix: FloatArray
    spectral_correction: FloatArray
    background: FloatArray
    raw_stain_matrix: FloatArray
    raw_spectral_correction: FloatArray
    raw_background: FloatArray
    confidence: FloatArray
    inherited: BoolArray
    shrinkage: dict[str, float] = field(default_factory=dict)
    brown: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def tile_stain_matrix(self) -> FloatArray:
        """(GY, GX, N, 3) S at the centres of the tiles; rows of nearly unit length."""
        return at_tiles(self.stain_matrix, self.inherited.shape)

    @property
    def tile_background(self) -> FloatArray:
        """(GY, GX, 3) B at the centres of the tiles."""
        return at_tiles(self.background, self.inherited.shape)


def at_tiles(field: npt.NDArray[Any], tile_grid: tuple[int, int]) -> npt.NDArray[Any]:
    """Return (GY, GX, ...) values of a field on cells at the centres of the tiles."""
    gy, gx = tile_grid
    split = field.reshape(gy, field.shape[0] // gy, gx, field.shape[1] // gx, *field.shape[2:])
    return np.asarray(split.mean((1, 3)), field.dtype)
