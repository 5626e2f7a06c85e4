"""What cannot be done: one message, exit code 2, no traceback, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from support.cheap_runs import FAST, Slide, differing
from wsi_pgdips.layers.reader import Layers, open_layers

OPTIONS = tuple(f"--{name.replace('_', '-')}={value}" for name, value in FAST.items())
NATIVE = ("--mpp=native", "--mpp-source=0.5")


@pytest.fixture
def refused(call: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the program on something bad; returns what it said."""

    def run(slide: Path, *options: object, output: Path | None = None) -> str:
        target = output or tmp_path / "out.ome.zarr"
        there = target.exists()
        assert call("run", slide, target, *OPTIONS, *options) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert said.err.count("error:") == 1
        assert target.exists() == there
        return said.err

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small image with tissue on glass, and no resolution."""
    rng = np.random.default_rng(0)
    rgb = np.full((300, 400, 3), 243, np.uint8)
    cells = rng.integers(-25, 25, (9, 12))  # of 10 um: what is flat would be paint
    rgb[60:240, 60:300] = np.array([170, 90, 160]) + np.kron(cells, np.ones((20, 20)))[..., None]
    path = tmp_path / "picture.png"
    Image.fromarray(rgb).save(path)
    return path


def small_filesystem(folder: Path, *options: str) -> Path:
    """A file system of its own; skips where it cannot be mounted."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    return folder


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """Mount small file systems; they are gone after the test."""
    folders: list[Path] = []

    def mount(*options: str) -> Path:
        folders.append(small_filesystem(tmp_path / f"disk{len(folders)}", *options))
        return folders[-1]

    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


def test_no_such_file(refused: Any, tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.svs")


def test_not_a_slide(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "letter.svs"
    path.write_text("dear colleague")
    assert "not a slide or image of a known format" in refused(path)


def test_a_truncated_slide(refused: Any, slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "cut.tiff"
    path.write_bytes(slide.path.read_bytes()[: slide.path.stat().st_size // 2])
    assert "damaged or truncated" in refused(path)


def test_an_absurd_mpp_of_the_file(refused: Any, tmp_path: Path, picture: Path) -> None:
    path = tmp_path / "x.tiff"
    rgb = np.asarray(Image.open(picture))
    tifffile.imwrite(path, rgb, photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
    said = refused(path)
    assert "352.8" in said
    assert "--mpp-source" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "--mpp-source"),
        ("--mpp-source=400", "--mpp-source"),
        *((f"--mpp={value}", "--mpp") for value in ("0", "nan", "fine")),
        ("--mpp-source=0.5 --mpp=0.2", "upsampling is not supported(.|\n)*at least 0.5"),
        ("--mpp=native --mpp-source=0.5 --stains=purple", "hdab"),
        ("--mpp=native --mpp-source=0.5 --tile=300", "256, 512, 1024"),
        ("--mpp=native --mpp-source=0.5 --mask=nowhere.geojson", "nowhere.geojson"),
        ("--mpp=native --mpp-source=0.5 --roi=nowhere.geojson", "nowhere.geojson"),
    ],
)
def test_bad_options(options: str, words: str, refused: Any, picture: Path) -> None:
    assert re.search(words, refused(picture, *options.split()))


def test_no_tissue(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "glass.png"
    Image.fromarray(np.full((600, 700, 3), 243, np.uint8)).save(path)
    assert "no tissue found" in refused(path, *NATIVE)


def test_no_gpu_where_one_was_asked_for(
    refused: Any, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        assert "no GPU" in refused(picture, *NATIVE, f"--device={device}")
    assert "unknown device" in refused(picture, *NATIVE, "--device=tpu")


def test_a_gpu_that_is_not_there(
    refused: Any, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = refused(picture, *NATIVE, "--device=cuda:2")
    assert "cuda:0 to cuda:1" in said


def test_an_output_in_the_way(refused: Any, picture: Path, tmp_path: Path) -> None:
    output = tmp_path / "notes"
    output.mkdir()
    (output / "a.txt").write_text("keep me")
    assert "not ours" in refused(picture, *NATIVE, "--overwrite", output=output)
    assert (output / "a.txt").read_text() == "keep me"


def test_an_output_below_a_file(refused: Any, picture: Path) -> None:
    assert "cannot be written" in refused(picture, *NATIVE, output=picture / "out.ome.zarr")


def test_an_output_that_is_not_writable(refused: Any, picture: Path, mounted: Any) -> None:
    folder = mounted("ro", "size=1m")
    said = refused(picture, *NATIVE, output=folder / "out.ome.zarr")
    assert "Read-only" in said
    assert str(folder) in said


def test_a_folder_without_permission(refused: Any, picture: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    assert "Permission denied" in refused(picture, *NATIVE, output=folder / "out.ome.zarr")


def test_a_full_disk_and_then_more_space(
    call: Any,
    capsys: pytest.CaptureFixture[str],
    slide: Slide,
    finished: Layers,
    mounted: Any,
) -> None:
    """Whenever the space runs out: one message; with more space the run goes on, same bytes."""
    folder = mounted("size=16k")
    output = folder / "out.ome.zarr"
    codes = []
    for kib in (16, 64, 128, 512, 1024, 3072, 5120, 7168, 65536):
        subprocess.run(["mount", "-o", f"remount,size={kib}k", folder], check=True)
        codes.append(call("run", slide.path, output, f"--stains={slide.stains}", *OPTIONS))
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if codes[-1] == 0:
            break
        assert "space" in said
    assert codes[-1] == 0
    assert codes.count(2) == len(codes) - 1 >= 4
    assert differing(finished.path, output) == []


def test_an_image_smaller_than_a_tile(picture: Path, output: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.open(picture).crop((40, 40, 239, 191)).save(small)
    done = Slide(small, Path("he")).run(output, mpp="native", mpp_source=0.5, **FAST)
    assert (done.exit_code, done.tiles) == (0, 1)
    layers = open_layers(output)
    assert layers.grid.shape == (151, 199)
    assert np.isfinite(layers.read(30, 30, 100, 100)).all()
