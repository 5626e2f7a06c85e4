"""What a finished run holds: in register, lossless, nothing personal, valid, like an image's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr
from PIL import Image

from support.cheap_runs import BALANCED, FAST, PHANTOMS, Slide, phantom
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.recompose import recompose, residual_od
from wsi_pgdips.optics.interpolate import interpolate
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.phantom.config import load_phantom_config, make_phantom_config
from wsi_pgdips.phantom.phantom import write_phantom
from wsi_pgdips.pipeline.image import deconvolve_image

WORDS = ("SECRETUSER", "01/02/03", "CASE123", "BARCODE77", "SECRETHOST", "2003:02:01", "WARD9")


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Level 0 by another reader than ours."""
    return np.asarray(tifffile.imread(path, key=0))


def halved(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    h, w = (n // 2 * 2 for n in rgb.shape[:2])
    return rgb[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3), dtype=np.float32)


def best_shift(a: npt.NDArray[Any], b: npt.NDArray[Any], reach: int = 3) -> tuple[int, int]:
    """(dy, dx) in -reach..reach at which b, moved, correlates best with a."""
    inner = a[reach:-reach, reach:-reach].ravel()
    h, w = a.shape[0] - 2 * reach, a.shape[1] - 2 * reach
    scores = {
        (dy, dx): np.corrcoef(
            inner, b[reach + dy : reach + dy + h, reach + dx : reach + dx + w].ravel()
        )[0, 1]
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
    }
    best = max(scores, key=lambda k: scores[k])
    assert scores[best] > 0.9
    return best


def places(shape: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """All corners, the middle of each edge, and the centre."""
    return [
        (y, x)
        for y in (0, (shape[0] - side) // 2, shape[0] - side)
        for x in (0, (shape[1] - side) // 2, shape[1] - side)
    ]


def assert_in_register(layers: Layers, intensity: npt.NDArray[Any], side: int = 96) -> None:
    od = -np.log10(np.maximum(intensity, 1) / 255).sum(-1)
    for y, x in places(layers.grid.shape, side):
        q = layers.read(y, x, side, side).sum(0)
        assert np.isfinite(q).all()
        assert best_shift(od[y : y + side, x : x + side], q) == (0, 0), (y, x)


@pytest.mark.parametrize("mpp", [0.5, 0.25], ids=["native", "factor 2"])
def test_level_0_lies_on_the_slide(mpp: float, output: Path, tmp_path: Path) -> None:
    description = load_phantom_config(PHANTOMS / "tiny.toml").model_dump()
    scale = round(0.5 / mpp)
    config = make_phantom_config(
        # tissue up to the corners, and a size that is no multiple of anything
        {**description, "shape": (601 * scale + scale - 1, 903 * scale), "mpp": mpp, "glass": False}
    )
    truth = write_phantom(config, tmp_path / "p.tiff")
    assert Slide(truth.path, Path("he")).run(output, mpp=0.5, **FAST).exit_code == 0
    layers = open_layers(output)
    assert layers.grid.shape == (601, 903)
    rgb = pixels(truth.path)
    assert_in_register(layers, rgb if scale == 1 else halved(rgb))


def test_dense_tissue_is_measured(slide: Slide, finished: Layers) -> None:
    dense = -np.log10(np.maximum(pixels(slide.path), 1) / 255).sum(-1) > 0.3
    measured = np.isfinite(finished.read(0, 0, *finished.grid.shape)[0])
    assert measured[dense].mean() >= 0.99


@pytest.mark.parametrize("name", ["single", "he_flat", "three_flat"])
def test_recomposed_from_the_slide_it_is_the_slide(name: str, output: Path, tmp_path: Path) -> None:
    made = phantom(tmp_path, name, (520, 700))
    assert made.run(output, **FAST).exit_code == 0
    layers = open_layers(output)
    rgb = pixels(made.path)
    errors = []
    for ty, tx in np.ndindex(*layers.grid.tile_grid):
        r = layers.grid.tile_region(ty, tx)
        q = layers.read(r.y, r.x, r.h, r.w)
        s = interpolate(layers.fields.stain_matrix, layers.grid, r)
        b = interpolate(layers.fields.background, layers.grid, r)
        own = rgb[r.y : r.stop_y, r.x : r.stop_x]
        od = rgb_to_od(own).transpose(2, 0, 1)
        again = recompose(q, s, b, residual_od(od, q, s, b))
        errors.append(((again.astype(float) - own) ** 2)[np.isfinite(q[0])].ravel())
    mse = np.concatenate(errors).mean()
    assert mse == 0 or 10 * np.log10(255**2 / mse) >= 60


def test_a_stored_residual_recomposes_too(slide: Slide, output: Path, tmp_path: Path) -> None:
    roi = tmp_path / "roi.geojson"
    roi.write_text(
        '{"type": "Polygon", "coordinates": '
        "[[[300, 300], [760, 300], [760, 700], [300, 700], [300, 300]]]}"
    )
    slide.run(output, store_residual=True, roi=str(roi), **FAST)
    layers = open_layers(output)
    r = layers.grid.tile_region(1, 2)
    q = layers.read(r.y, r.x, r.h, r.w)
    assert np.isfinite(q).all()
    residual = np.asarray(layers.residual()[:, r.y : r.stop_y, r.x : r.stop_x])
    s = interpolate(layers.fields.stain_matrix, layers.grid, r)
    b = interpolate(layers.fields.background, layers.grid, r)
    own = pixels(slide.path)[r.y : r.stop_y, r.x : r.stop_x]
    error = recompose(q, s, b, residual).astype(float) - own
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-12)) >= 60


def aperio_slide(path: Path, rgb: npt.NDArray[np.uint8]) -> Path:
    """A tiled TIFF that OpenSlide takes for Aperio's, with everything personal a scanner adds."""
    h, w = rgb.shape[:2]
    head = f"Aperio Image Library v12\r\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=90"
    personal = (
        "|AppMag = 20|MPP = 0.5|User = SECRETUSER|Date = 01/02/03|Time = 04:05:06"
        "|Filename = CASE123|Title = WARD9|ScanScope ID = SECRETHOST|Barcode = BARCODE77"
    )
    label = np.full((120, 90, 3), (17, 99, 201), np.uint8)
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            rgb,
            tile=(256, 256),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 95},
            description=head + personal,
            software="SECRETHOST",
            datetime="2003:02:01 04:05:06",
            extratags=[(315, "s", 0, "SECRETUSER", True), (316, "s", 0, "SECRETHOST", True)],
            metadata=None,
        )
        tif.write(rgb[::8, ::8], photometric="rgb", description=head, metadata=None)
        for name in ("label", "macro"):
            tif.write(
                label,
                photometric="rgb",
                description=f"Aperio Image Library v12\r\n{name} 90x120 CASE123",
                subfiletype=1 if name == "label" else 9,
                metadata=None,
            )
    return path


