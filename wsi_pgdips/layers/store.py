"""Create the layers of a slide, write them block by block, finish their coarse levels.

Who may write what (decision 2): the coordinator alone writes ``zarr.json`` files; the
owner of a block alone writes its shards on the levels the block owns, each once and whole, level 0
of the image last, so that this file marks the block done. Two processes in one shard lose data.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.disk import make_folder, sha256, shared_store, writing, zarr_session
from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import CHUNK, OutputGrid
from wsi_pgdips.layers import pyramid, schema
from wsi_pgdips.layers.provenance import is_created, read_attributes, write_metadata
from wsi_pgdips.layers.schema import OWN_KEY, RESIDUAL, RESIDUAL_RMS, TISSUE
from wsi_pgdips.records import BoolArray, FloatArray, StainSet

Checksums = dict[str, str]


def create_layers(
    path: Path, grid: OutputGrid, stains: StainSet, *, name: str, store_residual: bool = False
) -> None:
    """Make the groups and empty arrays of the layers; the coordinator's first write.

    Our own key goes in first and the ``ome`` key last, so an interrupted creation is seen
    (``is_created`` is False) and is started again by calling this once more.

    Args:
        path: the root of the store; made if it is not there.
        name: name of the image, e.g. the slide's.
        store_residual: also make ``residual/``.

    Raises:
        OutputError: layers or something else are there already, or the place is not writable.
    """
    import zarr

    _check_free(path)
    with zarr_session(path):
        for node in _nodes(path):
            shutil.rmtree(node)  # of an interrupted creation
        # in one write: a zarr.json without our key would pass for somebody else's
        own: dict[str, Any] = {OWN_KEY: {"schema": schema.SCHEMA_VERSION}}
        root = zarr.open_group(shared_store(path), mode="a", zarr_format=3, attributes=own)
        _create_levels(root, grid, range(grid.n_levels), channels=stains.n)
        root.create_group("labels", attributes={"ome": schema.ome_labels()})
        tissue = root.create_group(TISSUE, attributes={"ome": schema.ome_tissue(grid)})
        _create_levels(tissue, grid, range(grid.n_levels), dtype="uint8")
        root.create_group("qc")
        rms = root.create_group(RESIDUAL_RMS, attributes={"ome": schema.ome_residual_rms(grid)})
        _create_levels(rms, grid, range(schema.residual_level(grid), grid.n_levels))
        if store_residual:
            signed = root.create_group(RESIDUAL, attributes={"ome": schema.ome_residual(grid)})
            _create_levels(signed, grid, range(1), channels=3, signed=True)
    write_metadata(
        path,
        {"ome": schema.ome_image(grid, stains, name), OWN_KEY: schema.own_block(grid, stains)},
    )


def write_block(
    path: Path,
    grid: OutputGrid,
    by: int,
    bx: int,
    *,
    codes: pyramid.CodeArray,
    tissue: BoolArray,
    residual_rms: pyramid.CodeArray,
    residual_od: FloatArray | None = None,
) -> Checksums:
    """Write all a block owns: its levels of the image, the tissue label and the residual.

    Shards of an earlier, broken attempt are removed first, the done marker before all others.

    Args:
        by, bx: the block; (h, w) below is the size of its region inside the image.
        codes: (N, h, w) uint16 of ``pyramid.encode``; 0 is not measured, in all channels alike.
        tissue: (h, w).
        residual_rms: uint16 codes at the level ``schema.residual_level``, ceil(h / 2**level) by
            ceil(w / 2**level); 0 is not measured.
        residual_od: (3, h, w) float32 signed residual OD, where ``residual/`` was created.

    Returns:
        Hex SHA-256 of each shard file written, by path relative to ``path``, "/" separated. Shards
        that hold nothing but 0 have no file.

    Raises:
        OutputError: not writable, or the disk is full; no half-written shard is left visible.
        ValueError: an array does not have the block's shape.
    """
    region = grid.block_region(by, bx)
    coarsest = schema.residual_level(grid)
    size = (region.h, region.w)
    small = tuple(-(-n >> coarsest) for n in size)
    for label, array, wanted in (
        ("codes", codes, size),
        ("tissue", tissue, size),
        ("residual_rms", residual_rms, small),
    ):
        if array.shape[-2:] != wanted:
            raise ValueError(f"{label} is {array.shape}, the block is {wanted} there")
    measured = np.asarray(codes[0] != schema.FILL)
    levels = range(grid.owned_levels)
    image = _levels_of(codes, pyramid.downsample, len(levels))
    labels = _levels_of(tissue.astype(np.uint8), pyramid.downsample_labels, len(levels))

    done: Checksums = {}
    with zarr_session(path):
        _shard_file(path, "0", (by, bx), codes.ndim).unlink(missing_ok=True)
        done |= _write_shard(
            path, f"{RESIDUAL_RMS}/{coarsest}", grid.shard(coarsest), by, bx, residual_rms
        )
        for level in levels:
            done |= _write_shard(
                path, f"{TISSUE}/{level}", grid.shard(level), by, bx, labels[level]
            )
        if residual_od is not None:
            signed = pyramid.encode_signed(residual_od, measured)
            done |= _write_shard(path, f"{RESIDUAL}/0", grid.shard(0), by, bx, signed)
        for level in reversed(levels):
            done |= _write_shard(path, str(level), grid.shard(level), by, bx, image[level])
    return done


def finalize_levels(path: Path, grid: OutputGrid) -> Checksums:
    """Write the levels no block owns, each from the level below, shard by shard.

    Memory is bounded by the source of one shard (C x 1024 x 1024); run it after the last block.

    Returns:
        As ``write_block``.

    Raises:
        OutputError: not writable, or the disk is full.
    """
    import zarr

    done: Checksums = {}
    pyramids: tuple[tuple[str, Callable[[Any], npt.NDArray[Any]]], ...] = (
        ("", pyramid.downsample),
        (f"{TISSUE}/", pyramid.downsample_labels),
        (f"{RESIDUAL_RMS}/", pyramid.downsample_rms),
    )
    with zarr_session(path):
        for prefix, reduce in pyramids:
            for level in range(grid.owned_levels, grid.n_levels):
                source = zarr.open_array(path / f"{prefix}{level - 1}", mode="r")
                side, (h, w) = grid.shard(level), grid.level_shape(level)
                for sy in range(-(-h // side)):
                    for sx in range(-(-w // side)):
                        y, x = 2 * side * sy, 2 * side * sx
                        finer = np.asarray(source[..., y : y + 2 * side, x : x + 2 * side])
                        done |= _write_shard(path, f"{prefix}{level}", side, sy, sx, reduce(finer))
    return done


def _nodes(path: Path) -> list[Path]:
    """What ``create_layers`` makes, as far as it is there."""
    return [
        node
        for node in sorted(path.iterdir())
        if node.name.isdigit() or node.name in ("labels", "qc", RESIDUAL)
    ]


def _check_free(path: Path) -> None:
    hint = "choose another output, or allow this one to be overwritten"
    if is_created(path):
        raise OutputError("there are layers here already", where=path, hint=hint)
    with writing(path):
        make_folder(path)
        taken = [node.name for node in [*path.glob("zarr.json"), *_nodes(path)]]
    if taken and OWN_KEY not in read_attributes(path):
        raise OutputError(
            "the output folder holds something else",
            expected="an empty or new folder",
            found=", ".join(taken),
            where=path,
            hint=hint,
        )


def _create_levels(
    group: Any,
    grid: OutputGrid,
    levels: range,
    *,
    channels: int = 0,
    dtype: str = "uint16",
    signed: bool = False,
) -> None:
    """Empty arrays named by their level, (C, H, W) or, with ``channels`` 0, (H, W)."""
    from zarr.codecs import BloscCodec

    lead = (channels,) if channels else ()
    for level in levels:
        side = grid.shard(level)
        group.create_array(
            str(level),
            shape=(*lead, *grid.level_shape(level)),
            dtype=dtype,
            chunks=((1,) if channels else ()) + (CHUNK, CHUNK),
            shards=(*lead, side, side),
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
            fill_value=schema.FILL,
            dimension_names=("c", "y", "x") if channels else ("y", "x"),
            attributes=schema.od_attributes(signed=signed) if dtype == "uint16" else {},
        )


def _levels_of(
    finest: npt.NDArray[Any], reduce: Callable[[Any], npt.NDArray[Any]], n: int
) -> list[npt.NDArray[Any]]:
    levels = [finest]
    while len(levels) < n:
        levels.append(reduce(levels[-1]))
    return levels


def _shard_file(path: Path, array: str, index: tuple[int, int], ndim: int) -> Path:
    channel = ["0"] * (ndim - 2)  # a shard holds all channels
    return path.joinpath(array, "c", *channel, str(index[0]), str(index[1]))


def _write_shard(
    path: Path, array: str, side: int, sy: int, sx: int, data: npt.NDArray[Any]
) -> Checksums:
    """Write one whole shard of an array from memory, inside a ``zarr_session``."""
    import zarr

    file = _shard_file(path, array, (sy, sx), data.ndim)
    # an old shard at the image's border would be read and merged by zarr; a torn one could not be
    file.unlink(missing_ok=True)
    target = zarr.open_array(shared_store(path / array), mode="r+")
    y, x = sy * side, sx * side
    target[..., y : y + data.shape[-2], x : x + data.shape[-1]] = data
    return {file.relative_to(path).as_posix(): sha256(file)} if file.is_file() else {}
