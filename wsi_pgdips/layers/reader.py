"""Reading of a slide's layers: concentrations, tissue, residual, fields, tiles, provenance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import OutputGrid, Region
from wsi_pgdips.layers import pyramid, schema
from wsi_pgdips.layers.provenance import is_created, is_done, read_attributes, read_run_record
from wsi_pgdips.layers.schema import ARTIFACT, OWN_KEY, RESIDUAL, RESIDUAL_RMS, TISSUE, Json
from wsi_pgdips.layers.tables import read_fields, read_tile_table
from wsi_pgdips.records import BoolArray, ByteArray, Fields, FloatArray, StainSet, Verdict

_DASK_SIDE = 2048  # whole chunks and few tasks: 34 MB of float32 for two stains


@dataclass(frozen=True)
class Layers:
    """Layers on disk, opened with ``open_layers``. Data is read only when it is asked for.

    Attributes:
        path: root of the store.
        grid: the output grid: ``mpp``, ``shape``, ``n_levels``, ``tile``, ``block``.
        stains: labels, colours and the library's vectors, in channel order.
        provenance: the content of our own key: software, settings, slide, prior...
    """

    path: Path
    grid: OutputGrid
    stains: StainSet
    provenance: Json

    def codes(self, level: int = 0) -> Any:
        """The ``zarr.Array`` of a level, (N, H, W) uint16; 0: not measured."""
        return self._open(f"{self._level(level)}")

    def concentration(self, level: int = 0) -> Any:
        """The concentrations, ``dask.array`` (N, H, W) float32; NaN: not measured.

        They are OD along the unit stain vectors.
        """
        return _lazy(self.codes(level)).map_blocks(pyramid.decode, dtype=np.float32)

    def read(self, y: int, x: int, h: int, w: int, level: int = 0) -> FloatArray:
        """Read the concentrations of a rectangle, in a level's own pixels.

        Returns:
            (N, h, w) float32 OD; NaN: not measured, or outside the image.
        """
        out = np.full((self.stains.n, h, w), np.nan, np.float32)
        part = Region(y, x, h, w).clipped(self.grid.level_shape(self._level(level)))
        if part.h and part.w:
            codes = self.codes(level)[:, *part.slices]
            top, left = part.y - y, part.x - x
            out[:, top : top + part.h, left : left + part.w] = pyramid.decode(np.asarray(codes))
        return out

    def tissue(self, level: int = 0) -> Any:
        """The tissue mask, ``dask.array`` (H, W) bool."""
        return _lazy(self._open(f"{TISSUE}/{self._level(level)}")).astype(bool)

    def artifact(self, level: int = 0) -> Any:
        """The classes of ``records.Artifact``, ``dask.array`` (H, W) uint8; 0: none."""
        return _lazy(self._open(f"{ARTIFACT}/{self._level(level)}"))

    def read_artifact(self, level: int, region: Region) -> ByteArray:
        """Read the label of artifacts in a rectangle of a level's pixels: (h, w) uint8."""
        return np.asarray(self._open(f"{ARTIFACT}/{self._level(level)}")[region.slices], np.uint8)

    def tissue_near(self, mpp: float) -> tuple[BoolArray, int]:
        """Read the tissue mask at the level whose mpp is nearest (by its ratio) to ``mpp``.

        Returns:
            (H, W) bool of the whole slide, and the level.
        """
        levels = range(self.grid.n_levels)
        level = min(levels, key=lambda k: abs(math.log2(self.grid.mpp * 2**k / mpp)))
        return np.asarray(self.tissue(level).compute(scheduler="synchronous"), bool), level

    @property
    def verdict(self) -> Verdict:
        """Whether the result can be used, and why not."""
        return Verdict.of_json(self.provenance.get("verdict"))

    @property
    def residual_levels(self) -> range:
        """The levels that hold ``residual_rms``."""
        return range(schema.residual_level(self.grid), self.grid.n_levels)

    def residual_rms(self, level: int | None = None) -> Any:
        """The RMS residual OD, ``dask.array`` (H, W) float32; NaN: not measured.

        The default is the finest level that holds it.

        Raises:
            OutputError: no residual is stored at this level.
        """
        wanted = self.residual_levels[0] if level is None else level
        if wanted not in self.residual_levels:
            raise OutputError(
                "no residual is stored at this level",
                expected=f"a level from {self.residual_levels[0]} to {self.residual_levels[-1]}",
                found=wanted,
                where=self.path / RESIDUAL_RMS,
            )
        return _lazy(self._open(f"{RESIDUAL_RMS}/{wanted}")).map_blocks(
            pyramid.decode, dtype=np.float32
        )

    @property
    def has_residual(self) -> bool:
        """True if the signed residual is stored (``--store-residual``)."""
        return (self.path / RESIDUAL / "0" / "zarr.json").is_file()

    def residual(self) -> Any:
        """The signed residual OD at level 0, ``dask.array`` (3, H, W) float32; NaN: not measured.

        Raises:
            OutputError: it is not stored.
        """
        if not self.has_residual:
            raise OutputError(
                "these layers hold no signed residual",
                where=self.path,
                hint="run again with --store-residual, or compute it from the slide",
            )
        return _lazy(self._open(f"{RESIDUAL}/0")).map_blocks(
            pyramid.decode_signed, dtype=np.float32
        )

    @cached_property
    def fields(self) -> Fields:
        """The parameter fields, blended and raw."""
        return read_fields(self.path)

    @cached_property
    def tiles(self) -> Any:
        """The tile table, a ``pyarrow.Table`` with one row per tile."""
        return read_tile_table(self.path)

    @property
    def finished(self) -> bool:
        """True if the run that writes these layers has completed."""
        return is_done(self.path)

    @property
    def run_record(self) -> Json:
        """All that differs from run to run (host, device, times); empty before the end."""
        return read_run_record(self.path)

    def _level(self, level: int) -> int:
        if not 0 <= level < self.grid.n_levels:
            raise OutputError(
                "these layers have no such level",
                expected=f"a level from 0 to {self.grid.n_levels - 1}",
                found=level,
                where=self.path,
            )
        return level

    def _open(self, array: str) -> Any:
        import zarr

        try:
            return zarr.open_array(self.path / array, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                "an array of the layers is missing or damaged",
                where=self.path / array,
                found=str(error),
                hint="the store has changed since it was written; run again",
            ) from error


