"""Creation of a slide's layers, writing block by block, and their coarse levels.

Two processes that write into one shard lose data (decision 2). So only the coordinator writes
``zarr.json`` files, and only the owner of a block writes its shards, on the levels that the block
owns. It writes each shard once and as a whole. Level 0 of the image comes last, so that its shard
marks the block as done.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.disk import make_folder, sha256, share, writing
from wsi_pgdips.errors import OutputError
from wsi_pgdips.geometry import CHUNK, OutputGrid
from wsi_pgdips.layers import pyramid, schema
from wsi_pgdips.layers.provenance import is_created, read_attributes, write_metadata
from wsi_pgdips.layers.schema import ARTIFACT, OWN_KEY, RESIDUAL, RESIDUAL_RMS, TISSUE
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray, StainSet

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer
    from zarr.storage import LocalStore

Checksums = dict[str, str]
# chunks of a shard are passed on in batches: one by one, zarr itself takes longer than zstd
_WRITING = {
    "async.concurrency": 16,
    "codec_pipeline.batch_size": 16,
    "array.write_empty_chunks": False,
}


@contextlib.contextmanager
def zarr_session(path: Path) -> Iterator[None]:
    """Apply the settings under which shards get the same bytes on every machine.

    Raises:
        OutputError: the operating system refused a write inside.
    """
    import zarr
    from numcodecs import blosc  # type: ignore[import-untyped]

    # one thread per chunk, because zarr and our workers already encode several chunks at once
    blosc.set_nthreads(1)
    with (
        zarr.config.set(_WRITING),
        writing(path),
    ):
        yield


def shared_store(path: Path) -> LocalStore:
    """Return a Zarr store whose files and folders are shared; see ``disk.share``."""
    from zarr.storage import LocalStore

    class SharedStore(LocalStore):
        async def set(self, key: str, value: Buffer) -> None:
            make_folder((self.root / key).parent)
            await super().set(key, value)
            share(self.root / key)

        async def set_if_not_exists(self, key: str, value: Buffer) -> None:
            make_folder((self.root / key).parent)
            await super().set_if_not_exists(key, value)
            share(self.root / key)

    return SharedStore(path)


def create_layers(
    path: Path, grid: OutputGrid, stains: StainSet, *, name: str, store_residual: bool = False
) -> None:
    """Create the groups and empty arrays of the layers; the coordinator's first write.

    Our own key is written first and the ``ome`` key last. So an interrupted creation is recognised
    (``is_created`` is False), and a second call starts it again.

    Args:
        path: root of the store; created if missing.
        name: name of the image, e.g. the slide's.
        store_residual: also create ``residual/``.

    Raises:
        OutputError: the folder holds layers or other files, or it is not writable.
    """
    import zarr

    _check_free(path)
    with zarr_session(path):
        for node in _nodes(path):
            shutil.rmtree(node)  # left by an interrupted creation
        # in one write: a zarr.json without our key would look like another program's
        own: dict[str, Any] = {OWN_KEY: {"schema": schema.SCHEMA_VERSION}}
        root = zarr.open_group(shared_store(path), mode="a", zarr_format=3, attributes=own)
        _create_levels(root, grid, range(grid.n_levels), channels=stains.n)
        root.create_group("labels", attributes={"ome": schema.ome_labels()})
        for path_of in (TISSUE, ARTIFACT):
            label = root.create_group(path_of, attributes={"ome": schema.ome_label(grid, path_of)})
            _create_levels(label, grid, range(grid.n_levels), dtype="uint8")
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
    artifact: ByteArray,
    residual_rms: pyramid.CodeArray,
    residual_od: FloatArray | None = None,
) -> Checksums:
    """Write all shards of a block: its levels of the image, the labels and the residual.

    Shards of an earlier, interrupted attempt are removed first, beginning with the shard that marks
    the block as done.

    Args:
        by, bx: the block; (h, w) below is the size of its region inside the image.
        codes: (N, h, w) uint16 of ``pyramid.encode``; 0: not measured, the same in all channels.
        tissue: (h, w). artifact: (h, w) uint8, ``records.Artifact``, 0 elsewhere.
        residual_rms: uint16 codes at the level ``schema.residual_level``, ceil(h / 2**level) by
            ceil(w / 2**level); 0: not measured.
        residual_od: (3, h, w) float32 signed residual OD, if ``residual/`` was created.

    Returns:
        The hex SHA-256 of each written shard file, by path relative to ``path``, separated by "/".
        A shard with zeros only has no file.

    Raises:
        OutputError: a file is not writable, or the disk is full; no incomplete shard is visible.
        ValueError: an array does not have the block's shape.
    """
    region = grid.block_region(by, bx)
    coarsest = schema.residual_level(grid)
    size = (region.h, region.w)
    small = tuple(-(-n >> coarsest) for n in size)
    for label, array, wanted in (
        ("codes", codes, size),
        ("tissue", tissue, size),
        ("artifact", artifact, size),
        ("residual_rms", residual_rms, small),
    ):
        if array.shape[-2:] != wanted:
            raise ValueError(f"{label} has the shape {array.shape}, but the block needs {wanted}")
    measured = np.asarray(codes[0] != schema.FILL)
    levels = range(grid.owned_levels)
    image = _levels_of(codes, pyramid.downsample, len(levels))
    labels = {
        path_of: _levels_of(array.astype(np.uint8), pyramid.downsample_labels, len(levels))
        for path_of, array in ((TISSUE, tissue), (ARTIFACT, artifact))
    }

    done: Checksums = {}
    with zarr_session(path):
        _shard_file(path, "0", (by, bx), codes.ndim).unlink(missing_ok=True)
        done |= _write_shard(
            path, f"{RESIDUAL_RMS}/{coarsest}", grid.shard(coarsest), by, bx, residual_rms
        )
        for path_of, found in labels.items():
            for level in levels:
                done |= _write_shard(
                    path, f"{path_of}/{level}", grid.shard(level), by, bx, found[level]
                )
        if residual_od is not None:
            signed = pyramid.encode_signed(residual_od, measured)
            done |= _write_shard(path, f"{RESIDUAL}/0", grid.shard(0), by, bx, signed)
        for level in reversed(levels):
            done |= _write_shard(path, str(level), grid.shard(level), by, bx, image[level])
    return done


def finalize_levels(path: Path, grid: OutputGrid) -> Checksums:
    """Write the levels that no block owns, each from the next finer level, shard by shard.

    Call it after the last block. It needs memory for the source of one shard (C x 1024 x 1024).

    Returns:
        Checksums like ``write_block``.

    Raises:
        OutputError: a file is not writable, or the disk is full.
    """
    import zarr

    done: Checksums = {}
    pyramids: tuple[tuple[str, Callable[[Any], npt.NDArray[Any]]], ...] = (
        ("", pyramid.downsample),
        (f"{TISSUE}/", pyramid.downsample_labels),
        (f"{ARTIFACT}/", pyramid.downsample_labels),
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
    """The existing arrays and groups that ``create_layers`` makes."""
    return [
        node
        for node in sorted(path.iterdir())
        if node.name.isdigit() or node.name in ("labels", "qc", RESIDUAL)
    ]


def _check_free(path: Path) -> None:
    hint = "choose another output, or allow this one to be overwritten"
    if is_created(path):
        raise OutputError("this folder already holds layers", where=path, hint=hint)
    with writing(path):
        make_folder(path)
        taken = [node.name for node in [*path.glob("zarr.json"), *_nodes(path)]]
    if taken and OWN_KEY not in read_attributes(path):
        raise OutputError(
            "the output folder holds other files",
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
    """Create empty arrays named after their level: (C, H, W), or (H, W) if ``channels`` is 0."""
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
    # zarr would read and merge an old shard at the image's border, and fail if it is damaged
    file.unlink(missing_ok=True)
    target = zarr.open_array(shared_store(path / array), mode="r+")
    y, x = sy * side, sx * side
    target[..., y : y + data.shape[-2], x : x + data.shape[-1]] = data
    return {file.relative_to(path).as_posix(): sha256(file)} if file.is_file() else {}
