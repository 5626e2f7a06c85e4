"""Writing: what is on disk after blocks in any order, from any process, and after failures."""

from __future__ import annotations

import errno
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import yaozarrs
import zarr
from zarr.storage import LocalStore

from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers import pyramid, schema
from wsi_pgdips.layers.provenance import is_created
from wsi_pgdips.layers.store import create_layers, finalize_levels, write_block
from wsi_pgdips.records import StainSet

MakeScene = Callable[..., Any]


def is_done(path: Path, by: int, bx: int) -> bool:
    """Whether a block has its shard of level 0, which comes last."""
    return (path / f"0/c/0/{by}/{bx}").is_file()


Digest = Callable[[Path], dict[str, str]]

# several blocks with odd edges; one block that is smaller than a shard, with an odd edge at each
# level; an image smaller than a chunk; a side that ends one pixel into a block
SHAPES = [(1500, 2300), (700, 301), (90, 70), (1025, 600)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pyramid_of_blocks_is_the_pyramid_of_the_whole(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, shape: tuple[int, int]
) -> None:
    scene = make_scene(shape)
    grid = scene.grid
    scene.write(tmp_path, stains)
    finalize_levels(tmp_path, grid)
    root = zarr.open_group(tmp_path, mode="r")

    image, tissue = scene.codes, scene.tissue.astype(np.uint8)
    for level in range(grid.n_levels):
        np.testing.assert_array_equal(root[str(level)][...], image)
        np.testing.assert_array_equal(root[f"labels/tissue/{level}"][...], tissue)
        image, tissue = pyramid.downsample(image), pyramid.downsample_labels(tissue)

    first = schema.residual_level(grid)
    rms = scene.residual_rms
    for level in range(first, grid.n_levels):
        np.testing.assert_array_equal(root[f"qc/residual/{level}"][...], rms)
        rms = pyramid.downsample_rms(rms)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_validators_pass(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, shape: tuple[int, int]
) -> None:
    scene = make_scene(shape)
    scene.write(tmp_path, stains, residual=True)
    finalize_levels(tmp_path, scene.grid)
    kinds = {
        "": "Image",
        "labels/tissue": "ImageLabel",
        "qc/residual": "Image",
        "residual": "Image",
    }
    for part, kind in kinds.items():
        yaozarrs.validate_zarr_store(str(tmp_path / part))
        model = ome_zarr_models.open_ome_zarr(zarr.open_group(tmp_path / part, mode="r"))
        assert type(model).__name__ == kind


def test_bytes_do_not_depend_on_order_or_process(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, digest: Digest
) -> None:
    scene = make_scene((1500, 2300))
    grid, blocks = scene.grid, list(scene.grid.blocks())
    a, b, c = (tmp_path / name for name in "abc")
    sums = scene.write(a, stains, residual=True) | finalize_levels(a, grid)
    scene.write(b, stains, blocks=blocks[::-1], residual=True)
    finalize_levels(b, grid)
    create_layers(c, grid, stains, name="scene", store_residual=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        jobs = [
            pool.submit(partial(write_block, c, grid, *at, **scene.block(*at, residual=True)))
            for at in blocks
        ]
        for job in jobs:
            job.result()
    finalize_levels(c, grid)

    assert digest(a) == digest(b) == digest(c)
    shards = {name: value for name, value in digest(a).items() if not name.endswith("zarr.json")}
    assert "residual/0/c/0/0/0" in sums
    assert sums == shards  # every shard has its checksum, and each checksum its shard


def test_writing_again_gives_the_same_bytes_whatever_was_there(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, digest: Digest
) -> None:
    scene = make_scene((1500, 1100))
    scene.write(tmp_path, stains)
    before = digest(tmp_path)
    for name in ("0/c/0/1/0", "1/c/0/1/0"):  # at the image's lower edge: zarr would merge
        (tmp_path / name).write_bytes(b"torn")
    write_block(tmp_path, scene.grid, 1, 0, **scene.block(1, 0))
    assert digest(tmp_path) == before


def test_shards_are_as_designed(tmp_path: Path, make_scene: MakeScene, stains: StainSet) -> None:
    scene = make_scene((1500, 2300))
    create_layers(tmp_path, scene.grid, stains, name="scene", store_residual=True)
    root = zarr.open_group(tmp_path, mode="r")
    for level, side in enumerate((1024, 512, 512, 512)):
        image, tissue = root[str(level)], root[f"labels/tissue/{level}"]
        assert (image.chunks, image.shards) == ((1, 512, 512), (2, side, side))
        assert (tissue.chunks, tissue.shards) == ((512, 512), (side, side))
        assert (image.dtype, tissue.dtype) == (np.uint16, np.uint8)
        assert image.metadata.dimension_names == ("c", "y", "x")
        assert image.attrs["scale_factor"] == 1e-3
        assert (image.fill_value, image.attrs["_FillValue"]) == (0, 0)
    assert root["residual/0"].attrs["add_offset"] == pytest.approx(-32.768)
    assert root["residual/0"].shape == (3, 1500, 2300)


@pytest.mark.parametrize("refused", ["qc/residual/1", "labels/tissue/0", "residual/0", "1", "0"])
def test_a_block_is_done_only_when_all_of_it_is_there(
    tmp_path: Path,
    make_scene: MakeScene,
    stains: StainSet,
    monkeypatch: pytest.MonkeyPatch,
    refused: str,
) -> None:
    scene = make_scene((1500, 1100))
    grid = scene.grid
    scene.write(tmp_path, stains, blocks=[(0, 0)], residual=True)
    assert is_done(tmp_path, 0, 0)
    assert not is_done(tmp_path, 1, 0)

    whole = LocalStore.set

    async def full(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> None:
        if Path(self.root) == tmp_path / refused:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.root))
        await whole(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "set", full)
    for at in ((0, 0), (1, 0)):  # the one that was done before is not done any more
        with pytest.raises(OutputError, match="the disk is full") as caught:
            write_block(tmp_path, grid, *at, **scene.block(*at, residual=True))
        assert "free some space" in str(caught.value)
        assert not is_done(tmp_path, *at)


def test_level_0_is_written_last(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene((600, 700))
    create_layers(tmp_path, scene.grid, stains, name="scene", store_residual=True)
    written: list[str] = []
    whole = LocalStore.set

    async def noting(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> None:
        await whole(self, key, *args, **kwargs)
        written.append((Path(self.root) / key).relative_to(tmp_path).as_posix())

    monkeypatch.setattr(LocalStore, "set", noting)
    sums = write_block(tmp_path, scene.grid, 0, 0, **scene.block(0, 0, residual=True))
    assert written[-1] == "0/c/0/0/0"
    assert sorted(written) == sorted(sums)  # each shard once, and no zarr.json


def test_no_half_shard_is_left_when_the_disk_refuses(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, digest: Digest
) -> None:
    scene = make_scene((1000, 1000))
    create_layers(tmp_path / "ref", scene.grid, stains, name="scene")
    good = write_block(tmp_path / "ref", scene.grid, 0, 0, **scene.block(0, 0))
    create_layers(tmp_path / "out", scene.grid, stains, name="scene")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the system itself stops the write of the large shards half-way
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OutputError, match="writing the output failed"):
            write_block(tmp_path / "out", scene.grid, 0, 0, **scene.block(0, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = {k: v for k, v in digest(tmp_path / "out").items() if not k.endswith("zarr.json")}
    assert 0 < len(left) < len(good)
    assert left.items() <= good.items()


def test_a_block_without_a_measured_pixel_leaves_no_file(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet
) -> None:
    scene = make_scene((1500, 1100))
    create_layers(tmp_path, scene.grid, stains, name="scene")
    write_block(tmp_path, scene.grid, 1, 1, **scene.block(1, 1))
    empty = {k: np.zeros_like(v) for k, v in scene.block(1, 1).items() if v is not None}
    assert write_block(tmp_path, scene.grid, 1, 1, **empty) == {}
    assert not is_done(tmp_path, 1, 1)
    assert not [f for f in tmp_path.rglob("c/**/*") if f.is_file()]


def test_wrong_shapes_are_refused(tmp_path: Path, make_scene: MakeScene, stains: StainSet) -> None:
    scene = make_scene((1500, 1100))
    create_layers(tmp_path, scene.grid, stains, name="scene")
    with pytest.raises(ValueError, match="the block needs"):
        write_block(tmp_path, scene.grid, 1, 0, **scene.block(0, 0))


def test_an_interrupted_creation_is_seen_and_started_again(
    tmp_path: Path,
    make_scene: MakeScene,
    stains: StainSet,
    digest: Digest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, larger = make_scene((700, 301)), make_scene((1500, 2300))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "ome_residual_rms", lambda grid: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            create_layers(tmp_path / "out", larger.grid, stains, name="scene")
    assert not is_created(tmp_path / "out")
    create_layers(tmp_path / "out", scene.grid, stains, name="scene")
    assert is_created(tmp_path / "out")
    create_layers(tmp_path / "ref", scene.grid, stains, name="scene")
    assert digest(tmp_path / "out") == digest(tmp_path / "ref")


def test_what_is_there_already_is_not_touched(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet, digest: Digest
) -> None:
    scene = make_scene((90, 70))
    create = partial(create_layers, grid=scene.grid, stains=stains, name="scene")
    create(tmp_path / "layers")
    with pytest.raises(OutputError, match="already holds layers"):
        create(tmp_path / "layers")

    zarr.create_group(tmp_path / "foreign", attributes={"mine": 1})
    (tmp_path / "folder" / "labels").mkdir(parents=True)
    (tmp_path / "folder" / "labels" / "notes.txt").write_text("precious")
    for name in ("foreign", "folder"):
        before = digest(tmp_path / name)
        with pytest.raises(OutputError, match="holds other files"):
            create(tmp_path / name)
        assert digest(tmp_path / name) == before


def test_a_place_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, make_scene: MakeScene, stains: StainSet
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            create_layers(place, make_scene((90, 70)).grid, stains, name="scene")
        assert "check the permissions" in str(caught.value)