def open_layers(path: Path | str, *, unfinished: bool = False) -> Layers:
    """Open the layers a run has written.

    Args:
        path: root of the store.
        unfinished: also accept layers of a run that is still going on or broke off.

    Raises:
        OutputError: nothing there, not layers of ours, of another schema version, or not finished.
    """
    path = Path(path)
    own = read_attributes(path).get(OWN_KEY)
    if not isinstance(own, dict):
        raise OutputError(
            "these are not layers of wsi-pgdips",
            expected=f"an OME-Zarr folder whose zarr.json holds the key {OWN_KEY}",
            found="another Zarr folder"
            if (path / "zarr.json").is_file()
            else "a folder or file without zarr.json"
            if path.exists()
            else "nothing",
            where=path,
            hint="give the folder that `wsi-pgdips run` wrote",
        )
    if own.get("schema") != schema.SCHEMA_VERSION:
        raise OutputError(
            "these layers have another schema version",
            expected=schema.SCHEMA_VERSION,
            found=own.get("schema"),
            where=path,
            hint="read them with the version of wsi-pgdips that wrote them",
        )
    if not is_created(path) or not (unfinished or is_done(path)):
        raise OutputError(
            "these layers are not finished",
            where=path,
            hint="run `wsi-pgdips run` again with the same settings: it goes on where it stopped",
        )
    try:
        grid, stains = own["grid"], own["stains"]
        return Layers(
            path,
            OutputGrid(**{**grid, "shape_l0": tuple(grid["shape_l0"])}),
            StainSet(
                stains["name"],
                tuple(stains["labels"]),
                tuple(stains["colors"]),
                tuple((r, g, b) for r, g, b in stains["library_matrix"]),
                stains["library_source"],
            ),
            own,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            "the description of these layers is damaged", where=path / "zarr.json", found=error
        ) from error


def _lazy(array: Any) -> Any:
    import dask.array as da

    from_array: Any = da.from_array  # untyped in dask
    return from_array(array, chunks=(*array.shape[:-2], _DASK_SIDE, _DASK_SIDE))