def test_nothing_personal_comes_out(slide: Slide, output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "WARD9"
    folder.mkdir()
    path = aperio_slide(folder / "s.svs", pixels(slide.path)[:700, :900])
    import openslide

    with openslide.OpenSlide(path) as opened:  # the words are there to be found
        assert opened.properties["openslide.vendor"] == "aperio"
        assert opened.properties["aperio.User"] == "SECRETUSER"
        assert "label" in opened.associated_images
    assert Slide(path, slide.stains).run(output, **FAST).exit_code == 0
    for file in output.rglob("*"):
        assert not [w for w in WORDS if w in str(file.relative_to(output))]
        if file.is_file():
            found = file.read_bytes()
            assert not [w for w in (*WORDS, str(tmp_path)) if w.encode() in found], file
    # and not behind a compression
    layers = open_layers(output)
    told = repr((layers.provenance, layers.run_record, layers.tiles.schema.metadata))
    assert not [w for w in (*WORDS, str(tmp_path)) if w in told]
    assert layers.codes().shape[0] == 2  # no label image beside the stains
    assert {p.name for p in (output / "labels").iterdir()} == {"zarr.json", "tissue", "artifact"}


def test_an_image_in_memory_gives_what_its_file_gives(
    slide: Slide, output: Path, tmp_path: Path
) -> None:
    rgb = pixels(slide.path)[200:860, 300:1100]
    path = tmp_path / "part.png"
    Image.fromarray(rgb).save(path)
    part = Slide(path, slide.stains)
    assert part.run(output, mpp="native", mpp_source=0.5, **BALANCED).exit_code == 0
    layers = open_layers(output)
    stored = layers.read(0, 0, *layers.grid.shape)
    result = deconvolve_image(rgb, stains=str(slide.stains), mpp=0.5, **BALANCED)
    assert result.concentration.shape == (2, 660, 800)
    assert result.concentration.dtype == np.float32
    assert np.array_equal(np.isnan(result.concentration), np.isnan(stored))
    assert np.nanmax(np.abs(result.concentration - stored)) <= 1.5e-3
    assert np.isfinite(result.concentration[:, result.tissue]).all()
    assert result.residual.shape == (3, 660, 800)
    assert np.isfinite(result.residual[:, result.tissue]).all()


def test_a_region_does_not_need_the_whole(
    slide: Slide, finished: Layers, output: Path, tmp_path: Path
) -> None:
    """Blocks outside a region of interest are neither planned nor written."""
    roi = tmp_path / "roi.geojson"
    roi.write_text(
        '{"type": "Polygon", "coordinates": '
        "[[[300, 300], [700, 300], [700, 600], [300, 600], [300, 300]]]}"
    )
    done = slide.run(output, roi=str(roi), **FAST)
    assert 0 < done.tiles < finished.tiles.num_rows / 2
    shards = [p.relative_to(output / "0" / "c").as_posix() for p in (output / "0").rglob("0/*/*")]
    assert [s for s in shards if s.count("/") == 2] == ["0/0/0"]
    r = Region(300, 300, 300, 400)
    here, whole = open_layers(output).read(r.y, r.x, r.h, r.w), finished.read(r.y, r.x, r.h, r.w)
    assert np.isfinite(here).all()
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("which", ["finished", "balanced"])
def test_validators_agree(which: str, request: pytest.FixtureRequest) -> None:
    layers: Layers = request.getfixturevalue(which)
    scripts = Path(sys.executable).parent
    for program in ("yaozarrs", "ome-zarr-models"):
        done = subprocess.run(
            [scripts / program, "validate", layers.path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_has_its_checksum(finished: Layers) -> None:
    import hashlib
    import json

    told = json.loads((finished.path / "provenance" / "checksums.json").read_text())
    found = {
        p.relative_to(finished.path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in finished.path.rglob("*")
        if p.is_file()
    }
    # the one has none of itself, the other tells runs apart
    assert {"provenance/checksums.json", "provenance/run.json"} <= found.keys()
    del found["provenance/checksums.json"], found["provenance/run.json"]
    assert found == told
    assert zarr.open_group(finished.path, mode="r").attrs["ome"]
