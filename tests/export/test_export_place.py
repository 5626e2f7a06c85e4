"""How exports read, what they leave behind, and what they replace, refuse and keep secret."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from PIL import Image

from support.array_slide import MPP, ArraySlide, dies_after, pixels_of, waves
from support.cheap_runs import Slide
from wsi_pgdips.errors import OutputError, SettingsError, SlideError
from wsi_pgdips.export.ngff04 import export_concentration
from wsi_pgdips.export.rgb_zarr import export_rgb_zarr
from wsi_pgdips.export.tiff import export_tiff
from wsi_pgdips.export.tiles import export_tiles
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.slide.reader import open_source

EXPORTS: dict[str, Callable[..., Any]] = {
    "tiff": export_tiff,
    "0.5": lambda reader, path: export_rgb_zarr(reader, path, version="0.5"),
    "0.4": lambda reader, path: export_rgb_zarr(reader, path, version="0.4"),
    "tiles": export_tiles,
}


def written(kind: str, path: Path) -> np.ndarray:
    """(H, W, 3) of level 0 of an export, or of its first tile."""
    if kind == "tiff":
        return tifffile.imread(path)
    if kind == "tiles":
        return np.asarray(Image.open(path / "0_0.png"))
    return zarr.open_array(path / "0", mode="r")[:].transpose(1, 2, 0)


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_is_transparent_is_white(kind: str, tmp_path: Path) -> None:
    rgba = waves(512, 512)
    rgba[:, 250:] = (0, 0, 0, 0)
    rgba[:, 100:104, 3] = 128
    EXPORTS[kind](ArraySlide(rgba), tmp_path / "out")
    got = written(kind, tmp_path / "out")
    assert got[:, 260:].min() == 255
    half = (rgba[:, 100:104, :3].astype(int) + 255) / 2
    assert np.abs(got[:, 100:104] - half).max() <= (12 if kind == "tiff" else 1)


@pytest.mark.parametrize("kind", EXPORTS)
def test_memory_is_of_strips_and_cells(kind: str, tmp_path: Path) -> None:
    """What is asked for at once does not grow with the slide."""
    most = {}
    for height in (1100, 3300):
        sizes: list[tuple[int, int]] = []
        export = EXPORTS[kind]
        export(ArraySlide(waves(height, 700), MPP, sizes.append), tmp_path / f"{height}")
        most[height] = (max(h for _, h in sizes), max(w for w, _ in sizes))
        assert sum(w * h for w, h in sizes) >= height * 700
    assert most[1100] == most[3300]
    assert max(most[3300]) <= 1024


def test_an_export_that_dies_leaves_nothing_that_looks_finished(
    tmp_path: Path, finished: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in EXPORTS:
        export, out = EXPORTS[kind], tmp_path / kind
        with pytest.raises(RuntimeError, match="killed"):
            export(ArraySlide(waves(2300, 1100), MPP, dies_after(4)), out)
        if kind == "tiles":
            assert not (out / "tiles.csv").exists()
        else:
            assert list(tmp_path.glob(f"{kind}*")) == []

    def torn(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_pgdips.export.ngff04.create_array_04", torn)
    with pytest.raises(KeyboardInterrupt):
        export_concentration(finished, tmp_path / "q.ome.zarr")
    assert list(tmp_path.glob("q.ome*")) == []


def test_an_older_export_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    for kind in ("tiff", "0.5"):
        path = tmp_path / kind
        first = waves(300, 300)
        EXPORTS[kind](ArraySlide(first), path)
        before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
        with pytest.raises(OutputError, match="exists"):
            EXPORTS[kind](ArraySlide(first), path)
        again = export_tiff if kind == "tiff" else export_rgb_zarr
        with pytest.raises(RuntimeError, match="killed"):
            again(ArraySlide(first, MPP, dies_after(0)), path, overwrite=True)
        assert {p: p.read_bytes() for p in before} == before
        again(ArraySlide(first[:100, :100]), path, overwrite=True)
        assert written(kind, path).shape == (100, 100, 3)


def test_layers_are_never_replaced(tmp_path: Path, finished: Layers) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_bytes(b"all of it")
    for place in (finished.path, tmp_path / "other"):
        with pytest.raises(OutputError, match="not an export of wsi-pgdips"):
            export_rgb_zarr(ArraySlide(waves(64, 64)), place, overwrite=True)
    assert finished.finished
    assert (tmp_path / "other" / "thesis.docx").exists()


@pytest.mark.parametrize("kind", ["tiff", "0.5"])
def test_of_two_at_one_place_the_later_is_refused(kind: str, tmp_path: Path) -> None:
    out = tmp_path / ("x.tiff" if kind == "tiff" else "x.ome.zarr")

    def other_comes_first(size: tuple[int, int]) -> None:
        if kind == "tiff":
            out.write_bytes(b"first")
        else:
            out.mkdir(exist_ok=True)
            (out / "zarr.json").write_text("{}")

    with pytest.raises(OutputError, match="exists"):
        EXPORTS[kind](ArraySlide(waves(64, 64), MPP, other_comes_first), out)
    kept = out if kind == "tiff" else out / "zarr.json"
    assert kept.read_bytes() == (b"first" if kind == "tiff" else b"{}")
    assert [node.name for node in tmp_path.iterdir()] == [out.name]


def test_what_a_killed_export_left_is_removed_and_what_one_at_work_holds_is_not(
    tmp_path: Path,
) -> None:
    out, seen = tmp_path / "x.tiff", []
    script = (
        "import os, sys; from pathlib import Path\n"
        "from wsi_pgdips.export.place import exporting\n"
        "with exporting(Path(sys.argv[1])) as partial:\n"
        "    partial.write_bytes(b'torn'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(out)], check=False).returncode == 9
    (torn,) = tmp_path.iterdir()
    at_work = tmp_path / re.sub(r"\.\d+\.", f".{os.getpid()}.", torn.name)
    at_work.write_bytes(b"of another thread")
    export_tiff(
        ArraySlide(waves(64, 64), MPP, lambda size: seen.append(set(tmp_path.iterdir()))), out
    )
    assert torn not in seen[0]
    assert set(tmp_path.iterdir()) == {out, at_work}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "does not say how large"),
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.25"}, "not square"),
    ],
)
def test_mpp_that_is_missing_or_not_square_is_refused(
    properties: dict[str, str], message: str, tmp_path: Path
) -> None:
    for export in EXPORTS.values():
        with pytest.raises(SlideError, match=message):
            export(ArraySlide(waves(64, 64), properties), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_options_that_no_file_has_are_refused(tmp_path: Path) -> None:
    plain = ArraySlide(waves(64, 64))
    for kwargs in ({"tile": 500}, {"quality": 0}):
        with pytest.raises(SettingsError):
            export_tiff(plain, tmp_path / "x", **kwargs)
    with pytest.raises(SettingsError, match=r"0\.5 or 0\.4"):
        export_rgb_zarr(plain, tmp_path / "x", version="0.6")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="png or jpeg"):
        export_tiles(plain, tmp_path / "x", form="bmp")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


PERSONAL = {
    "User": "Privy.Doctor",
    "Date": "03/04/2019",
    "ScanScope ID": "SS777321",
    "Title": "PATIENT-NAME-XY",
    "Filename": "S19-04711",
    "AppMag": "20",
    "MPP": "0.5",
}


SECRETS = ("Privy", "03/04/2019", "SS777321", "PATIENT-NAME-XY", "S19-04711", "Aperio", "LABELTEXT")


def test_nothing_personal_is_in_any_byte(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    home = tmp_path / "S19-04711"
    home.mkdir()
    svs = home / "S19-04711.svs"
    text = "|".join(f"{k} = {v}" for k, v in PERSONAL.items())
    rgb = pixels_of(openslide.OpenSlide(slide.path))
    label = np.zeros((64, 64, 3), np.uint8)
    with tifffile.TiffWriter(svs) as file:
        options = {"compression": "jpeg", "metadata": None}
        head = "Aperio Image Library v11.2.1\r\n1500x1100 (256x256) JPEG/RGB Q=70|"
        file.write(rgb, tile=(256, 256), description=head + text, **options)
        file.write(rgb[::8, ::8], description=head + text, **options)
        file.write(label, description="Aperio\r\nlabel 64x64 LABELTEXT", subfiletype=1, **options)
    opened = openslide.OpenSlide(svs)
    assert opened.properties["aperio.User"] == PERSONAL["User"]
    assert "label" in opened.associated_images
    told = {**finished.provenance, "slide": {"name": svs.name, **PERSONAL}}
    layers = dataclasses.replace(finished, provenance=told)
    own = slide_look(layers, open_source(svs, mpp=0.5, tile=256, block=1024))
    assert own.name == svs.name
    out = tmp_path / "out"
    with NormalizedSlide(svs, layers, own) as named:
        assert named.properties["aperio.User"] == PERSONAL["User"]
        export_tiff(named, out / "x.tiff")
        export_rgb_zarr(named, out / "x.ome.zarr")
        export_rgb_zarr(named, out / "x04.ome.zarr", version="0.4")
        export_tiles(named, out / "tiles", form="jpeg")
        export_tiles(named, out / "png")
    export_concentration(layers, out / "q.ome.zarr")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        data = path.read_bytes()
        for secret in (*SECRETS, str(tmp_path)):
            assert secret.encode() not in data, (path, secret)
            assert secret not in path.relative_to(out).as_posix()
    with tifffile.TiffFile(out / "x.tiff") as file:
        assert len(file.pages) == 3  # levels alone: no label, no thumbnail
