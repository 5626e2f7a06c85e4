"""Layers that were whole once: what is wrong with them now is found and said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cheap_runs import FAST, Slide
from wsi_pgdips.checks import verify
from wsi_pgdips.checks.verify import verify_layers
from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.pipeline.output import CHECKSUMS


@pytest.fixture
def copy(finished: Layers, tmp_path: Path) -> Path:
    """A finished run of one's own, to break."""
    return Path(shutil.copytree(finished.path, tmp_path / "out.ome.zarr"))


def test_finished_layers_are_whole(finished: Layers, balanced: Layers) -> None:
    for layers in (finished, balanced):
        seen: list[int] = []
        assert verify_layers(layers.path, lambda seen=seen: seen.append(1)) == []
        assert len(seen) == len(json.loads((layers.path / CHECKSUMS).read_bytes()))


def test_a_residual_that_was_asked_for_is_looked_at(slide: Slide, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.zarr"
    assert slide.run(output, store_residual=True, **FAST).exit_code == 0
    assert verify_layers(output) == []
    shard = next(f for f in (output / "residual").rglob("c/**/*") if f.is_file())
    shard.unlink()
    (output / "residual" / "zarr.json").write_text("{}")
    found = "\n".join(verify_layers(output))
    assert f"{shard.relative_to(output)}: missing" in found
    assert "residual: yaozarrs refuses it" in found


def flip(output: Path, name: str) -> None:
    data = bytearray((output / name).read_bytes())
    data[len(data) // 2] ^= 1
    (output / name).write_bytes(data)


def unrecorded(output: Path, name: str) -> None:
    """A shard that is gone from the disk and from the list of shards."""
    (output / name).unlink()
    recorded = json.loads((output / CHECKSUMS).read_bytes())
    del recorded[name]
    (output / CHECKSUMS).write_text(json.dumps(recorded))


def put(output: Path, name: str, text: str) -> None:
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text(text)


SHARD, S = "0/c/0/0/1", "parameters/stain_matrix"


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda o: flip(o, SHARD), [f"{SHARD}: other bytes than were written"]),
        (lambda o: flip(o, "tables/tiles.parquet"), ["tiles.parquet: other bytes than were"]),
        (lambda o: flip(o, f"{S}/c/0/0/0/0"), [f"{S}/c/0/0/0/0: other bytes than were"]),
        (lambda o: shutil.rmtree(o / S), [f"{S}/zarr.json: missing"]),
        (lambda o: put(o, f"{S}/c/7/0/0/0", "x"), [f"{S}/c/7/0/0/0: not of this run"]),
        (lambda o: (o / SHARD).unlink(), [f"{SHARD}: missing", f"{SHARD}: the block is missing"]),
        (lambda o: unrecorded(o, SHARD), [f"{SHARD}: the block is missing"]),
        (lambda o: put(o, "0/c/0/7/7", "x"), ["0/c/0/7/7: not of this run"]),
        (lambda o: put(o, "0/c/0/0/0.abc.partial", "x"), ["0/c/0/0/0.abc.partial: unfinished"]),
        (lambda o: put(o, "work/plan.npz", "x"), ["work: files of a run that has ended"]),
        (lambda o: put(o, "0/zarr.json", "{"), ["yaozarrs refuses it"]),
        (lambda o: (o / "0" / "zarr.json").unlink(), ["yaozarrs refuses it"]),
        (lambda o: put(o, "labels/tissue/zarr.json", "{}"), ["labels/tissue: yaozarrs refuses it"]),
        (lambda o: (o / CHECKSUMS).unlink(), [f"{CHECKSUMS}: cannot be read"]),
        (lambda o: put(o, CHECKSUMS, "{"), [f"{CHECKSUMS}: cannot be read"]),
        (lambda o: put(o, CHECKSUMS, "[]"), [f"{CHECKSUMS}: cannot be read"]),
        (lambda o: put(o, "tables/tiles.parquet", "x"), ["tables/tiles.parquet: cannot be read"]),
        (lambda o: shutil.rmtree(o / "tables"), ["tables/tiles.parquet: cannot be read"]),
    ],
)
def test_what_is_wrong_is_said(
    breaks: Callable[[Path], object], said: list[str], copy: Path
) -> None:
    breaks(copy)
    found = verify_layers(copy)
    for words in said:
        assert any(words in line for line in found), found
    assert all("\n" not in line for line in found)


def test_all_that_is_wrong_is_said(copy: Path) -> None:
    flip(copy, SHARD)
    put(copy, "labels/tissue/0/c/9/9", "x")
    put(copy, "a.partial", "x")
    assert verify_layers(copy) == [
        f"{SHARD}: other bytes than were written",
        "labels/tissue/0/c/9/9: not of this run",
        "a.partial: unfinished file",
    ]


@pytest.mark.parametrize("name", ["zarr.json", "provenance/run.json"])
@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_what_is_not_finished_is_not_verified(name: str, text: str | None, copy: Path) -> None:
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text)
    with pytest.raises(OutputError):
        verify_layers(copy)


def test_validators_that_are_not_there(finished: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify.missing_validators() == []
    monkeypatch.setattr(verify, "_VALIDATORS", ("yaozarrs", "a_package_that_is_not_there"))
    assert verify.missing_validators() == ["a_package_that_is_not_there"]
    assert verify_layers(finished.path) == []
